"""The text: articles -> sentences -> BPE tokens -> one flat file of token ids -> windows to train on.

prepare() does all of it and keeps the result in a cache folder, so that a second run on the same text starts at once.
encode() is the way from text to token ids for everything that trains, generates or evaluates.
"""

import hashlib
import json
import math
import multiprocessing
import os
import re
import shutil
import tempfile
import threading
import time
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from cli import UserError
from sentences import split_sentences

EOS = "<EOS>"  # ends every sentence
POOL_FROM = 2_000_000  # characters from which on it pays to start processes for encoding
BATCH_CHARS = 500_000  # characters, about, that a process is given at a time
LONGEST = 5000  # characters of a sentence that the tokenizer trains on in one piece
CACHE_VERSION = 1  # raised whenever the same text would give other token files, so that old ones are not used


# Tokens

# A word with the space before it, a number, punctuation (with the white space that ends a sentence), other white space
PIECES = r" ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+(?:\s+\z)?|\s+(?!\S)|\s+"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909): any text is some bytes, so no text is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PIECES), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(map(_short_pieces, texts), trainer)
    return tokenizer


def _short_pieces(text: str) -> list[str]:
    """The sentences, cut where longer than LONGEST: on words of millions of letters the tokenizer would train for hours."""
    return [s[i : i + LONGEST] for s in split_sentences(text) for i in range(0, len(s), LONGEST)]


def load_tokenizer(path: Path, model=None) -> Tokenizer:
    """The tokenizer saved at path. Raises UserError if there is none, none of ours, or not the one of the model (an LLM)."""
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        vocabulary = tokenizer.get_vocab()
        probe = "Проба: 1 ё 🙂."
        ids = encode(tokenizer, probe)
        whole = sorted(vocabulary.values()) == list(range(len(vocabulary)))
        ours = whole and EOS in vocabulary and vocabulary.keys() >= set(pre_tokenizers.ByteLevel.alphabet())
        if not ours or tokenizer.decode(ids) != probe:
            raise UserError(f"{path} is not a tokenizer that train.py made, or is damaged")
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there: train a model first with  python train.py") from error
    except (OSError, UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # tokenizers raises plain Exception, or PanicException, which is not even that
        raise UserError(f"{path} is not a tokenizer: {error}") from error
    if model and (len(vocabulary) != model.vocab_size or model.tokenizer_key not in ("", tokenizer_key(tokenizer))):
        sizes = f"{len(vocabulary)} entries here, {model.vocab_size} there"
        raise UserError(f"{path} and parameters.pt2 do not belong together ({sizes}): run  python train.py  again")
    return tokenizer


def tokenizer_key(tokenizer: Tokenizer) -> str:
    """A hash of the vocabulary in the order of its ids: models with the same key mean the same by an id."""
    vocabulary = tokenizer.get_vocab()
    return hashlib.blake2b("\n".join(sorted(vocabulary, key=vocabulary.get)).encode(), digest_size=8).hexdigest()


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The text's token ids with <EOS> after every sentence. Decoded without special tokens they give the text back."""
    tokenizer.encode_special_tokens = True  # "<EOS>" in a text is five characters, not the end of a sentence
    eos = tokenizer.token_to_id(EOS)
    encodings = tokenizer.encode_batch_fast(split_sentences(text))
    return [i for encoding in encodings for i in (*encoding.ids, eos)]


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> tuple[str, list[int]]:
    """A prompt as generation begins with it, and its token ids behind an <EOS>, as every sentence stands in training.

    <EOS> follows its last sentence only if that is finished; the white space at its end is what the model expects there.
    """
    prompt = prompt.encode("utf-8", "replace").decode("utf-8").rstrip()  # broken bytes of a command line become "?"
    finished = bool(prompt) and len(split_sentences(prompt + " А")) > len(split_sentences(prompt))
    prompt += " " if finished else ""
    ids = encode(tokenizer, prompt)
    return prompt, [tokenizer.token_to_id(EOS), *(ids if finished else ids[:-1])]


class Encoder:
    """encode() for millions of characters: article -> its token ids as bytes, with a memory for the words met before.

    Where a word or a mark is followed by a space and a word, PIECES always cuts; so what stands between two such places
    can be encoded once and looked up ever after.
    """

    CUT = re.compile(r"(?<=[\w,.;:!?»)…])(?= [\w«(—–])")
    MEMORY = 400_000  # words, some 80 MB; then it begins anew

    def __init__(self, tokenizer: Tokenizer):
        tokenizer.encode_special_tokens = True
        self.tokenizer = tokenizer
        self.code = token_type(tokenizer).char
        self.eos = array(self.code, [tokenizer.token_to_id(EOS)]).tobytes()
        self.known = {}

    def __call__(self, article: str) -> bytes:
        sentences = [self.CUT.split(sentence) for sentence in split_sentences(article)]
        if len(self.known) > self.MEMORY:
            self.known.clear()
        new = [word for word in set().union(*sentences) if word not in self.known]
        for word, encoding in zip(new, self.tokenizer.encode_batch_fast(new)):
            self.known[word] = array(self.code, encoding.ids).tobytes()
        return b"".join(b"".join(map(self.known.__getitem__, words)) + self.eos for words in sentences)


def token_type(tokenizer: Tokenizer) -> np.dtype:
    """What a token id is kept as in a file: uint16, or uint32 where the vocabulary is too large for it."""
    return np.dtype(np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.uint32)


# Files of tokens


class Text(NamedTuple):
    """A text made ready for training."""

    tokenizer: Tokenizer
    train: np.ndarray  # token ids, memory-mapped
    val: np.ndarray  # of the held-out articles
    chars_per_token: float  # of the held-out articles; <EOS> counts as a token
    key: str  # hash of the text and of whatever else the tokens depend on


def prepare(articles: Iterable[str], cache: Path, vocab_size: int, val_fraction: float, tokenizer_chars: int) -> Text:
    """Train the tokenizer on the articles and encode them, or find both in the cache folder.

    The last val_fraction of the articles (at least one) are held out: neither tokenizer nor model trains on them. Of a
    text in one piece its last sentences are held out. Raises UserError if there is no text, or no more than a sentence.
    """
    digest = hashlib.blake2b(digest_size=8)
    count = chars = 0
    for article in articles:
        count, chars = count + 1, chars + len(article)
        digest.update(article.encode("utf-8", "replace") + b"\0")
    if count == 1:
        articles = _in_two(next(iter(articles)), val_fraction)
        count = 2
    if not count:
        raise UserError("the text is empty")
    digest.update(repr((CACHE_VERSION, vocab_size, val_fraction, tokenizer_chars)).encode())
    folder = cache / digest.hexdigest()
    if (made := _open(folder)) is None:
        num_train = count - max(1, round(count * val_fraction))
        cache.mkdir(parents=True, exist_ok=True)
        for stale in cache.glob("making-*"):  # of runs that were killed
            if time.time() - stale.stat().st_mtime > 24 * 3600:
                shutil.rmtree(stale, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="making-") as making:
            _make(articles, num_train, chars, Path(making), vocab_size, tokenizer_chars)
            if _open(folder) is None:
                shutil.rmtree(folder, ignore_errors=True)
                os.rename(making, folder)
                os.mkdir(making)
        made = _open(folder)
    if made is None:
        raise UserError(f"{folder} cannot be read back: is the disk full, or another program writing there?")
    return made


def _open(folder: Path) -> Text | None:
    """What _make() wrote into the folder, or None if it is not there or not as it was written."""
    try:
        about = json.loads((folder / "about.json").read_text())
        tokenizer = load_tokenizer(folder / "bpe_tokenizer.json")
        train, val = (np.memmap(folder / f"{part}.bin", token_type(tokenizer), "r") for part in ("train", "val"))
        if (len(train), len(val)) != (about["train_tokens"], about["val_tokens"]):
            return None
        if max(train.max(), val.max()) >= tokenizer.get_vocab_size():
            return None
        return Text(tokenizer, train, val, about["val_chars"] / len(val), folder.name)
    except (UserError, ValueError, KeyError, TypeError, FileNotFoundError):
        return None


def _in_two(article: str, val_fraction: float) -> list[str]:
    """An article cut at the sentence end nearest before its last val_fraction."""
    sentences = split_sentences(article)
    if len(sentences) < 2:
        raise UserError("the text is a single sentence: too little to train on and hold some out")
    ends = np.cumsum([len(sentence) for sentence in sentences])
    cut = min(max(1, int(np.searchsorted(ends, len(article) * (1 - val_fraction)))), len(sentences) - 1)
    return ["".join(sentences[:cut]), "".join(sentences[cut:])]


def _make(articles: Iterable[str], num_train: int, chars: int, folder: Path, vocab_size: int, tokenizer_chars: int) -> None:
    """Write bpe_tokenizer.json, train.bin, val.bin and about.json into the folder."""
    every = math.ceil(chars / tokenizer_chars)
    print(f"tokenizer: byte-level BPE, {vocab_size} entries, from {'all' if every == 1 else f'one in {every}'} of the articles")
    sample = (article for i, article in enumerate(articles) if i < num_train and i % every == 0)
    tokenizer = train_tokenizer(sample, vocab_size)
    (folder / "bpe_tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")

    done = val_chars = 0
    bar = tqdm(total=chars, desc="tokens", unit=" chars", unit_scale=True)
    with open(folder / "train.bin", "wb") as train, open(folder / "val.bin", "wb") as val, bar:
        for tokens, lengths in _encode_all(articles, chars, tokenizer):
            for data, length in zip(tokens, lengths):
                (train if done < num_train else val).write(data)
                val_chars += 0 if done < num_train else length
                done += 1
            bar.update(sum(lengths))
        about = {"val_chars": val_chars}
        for name, file in (("train_tokens", train), ("val_tokens", val)):
            about[name] = file.tell() // token_type(tokenizer).itemsize
            file.flush()
            os.fsync(file.fileno())
    (folder / "about.json").write_text(json.dumps(about))


def _encode_all(articles: Iterable[str], chars: int, tokenizer: Tokenizer) -> Iterator[tuple[list[bytes], list[int]]]:
    """Batches of encoded articles and of their lengths in characters, in order; a long text in all cores at once."""
    if chars < POOL_FROM:
        encoder = Encoder(tokenizer)
        yield from (([encoder(article)], [len(article)]) for article in articles)
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core is parallel enough
    with multiprocessing.Pool(initializer=_start_worker, initargs=(tokenizer.to_str(),)) as pool:
        yield from pool.imap(_encode_batch, _batches(articles))


def _batches(articles: Iterable[str]) -> Iterator[list[str]]:
    """The articles in lists of about BATCH_CHARS characters."""
    batch, chars = [], 0
    for article in articles:
        batch.append(article)
        chars += len(article)
        if chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    yield batch


def _start_worker(tokenizer: str) -> None:
    """Ends with the process that started it, even if that one was killed: otherwise it would wait for work for ever."""
    global _encoder
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    _encoder = Encoder(Tokenizer.from_str(tokenizer))


def _encode_batch(batch: list[str]) -> tuple[list[bytes], list[int]]:
    return [_encoder(article) for article in batch], [len(article) for article in batch]


class TextDataset(torch.utils.data.Dataset):
    """The tokens from `first` on, cut into windows of max_seq_len that do not overlap; a short tail is left out.

    Item i is (input_ids, target_ids), two int64 tensors (max_seq_len,): every target is the token one step ahead.
    """

    def __init__(self, tokens: np.ndarray, max_seq_len: int, first: int = 0):
        self.tokens = np.asanyarray(tokens)[first:]
        self.max_seq_len = max_seq_len

    def __len__(self) -> int:
        return max(0, len(self.tokens) - 1) // self.max_seq_len

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        return self.__getitems__([index % len(self)])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The items of a whole batch, gathered in one go; what a DataLoader asks for."""
        places = np.asarray(indices)[:, None] * self.max_seq_len + np.arange(self.max_seq_len + 1)
        windows = torch.from_numpy(self.tokens[places].astype(np.int64))  # (batch, max_seq_len + 1)
        return list(zip(windows[:, :-1], windows[:, 1:]))
