"""Token files: articles -> token ids in one memory-mapped file each for training and validation.

prepare_corpus() trains the tokenizer, encodes the articles in several processes, and keeps the result in a
cache folder, so that a second run on the same text starts at once.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import signal
import tempfile
import time
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from corpus.sentences import split_sentences
from corpus.tokenizer import EOS, load_tokenizer, train_tokenizer
from support.cli import UserError
from support.own_process import end_with_parent, own_processes

PARALLEL_FROM = 2_000_000  # characters; for a shorter text starting processes costs more than it saves
BATCH_CHARS = 500_000  # characters, about, in the articles that a process encodes at a time
CACHE_VERSION = 1  # raise it when the same text would give other token files, so that old ones are not used
STALE_SECONDS = 24 * 3600  # after which an unfinished folder in the cache is taken to be left by a killed run


class Corpus(NamedTuple):
    """A text made ready for training."""

    tokenizer: Tokenizer
    train: np.ndarray  # token ids, memory-mapped, uint16 or uint32
    val: np.ndarray  # token ids of the held-out articles
    chars_per_token: float  # in the held-out articles; <EOS> counts as a token
    key: str  # hash of the text, of its split, and of all else that the tokens depend on


def prepare_corpus(
    articles: Iterable[str], cache: Path, vocab_size: int, val_fraction: float, tokenizer_chars: int
) -> Corpus:
    """Train the tokenizer on the articles and encode them, or find both in the cache folder.

    The last val_fraction of the articles (at least one) are held out: neither tokenizer nor model trains on
    them. Of a single article, its last sentences are held out. Raises UserError for fewer than two sentences.
    """
    text_hash = hashlib.blake2b(digest_size=8)
    num_articles = num_chars = 0
    for article in articles:
        num_articles += 1
        num_chars += len(article)
        text_hash.update(article.encode("utf-8", "replace") + b"\0")
    if num_articles == 0:
        raise UserError("the text is empty")
    if num_articles == 1:
        articles = _split_article(next(iter(articles)), val_fraction)
        num_articles = 2
    text_hash.update(repr((CACHE_VERSION, vocab_size, val_fraction, tokenizer_chars)).encode())

    folder = cache / text_hash.hexdigest()
    corpus = open_cache(folder)
    if corpus is None:
        num_train = num_articles - max(1, round(num_articles * val_fraction))
        cache.mkdir(parents=True, exist_ok=True)
        _remove_stale_folders(cache)
        with tempfile.TemporaryDirectory(dir=cache, prefix="making-") as unfinished:
            _build_cache(articles, num_train, num_chars, Path(unfinished), vocab_size, tokenizer_chars)
            if open_cache(folder) is None:  # another process may have finished first
                shutil.rmtree(folder, ignore_errors=True)
                os.rename(unfinished, folder)
                os.mkdir(unfinished)  # for TemporaryDirectory to remove
        corpus = open_cache(folder)
    if corpus is None:
        raise UserError(f"{folder} cannot be read back: is the disk full, or another program writing there?")
    return corpus


def _split_article(article: str, val_fraction: float) -> list[str]:
    """An article cut at the sentence end nearest before its last val_fraction."""
    sentences = split_sentences(article)
    if len(sentences) < 2:
        raise UserError("the text is a single sentence: too little to train on and hold some out")
    ends = np.cumsum([len(sentence) for sentence in sentences])
    cut = int(np.searchsorted(ends, len(article) * (1 - val_fraction)))
    cut = min(max(1, cut), len(sentences) - 1)
    return ["".join(sentences[:cut]), "".join(sentences[cut:])]


def _remove_stale_folders(cache: Path) -> None:
    for folder in cache.glob("making-*"):
        if time.time() - folder.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def _build_cache(
    articles: Iterable[str], num_train: int, num_chars: int,
    folder: Path, vocab_size: int, tokenizer_chars: int,
) -> None:  # fmt: skip
    """Write bpe_tokenizer.json, train.bin, val.bin and about.json into the folder."""
    every = math.ceil(num_chars / tokenizer_chars)
    portion = "all" if every == 1 else f"one in {every}"
    print(f"tokenizer: byte-level BPE, {vocab_size} entries, trained on {portion} of the articles")
    chosen = (article for i, article in enumerate(articles) if i < num_train and i % every == 0)
    tokenizer = train_tokenizer(chosen, vocab_size)
    (folder / "bpe_tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")

    num_done = val_chars = 0
    with (
        open(folder / "train.bin", "wb") as train,
        open(folder / "val.bin", "wb") as val,
        tqdm(total=num_chars, desc="tokens", unit=" chars", unit_scale=True) as bar,
    ):
        for encoded, lengths in _encode_all(articles, num_chars, tokenizer):
            for ids, length in zip(encoded, lengths):
                if num_done < num_train:
                    train.write(ids)
                else:
                    val.write(ids)
                    val_chars += length
                num_done += 1
            bar.update(sum(lengths))
        about = {"val_chars": val_chars}
        for name, file in (("train_tokens", train), ("val_tokens", val)):
            about[name] = file.tell() // id_dtype(tokenizer).itemsize
            file.flush()
            os.fsync(file.fileno())
    (folder / "about.json").write_text(json.dumps(about))


def open_cache(folder: Path) -> Corpus | None:
    """What prepare_corpus() wrote into the folder. None if it is missing or has changed."""
    try:
        about = json.loads((folder / "about.json").read_text())
        tokenizer = load_tokenizer(folder / "bpe_tokenizer.json")
        train = np.memmap(folder / "train.bin", id_dtype(tokenizer), "r")
        val = np.memmap(folder / "val.bin", id_dtype(tokenizer), "r")
        if (len(train), len(val)) != (about["train_tokens"], about["val_tokens"]):
            return None
        if max(train.max(), val.max()) >= tokenizer.get_vocab_size():
            return None
        return Corpus(tokenizer, train, val, about["val_chars"] / len(val), folder.name)
    except (UserError, ValueError, KeyError, TypeError, FileNotFoundError):
        return None


def id_dtype(tokenizer: Tokenizer) -> np.dtype:
    """The type of a token id in a file: uint16, or uint32 if the vocabulary is too large for it."""
    return np.dtype(np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.uint32)


# Encoding


class Encoder:
    """encode() for millions of characters: article -> its token ids as bytes. It remembers encoded words.

    PRETOKENIZER_PATTERN always cuts where a word or a mark is followed by a space and a word. So what stands
    between two such places has the same tokens everywhere, and is encoded once.
    """

    # A space before a word or an opening mark, or the inside of "<EOS>" in a text (see tokenizer.EOS_IN_TEXT)
    CUT = re.compile(r"(?<=[\w,.;:!?»)…])(?= [\w«(—–])|(?<=<)(?=EOS>)")
    MOST_WORDS = 400_000  # remembered, some 80 MB; beyond that the memory is emptied

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.typecode = id_dtype(tokenizer).char
        self.eos = array(self.typecode, [tokenizer.token_to_id(EOS)]).tobytes()
        self.ids_of = {}  # word -> its token ids as bytes

    def __call__(self, article: str) -> bytes:
        sentences = [self.CUT.split(sentence) for sentence in split_sentences(article)]
        if len(self.ids_of) > self.MOST_WORDS:
            self.ids_of.clear()
        new_words = [word for word in set().union(*sentences) if word not in self.ids_of]
        for word, encoding in zip(new_words, self.tokenizer.encode_batch_fast(new_words)):
            self.ids_of[word] = array(self.typecode, encoding.ids).tobytes()
        return b"".join(b"".join(map(self.ids_of.__getitem__, words)) + self.eos for words in sentences)


def _encode_all(
    articles: Iterable[str], num_chars: int, tokenizer: Tokenizer
) -> Iterator[tuple[list[bytes], list[int]]]:
    """Batches of encoded articles and their lengths in characters, in order. A long text uses all cores."""
    if num_chars < PARALLEL_FROM:
        encoder = Encoder(tokenizer)
        for article in articles:
            yield [encoder(article)], [len(article)]
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core is parallel enough
    pending = deque()  # as many batches as keep all cores busy, so that a text of any length fits into memory
    with own_processes(None, start=_start_worker, arguments=(tokenizer.to_str(),)) as pool:
        for batch in _batches(articles):
            with _interrupt_delayed():
                pending.append(pool.submit(_encode_batch, batch))
            if len(pending) > 2 * os.cpu_count():
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


@contextlib.contextmanager
def _interrupt_delayed() -> Iterator[None]:
    """Ctrl-C waits for the end of the block. A fork would lose it: Python ignores errors of fork hooks."""
    received = []  # masking the signal would not do: the tokenizer has threads of its own, which take it
    handler = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if received and callable(handler):  # not if Ctrl-C is ignored
        handler(signal.SIGINT, None)


def _batches(articles: Iterable[str]) -> Iterator[list[str]]:
    """The articles in lists of about BATCH_CHARS characters."""
    batch, num_chars = [], 0
    for article in articles:
        batch.append(article)
        num_chars += len(article)
        if num_chars >= BATCH_CHARS:
            yield batch
            batch, num_chars = [], 0
    yield batch


def _start_worker(tokenizer_json: str) -> None:
    """Prepare a worker process. It leaves Ctrl-C to its parent and ends with it, even if that was killed."""
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    _encoder = Encoder(Tokenizer.from_str(tokenizer_json))


def _encode_batch(batch: list[str]) -> tuple[list[bytes], list[int]]:
    return [_encoder(article) for article in batch], [len(article) for article in batch]
