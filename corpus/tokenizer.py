"""The tokenizer: byte-level BPE, trained on the text, with an <EOS> token after every sentence.

encode() turns text into token ids; token_files.Encoder does the same for millions of characters.
"""

import hashlib
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from corpus.sentences import split_sentences
from corpus.sources import clean
from support.cli import UserError

EOS = "<EOS>"  # ends every sentence
# Cuts "<EOS>" in a text (five characters that end no sentence) where the pattern below cuts it, too
EOS_IN_TEXT = re.compile(r"(?<=<)(?=EOS>)")
LONGEST_PIECE = 5000  # characters; longer sentences are cut before the tokenizer trains on them

# BPE works inside these pieces, so no token crosses a cut: a word with the space before it, a number,
# punctuation (with the white space that ends a sentence), other white space. Encoder.CUT relies on it.
PRETOKENIZER_PATTERN = r" ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+(?:\s+\z)?|\s+(?!\S)|\s+"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909) with vocab_size entries.

    The entries are <EOS>, the 256 bytes, and merges, each the most frequent pair at the time. Since every
    text is a sequence of bytes, no text is unknown.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZER_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stdout.isatty(),  # elsewhere its bars are empty lines
    )  # fmt: skip
    tokenizer.train_from_iterator(map(_training_pieces, texts), trainer)
    return tokenizer


def _training_pieces(text: str) -> list[str]:
    """The sentences of a text, cut at LONGEST_PIECE: a word of millions of letters would train for hours."""
    pieces = []
    for sentence in split_sentences(text):
        pieces += [sentence[i : i + LONGEST_PIECE] for i in range(0, len(sentence), LONGEST_PIECE)]
    return pieces


def load_tokenizer(path: Path) -> Tokenizer:
    """Load the tokenizer that train.py saved at path.

    Raises UserError if the file is missing, is damaged, or is not one of ours.
    """
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        tokenizer.encode_special_tokens = True  # for those who call it directly; encode() does not need it
        vocabulary = tokenizer.get_vocab()
        probe = "Проба: 1 ё 🙂."
        ids = encode(tokenizer, probe)
        ids_are_complete = sorted(vocabulary.values()) == list(range(len(vocabulary)))
        has_eos_and_bytes = vocabulary.keys() >= {EOS, *pre_tokenizers.ByteLevel.alphabet()}
        if not ids_are_complete or not has_eos_and_bytes or tokenizer.decode(ids) != probe:
            raise UserError(f"{path} is damaged, or train.py did not make it")
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: train a model first with  python train.py") from error
    except (OSError, UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # an Exception of tokenizers, or its PanicException, which is none
        raise UserError(f"{path} is not a tokenizer: {error}") from error
    return tokenizer


def tokenizer_key(tokenizer: Tokenizer) -> str:
    """A hash of the vocabulary in the order of its ids. With the same key, every id has the same meaning."""
    vocabulary = tokenizer.get_vocab()
    in_order = "\n".join(sorted(vocabulary, key=vocabulary.get))
    return hashlib.blake2b(in_order.encode(), digest_size=8).hexdigest()


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The token ids of a text, with <EOS> after every sentence. Decoded without <EOS>, they give the text."""
    eos = tokenizer.token_to_id(EOS)
    ids = []
    for sentence in split_sentences(text):
        for encoding in tokenizer.encode_batch_fast(EOS_IN_TEXT.split(sentence)):
            ids += encoding.ids
        ids.append(eos)
    return ids


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> tuple[str, list[int]]:
    """The prompt as shown, and its token ids: <EOS> first, since every sentence in training follows one.

    It is cleaned as the training text is. White space at the end is dropped, since the model predicts it.
    A finished last sentence is followed by <EOS>.
    """
    prompt = clean(prompt).rstrip()
    finished = bool(prompt) and split_sentences(prompt + " А")[-1] == "А"  # the next word begins a sentence
    if finished:
        prompt += " "
    ids = encode(tokenizer, prompt)
    if not finished:
        ids = ids[:-1]  # the sentence goes on, so it has no <EOS> yet
    return prompt, [tokenizer.token_to_id(EOS), *ids]


def decode_sentences(tokenizer: Tokenizer, ids: Iterable[int]) -> list[str]:
    """The sentences of token ids, as text, cut after each <EOS>. At least one, perhaps empty."""
    eos, sentences = tokenizer.token_to_id(EOS), [[]]
    for token in ids:
        sentences[-1].append(token)
        if token == eos:
            sentences.append([])
    return tokenizer.decode_batch(sentences if sentences[-1] or len(sentences) == 1 else sentences[:-1])
