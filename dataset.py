"""The text on its way to the model:  articles -> sentences -> tokens -> windows.

load_text() goes as far as the tokens; each step has its own file in corpus/. TextDataset cuts the windows.
"""

import math
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import Dataset, Subset

from corpus.sources import BUNDLED, is_hub_name, load_articles_or_bundled
from corpus.token_files import Corpus, open_cache, prepare_corpus
from corpus.tokenizer import encode, tokenizer_key
from llm import LLM
from support.cli import UserError, check_hyperparameters
from support.own_process import in_own_process

__all__ = ["TextDataset", "encode", "load_text"]  # encode: text -> token ids, with <EOS> after every sentence


def load_text(args: Namespace) -> tuple[Corpus, str]:
    """Turn the text that args.dataset names into tokens. Returns them, and the name of the text.

    If the hub cannot be reached, the bundled encyclopedia stands in for the default data set, and the name is
    its name. Raises UserError if the text cannot be read or is too short.
    """
    print(f"text: {args.dataset}", flush=True)
    if is_hub_name(args.dataset):  # `datasets` takes 100 MiB, and keeps them as long as its process
        folder, name = in_own_process(prepare_text, args)
    else:
        folder, name = prepare_text(args)
    corpus = open_cache(folder)
    print(
        f"  {len(corpus.train):,} tokens to train on, {len(corpus.val):,} held out, "
        f"{corpus.chars_per_token:.2f} characters each"
    )
    return corpus, name


def prepare_text(args: Namespace) -> tuple[Path, str]:
    """Write the tokens of the text to the cache. Returns their folder, and the name of the text."""
    articles, name = load_articles_or_bundled(args.dataset, args.text_column)
    cache = Path(args.out_dir) / "cache"
    corpus = prepare_corpus(articles, cache, args.vocab_size, args.val_fraction, args.tokenizer_chars)
    return cache / corpus.key, name


def check_text_length(corpus: Corpus, args: Namespace, world_size: int) -> None:
    """Raise UserError if the text is too short for one window, or for a batch that the processes share."""
    if len(corpus.train) <= args.max_seq_len:
        raise UserError(
            f"the text has {len(corpus.train)} tokens to train on, too few for one window of max_seq_len="
            f"{args.max_seq_len}: use more text or a smaller --max_seq_len"
        )
    if world_size > 1 and len(TextDataset(corpus.train, args.max_seq_len)) <= args.batch_size:
        share = f"{world_size} processes to share batches of --batch_size {args.batch_size}"
        raise UserError(f"the text is too short for {share}")


def text_settings(args: Namespace) -> dict[str, str | int | float]:
    """The hyperparameters that decide which tokens are trained on and held out: saved with the weights."""
    names = ("dataset", "text_column", "vocab_size", "val_fraction", "tokenizer_chars")
    return {name: getattr(args, name) for name in names}


def load_text_of(model: LLM, tokenizer: Tokenizer, args: Namespace) -> tuple[Corpus, str]:
    """The text that a model was trained on, for scripts that measure it on the articles it has not seen.

    Takes the settings saved with the weights, except those that the command line gives. Raises UserError if
    the result is another text, or another split of it: its held-out articles may be among those trained on.
    """
    settings = model.trained_on.get("settings", {})
    for name in text_settings(args):
        if name in settings and name not in args.given:
            setattr(args, name, settings[name])
    check_hyperparameters(args)  # what a damaged file says
    corpus, name = load_text(args)
    same_text = model.trained_on.get("text", corpus.key) == corpus.key  # older weights do not name their text
    if not same_text or tokenizer_key(corpus.tokenizer) != tokenizer_key(tokenizer):
        if name == BUNDLED and args.dataset != BUNDLED:  # it stands in for the data set
            raise UserError(
                f"the model in {args.out_dir} was trained on {args.dataset}, and the Hugging Face hub cannot "
                "be reached: try again when it can"
            )
        raise UserError(
            f"the model in {args.out_dir} was not trained on this text, or not on this part of it: leave out "
            "the flags of the text, or give those that train.py had (--dataset, --text_column, "
            "--val_fraction, --vocab_size)"
        )
    return corpus, name


class TextDataset(Dataset):
    """A sequence of tokens, from token `first` on, cut into windows of max_seq_len. A short tail is left out.

    Item i is (input_ids, target_ids), two int64 tensors (max_seq_len,). Windows do not overlap, and each
    target is the token one step ahead of its input:

        tokens      5 8 2 9 4 7 1      max_seq_len 3
        input_ids   5 8 2 | 9 4 7
        target_ids  8 2 9 | 4 7 1
    """

    def __init__(self, tokens: np.ndarray, max_seq_len: int, first: int = 0):
        self.tokens = np.asanyarray(tokens)[first:]
        self.max_seq_len = max_seq_len

    def __len__(self) -> int:
        return max(0, len(self.tokens) - 1) // self.max_seq_len  # the last target needs one token more

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        begin = index * self.max_seq_len
        window = torch.from_numpy(self.tokens[begin : begin + self.max_seq_len + 1].astype(np.int64))
        return window[:-1], window[1:]


def validation_windows(tokens: np.ndarray, max_seq_len: int, most: int) -> Subset:
    """The windows that a validation loss is measured on: all, or an even sample of at most `most`."""
    windows = TextDataset(tokens, min(max_seq_len, len(tokens) - 1))
    return Subset(windows, range(0, len(windows), math.ceil(len(windows) / most)))
