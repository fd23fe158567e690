"""Scores texts by the log-probabilities that the model gives to their tokens, many texts at once.

All measurements of a model use Scorer. share() and shares() count right answers, with 95% intervals.
"""

import functools
import itertools
import math
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from corpus.tokenizer import EOS, encode
from llm import LLM
from support.numpy_decoder import fastest_step

BATCH_TOKENS = 4096  # that the model reads at a time, padding included
WORD_END = -1  # as the last id of a sequence: any token that does not continue the word before it


class Reading(NamedTuple):
    """A part of a sequence: the model reads tokens begin to last - 1 and scores tokens first to last."""

    sequence: int  # its number
    begin: int
    first: int
    last: int

    @property
    def length(self) -> int:
        return self.last - self.begin


def plan_readings(length: int, start: int, window: int, stride: int, sequence: int) -> Iterator[Reading]:
    """The readings that score each of the tokens start to length - 1 of a sequence once.

    The model reads `window` tokens at most. Each scored token has at least window - stride tokens before it,
    or all that there are. With stride = window the readings do not overlap.
    """
    first = max(1, start)  # token 0 has nothing before it to be predicted from
    while first < length:
        begin = max(0, first - 1 - (window - stride))
        last = min(begin + window, length - 1)
        yield Reading(sequence, begin, first, last)
        first = last + 1


class Scorer:
    """Log-probabilities of tokens and sentences under a model."""

    def __init__(self, model: LLM, tokenizer: Tokenizer, dtype: torch.dtype = torch.float32):
        """The model is in evaluation mode, on its device. Matrix products are computed in dtype."""
        self.model, self.tokenizer, self.dtype = model, tokenizer, dtype
        self.device = model.embedding.weight.device
        self.eos = tokenizer.token_to_id(EOS)

    @functools.cached_property
    def word_end_ids(self) -> Tensor:
        """The ids of all tokens that do not continue a word, <EOS> included: int64 (N,)."""
        ids = range(self.tokenizer.get_vocab_size())
        word_ends = [token for token in ids if not continues_word(self.tokenizer, token)]
        return torch.tensor(word_ends, device=self.device)

    @torch.no_grad()
    def token_losses(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int], title: str, stride: int = 0
    ) -> list[np.ndarray]:
        """-log p in nats of the tokens of each sequence of ids, from starts[i] (1 or above) to its end.

        The last id may be WORD_END. A sequence longer than the model's window is read in parts, see
        plan_readings(); the stride is half a window if none is given.
        """
        window = self.model.max_seq_len
        stride = stride or max(1, window // 2)
        losses = [np.zeros(max(0, len(ids) - start)) for ids, start in zip(sequences, starts)]
        readings = []
        for i, (ids, start) in enumerate(zip(sequences, starts)):
            readings += plan_readings(len(ids), start, window, stride, i)

        readings.sort(key=lambda reading: reading.length)  # equal lengths in one batch need little padding
        total = sum(each.length for each in readings)
        # leave=None: within another bar, this one vanishes at its end
        with tqdm(total=total, desc=title, unit=" tokens", unit_scale=True, leave=None) as bar:
            while readings:
                size = max(1, BATCH_TOKENS // readings[-1].length)
                batch = readings[-size:]  # the longest first: if memory is too small, that shows at once
                del readings[-size:]
                for reading, values in zip(batch, self._losses_of_batch(sequences, batch)):
                    start = starts[reading.sequence]
                    losses[reading.sequence][reading.first - start : reading.last + 1 - start] = values
                    bar.update(reading.length)
        return losses

    def _losses_of_batch(self, sequences: Sequence[Sequence[int]], batch: list[Reading]) -> list[np.ndarray]:
        """The losses of the scored tokens of each reading."""
        longest = max(reading.length for reading in batch)
        ids = np.zeros((len(batch), longest + 1), np.int64)  # padding behind a sequence changes nothing in it
        scored = np.zeros((len(batch), longest), bool)
        for row, (i, begin, first, last) in enumerate(batch):
            ids[row, : last - begin + 1] = sequences[i][begin : last + 1]
            scored[row, first - begin - 1 : last - begin] = True
        ids, scored = torch.from_numpy(ids).to(self.device), torch.from_numpy(scored).to(self.device)

        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            # WORD_END is the last id, so nothing scored depends on what the model reads there
            x = self.model.residual(ids[:, :-1].clamp(min=0))  # (B, T, D)
            logits = self.model.logits(x[scored])  # (N, V): where nothing is scored, none are needed
        targets = ids[:, 1:][scored]  # (N,)
        if logits.dtype != torch.float64:
            logits = logits.float()
        losses = F.cross_entropy(logits, targets.clamp(min=0), reduction="none")
        ends = targets == WORD_END
        if ends.any():
            losses[ends] = -logits[ends].log_softmax(-1)[:, self.word_end_ids].logsumexp(-1)
        counts = [reading.last + 1 - reading.first for reading in batch]
        return np.split(losses.cpu().numpy(), np.cumsum(counts)[:-1])

    def sentence_losses(self, sentences: Iterable[str], title: str) -> list[np.ndarray]:
        """-log p of the tokens of each sentence, up to the <EOS> behind it, given an <EOS> before it.

        A sentence is scored with a space at its end, as it stands within an article.
        """
        sequences = [[self.eos, *encode(self.tokenizer, sentence.strip() + " ")] for sentence in sentences]
        return self.token_losses(sequences, [1] * len(sequences), title)

    def generate(
        self, prompts: list[list[int]], length: int, temperature: float,
        generator: torch.Generator | None = None,
    ) -> list[list[int]]:  # fmt: skip
        """`length` new token ids after each of the prompts, which have the same number of ids."""
        step = fastest_step(self.model, len(prompts))
        input_ids = torch.tensor(prompts, device=self.device)
        tokens = self.model.generate(input_ids, temperature, generator=generator, step=step)
        return torch.stack(list(itertools.islice(tokens, length)), dim=1).tolist()

    def greedy_continuations(self, prompts: list[list[int]], length: int) -> list[str]:
        """The likeliest next tokens of each prompt, one by one, to a sentence's end or `length` tokens."""
        texts = [""] * len(prompts)
        for size in set(map(len, prompts)):
            rows = [row for row, ids in enumerate(prompts) if len(ids) == size]
            generated = self.generate([prompts[row] for row in rows], length, temperature=0)
            for row, ids in zip(rows, generated):
                sentence = itertools.takewhile(lambda token: token != self.eos, ids)
                texts[row] = self.tokenizer.decode(list(sentence))
        return texts


def continues_word(tokenizer: Tokenizer, token: int) -> bool:
    """Whether a token, directly after a word, makes the word longer.

    It does if it begins with a letter, an accent or a digit, or with a hyphen and one of these. A hyphen
    alone does, too, since the tokenizer never joins it with what follows: Нью|-|Йорк.
    """
    text = tokenizer.decode([token])
    if text.startswith("\ufffd"):
        # Part of a character. The first bytes of two-byte letters, such as the Cyrillic ones, are C3 to DF
        # (hex), and the tokenizer writes them as the characters of these numbers.
        return "\xc3" <= tokenizer.id_to_token(token)[0] <= "\xdf"
    if text == "-":
        return True
    return unicodedata.category(text.removeprefix("-")[:1] or " ")[0] in "LMN"


# Counting right answers


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95% interval of the share right / count  (Wilson 1927, JASA 22:209-212)."""
    z, p = 1.959964, right / count
    centre = p + z * z / (2 * count)
    spread = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def even_sample(items: list, most: int) -> list:
    """The items, or every second, third, ... of them: at most `most`."""
    return items[:: max(1, math.ceil(len(items) / most))]


def share(right: Iterable[bool]) -> dict[str, int | float]:
    """The count, the share of the right ones ("accuracy") and its 95% interval; of none, the count alone."""
    right = [bool(each) for each in right]
    if not right:
        return {"count": 0}
    low, high = wilson(sum(right), len(right))
    return {"count": len(right), "accuracy": sum(right) / len(right), "low": low, "high": high}


def shares(keys: Iterable[str], right: Iterable[bool]) -> dict[str, dict]:
    """share() for each key, over the elements of `right` that have it. The keys are sorted."""
    groups = defaultdict(list)
    for key, each in zip(keys, right):
        groups[key].append(each)
    return {key: share(groups[key]) for key in sorted(groups)}
