"""Activation patching: which heads, MLPs and positions carry the case from the deciding word to the ending.

The model reads the corrupt sentence of a pair while the output of one part is replaced by what the part
computes on the clean sentence (Meng et al. 2022, arXiv:2202.05262; Wang et al. 2022, arXiv:2211.00593). The
score is the logit of the clean ending minus that of the corrupt one. The recovered share says how far the
part moves the score from corrupt (0) to clean (1).

Forward hooks do all of this to the model of llm.py itself.

Shapes in the comments: B pairs of T tokens, padded behind; N pairs in all; D = d_model, H heads, L layers.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from interpretability.case_pairs import Pair
from llm import LLM

BATCH_TOKENS = 2048  # about, padding included
NUM_RESAMPLES = 2000


class Part(NamedTuple):
    """A part of the model whose output can be read or changed. Layers and heads are counted from 0."""

    kind: str  # head, mlp or stream
    layer: int  # of a stream: how many layers come before it; 0 is the embedding
    head: int = 0

    def __str__(self) -> str:
        """The name of a head or an MLP as people count, from 1."""
        return (
            f"head {self.layer + 1}.{self.head + 1}"
            if self.kind == "head"
            else f"{self.kind.upper()} {self.layer + 1}"
        )


def heads_and_mlps(model: LLM) -> list[Part]:
    """All heads, layer by layer, then all MLPs."""
    heads = [
        Part("head", layer, head) for layer in range(model.num_layers) for head in range(model.num_heads)
    ]
    return heads + [Part("mlp", layer) for layer in range(model.num_layers)]


def streams(model: LLM) -> list[Part]:
    """The residual stream before the first layer and after each: L + 1 parts."""
    return [Part("stream", layer) for layer in range(model.num_layers + 1)]


# Hooks


@contextlib.contextmanager
def changed(model: LLM, part: Part, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the block, the model computes with change(output) instead of the output of a part.

    The output is (B, T, D). Of a head it is the mixed values (B, T, d) that o_proj reads: what a head adds to
    the stream is a linear map of them.
    """

    def change_columns(module, inputs):
        size = model.d_model // model.num_heads
        columns = slice(part.head * size, (part.head + 1) * size)
        mixed = inputs[0].clone()  # (B, T, D), the heads side by side
        mixed[..., columns] = change(mixed[..., columns])
        return (mixed,)

    def change_output(module, inputs, output):
        return change(output)

    if part.kind == "head":
        handle = model.blocks[part.layer].attention.o_proj.register_forward_pre_hook(change_columns)
    elif part.kind == "mlp":
        handle = model.blocks[part.layer].mlp.register_forward_hook(change_output)
    else:
        module = model.embedding if part.layer == 0 else model.blocks[part.layer - 1]
        handle = module.register_forward_hook(change_output)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def record(model: LLM, input_ids: Tensor, parts: Sequence[Part]) -> dict[Part, Tensor]:
    """The outputs of parts, see changed(), when the model reads input_ids (B, T)."""
    recorded = {}

    def keep(part: Part) -> Callable[[Tensor], Tensor]:
        return lambda output: recorded.setdefault(part, output.clone())

    with contextlib.ExitStack() as hooks:
        for part in parts:
            hooks.enter_context(changed(model, part, keep(part)))
        model.residual(input_ids)
    return recorded


# Pairs as tensors


class Batch(NamedTuple):
    """Pairs of about equal length."""

    pairs: list[Pair]
    clean_ids: Tensor  # (B, T)
    corrupt_ids: Tensor  # (B, T)
    last: Tensor  # (B,), the position from which the ending is predicted
    clean_token: Tensor  # (B,)
    corrupt_token: Tensor  # (B,)


def make_batch(pairs: Sequence[Pair]) -> Batch:
    return Batch(
        list(pairs),
        padded([pair.clean for pair in pairs]),
        padded([pair.corrupt for pair in pairs]),
        torch.tensor([len(pair.clean) - 1 for pair in pairs]),
        torch.tensor([pair.clean_token for pair in pairs]),
        torch.tensor([pair.corrupt_token for pair in pairs]),
    )


def padded(sequences: list[list[int]]) -> Tensor:
    """Token ids of B sequences as one tensor (B, T), filled up with 0, which changes nothing before it."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in sequences], batch_first=True)


def in_batches(items: list, lengths: list[int], description: str) -> Iterator[list]:
    """The items in batches of about BATCH_TOKENS, in their order, with a progress bar if it has a name.

    Sorted by length, they need little padding, which counts as tokens.
    """
    batch, longest = [], 0
    bar = tqdm(items, description, disable=not description, dynamic_ncols=True, leave=False)
    for item, length in zip(bar, lengths):
        if batch and (len(batch) + 1) * max(longest, length) > BATCH_TOKENS:
            yield batch
            batch, longest = [], 0
        batch.append(item)
        longest = max(longest, length)
    if batch:
        yield batch


def pair_batches(pairs: list[Pair], description: str = "") -> Iterator[Batch]:
    """The pairs in batches, see in_batches()."""
    for each in in_batches(pairs, [len(pair.clean) for pair in pairs], description):
        yield make_batch(each)


def at_last(values: Tensor, batch: Batch) -> Tensor:
    """values (B, T, ...) at the last position of each pair: (B, ...)."""
    return values[torch.arange(len(values)), batch.last]


@torch.no_grad()
def scores(model: LLM, input_ids: Tensor, batch: Batch) -> Tensor:
    """The logit of the clean ending minus that of the corrupt one (B,), after input_ids (B, T)."""
    logits = model.logits(at_last(model.residual(input_ids), batch))  # (B, V)
    rows = torch.arange(len(logits))
    return logits[rows, batch.clean_token] - logits[rows, batch.corrupt_token]


# Patching


@torch.no_grad()
def patched_scores(
    model: LLM, batch: Batch, parts: Sequence[Part], clean: dict[Part, Tensor], where: Tensor | None = None
) -> Tensor:
    """The scores (B,) on the corrupt sentences while parts have their clean outputs.

    They have them at all positions, or where `where` (B, T) is true.
    """

    def put(part: Part) -> Callable[[Tensor], Tensor]:
        if where is None:
            return lambda output: clean[part]
        return lambda output: torch.where(where[..., None], clean[part], output)

    with contextlib.ExitStack() as hooks:
        for part in parts:
            hooks.enter_context(changed(model, part, put(part)))
        return scores(model, batch.corrupt_ids, batch)


class Patched(NamedTuple):
    """Scores with and without patches; the names are those of the patches."""

    clean: np.ndarray  # (N,)
    corrupt: np.ndarray  # (N,)
    patched: dict[str, np.ndarray]  # name -> (N,)

    def difference(self, chosen: np.ndarray | slice = slice(None)) -> dict[str, float]:
        """The mean of clean minus corrupt score, with its interval: see ratio()."""
        whole = (self.clean - self.corrupt)[chosen]
        return ratio(whole, np.ones(len(whole)))

    def recovered(self, chosen: np.ndarray | slice = slice(None)) -> dict[str, dict]:
        """The recovered share of each patch, over all pairs or the chosen ones: name -> ratio()."""
        whole = (self.clean - self.corrupt)[chosen]
        return {name: ratio((values - self.corrupt)[chosen], whole) for name, values in self.patched.items()}


def patch(model: LLM, pairs: list[Pair], groups: dict[str, list[Part]], description: str) -> Patched:
    """Patch each group of parts, at all positions, in all pairs."""

    def patches(batch: Batch, clean: dict[Part, Tensor]) -> dict[str, Tensor]:
        return {name: patched_scores(model, batch, parts, clean) for name, parts in groups.items()}

    parts = list({part for group in groups.values() for part in group})
    return _over_batches(model, pairs, parts, patches, description)


def patch_stream(
    model: LLM, pairs: list[Pair], places: Callable[[Pair], dict[str, Sequence[int]]], description: str
) -> Patched:
    """Patch the residual stream at each layer and each place of all pairs.

    places(pair) returns positions by the name of a place, the same names for all pairs. The patches are
    called "LAYER PLACE".
    """

    def patches(batch: Batch, clean: dict[Part, Tensor]) -> dict[str, Tensor]:
        found, places_of_pairs = {}, [places(pair) for pair in batch.pairs]
        for place in places_of_pairs[0]:
            where = torch.zeros_like(batch.clean_ids, dtype=torch.bool)  # (B, T)
            for row, each in enumerate(places_of_pairs):
                where[row, list(each[place])] = True
            for part in streams(model):
                found[f"{part.layer} {place}"] = patched_scores(model, batch, [part], clean, where)
        return found

    return _over_batches(model, pairs, streams(model), patches, description)


def _over_batches(
    model: LLM, pairs: list[Pair], parts: list[Part],
    patches: Callable[[Batch, dict[Part, Tensor]], dict[str, Tensor]], description: str,
) -> Patched:  # fmt: skip
    """The scores of all batches. patches(batch, recorded) gets the parts as recorded on clean sentences."""
    collected = []
    for batch in pair_batches(pairs, description):
        found = patches(batch, record(model, batch.clean_ids, parts))
        ends = {
            "clean": scores(model, batch.clean_ids, batch),
            "corrupt": scores(model, batch.corrupt_ids, batch),
        }
        collected.append(ends | found)
    joined = {name: torch.cat([each[name] for each in collected]).double().numpy() for name in collected[0]}
    return Patched(joined.pop("clean"), joined.pop("corrupt"), joined)


def roles(pair: Pair) -> dict[str, Sequence[int]]:
    """Where the streams of a pair can differ: at the deciding word, the tokens behind it, the last token."""
    deciding, last = pair.deciding_positions(), len(pair.clean) - 1
    between = [i for i in range(pair.decider, last) if i not in deciding]
    return {"deciding word": deciding, "between": between, "last token": [last]}


# Intervals


def ratio(parts: np.ndarray, wholes: np.ndarray) -> dict[str, float]:
    """sum(parts) / sum(wholes), both (N,), with its 95% interval: {"share", "low", "high"}.

    The interval is that of the bootstrap over the N items (Efron 1979): the 2.5% and 97.5% quantiles of the
    ratio in samples drawn with replacement. A mean of single ratios would be ruled by pairs whose whole is
    nearly 0. Where the sum of the wholes may be 0 itself, the ratio means nothing.
    """
    N = len(parts)
    chosen = np.random.default_rng(0).integers(N, size=(NUM_RESAMPLES, N))
    resampled = parts[chosen].sum(axis=1) / wholes[chosen].sum(axis=1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {"share": float(parts.sum() / wholes.sum()), "low": float(low), "high": float(high)}
