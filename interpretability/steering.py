"""Steering: a vector is added to the residual stream, and the model writes the endings of another case.

The vector is the mean difference between the streams of two cases at the token before the ending (Rimsky et
al. 2023, arXiv:2312.06681). It is added after one layer, at every position. A random vector of the same
length shows what any disturbance does, and the loss on other text what it costs.

Shapes in the comments: N pairs, B windows of T tokens, D = d_model.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from evaluation.scoring import even_sample
from interpretability.case_pairs import Pair
from interpretability.measurements import window_losses
from interpretability.patching import Part, at_last, changed, pair_batches, ratio, record, scores, streams
from llm import LLM

STRENGTHS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)  # times the mean difference of the two cases
LEAST_PAIRS = 15  # of two cases, to take the difference from and to turn
MOST_PAIRS = 60  # to turn, of two cases; of more an even sample


def both_ways(pairs: Sequence[Pair]) -> list[Pair]:
    """Each pair, and the same pair with clean and corrupt exchanged."""
    exchanged = [
        pair._replace(
            clean=pair.corrupt,
            corrupt=pair.clean,
            clean_token=pair.corrupt_token,
            corrupt_token=pair.clean_token,
            clean_case=pair.corrupt_case,
            corrupt_case=pair.clean_case,
        )
        for pair in pairs
    ]
    return [*pairs, *exchanged]


def halves(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """The pairs in two halves that have no lemma in common."""
    lemmas = sorted({pair.lemma for pair in pairs})
    first = set(np.random.default_rng(0).permutation(lemmas)[: len(lemmas) // 2].tolist())
    return [pair for pair in pairs if pair.lemma in first], [
        pair for pair in pairs if pair.lemma not in first
    ]


def mean_difference(model: LLM, pairs: list[Pair], part: Part) -> Tensor:
    """The stream of the corrupt case minus that of the clean one at the last token, the mean: (D,)."""
    differences = []
    for batch in pair_batches(pairs):
        clean, corrupt = (record(model, ids, [part])[part] for ids in (batch.clean_ids, batch.corrupt_ids))
        differences.append(at_last(corrupt - clean, batch))
    return torch.cat(differences).mean(0)


def random_vector(like: Tensor, seed: int) -> Tensor:
    """A random direction (D,) as long as another vector."""
    vector = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=like.dtype)
    return vector * like.norm() / vector.norm()


def right_ones(model: LLM, pairs: list[Pair]) -> list[Pair]:
    """The pairs whose clean ending the model prefers, at most MOST_PAIRS of them."""
    kept = []
    for batch in pair_batches(pairs):
        right = scores(model, batch.clean_ids, batch) > 0
        kept += [pair for pair, is_right in zip(batch.pairs, right) if is_right]
    return even_sample(kept, MOST_PAIRS)


def choose_pairs(model: LLM, pairs: list[Pair]) -> list[tuple[list[Pair], list[Pair]]]:
    """For every two cases with enough pairs: those for the difference, and those to turn, of other lemmas."""
    train, test = halves(both_ways(pairs))
    chosen = []
    for cases in sorted({(pair.clean_case, pair.corrupt_case) for pair in train}):
        known = [pair for pair in train if (pair.clean_case, pair.corrupt_case) == cases]
        asked = [pair for pair in test if (pair.clean_case, pair.corrupt_case) == cases]
        asked = right_ones(model, asked)
        if min(len(known), len(asked)) >= LEAST_PAIRS:
            chosen.append((known, asked))
    return chosen


def steer(model: LLM, pairs: list[Pair], windows: Tensor) -> dict[str, list[dict]]:
    """Turn endings from one case to another, after each layer, for every two cases with enough pairs.

    The vectors come from other lemmas than the endings. Returns layer -> rows, one a strength: {"strength",
    "steered": ratio() of endings turned, "steered_cost": nats a token on windows (B, T + 1), the mean over
    the vectors, and the same of random vectors: "random", "random_cost"}. Nothing if there are too few pairs.
    """
    chosen = choose_pairs(model, pairs)
    if not chosen:
        return {}
    base = window_losses(model, windows).mean().item()
    return {str(part.layer): steer_after(model, chosen, windows, base, part) for part in streams(model)[1:]}


def steer_after(
    model: LLM, chosen: list[tuple[list[Pair], list[Pair]]], windows: Tensor, base: float, part: Part
) -> list[dict]:
    """The rows of steer() for the stream after one layer. base: the loss on the windows without steering."""
    jobs = []  # the pairs to turn, and the vectors to turn them with
    for known, asked in chosen:
        vector = mean_difference(model, known, part)
        jobs.append((asked, {"steered": vector, "random": random_vector(vector, len(jobs))}))

    rows = []
    for strength in tqdm(STRENGTHS, f"steering after layer {part.layer}", dynamic_ncols=True, leave=False):
        row = {"strength": strength}
        for name in ("steered", "random"):
            turned, costs = [], []
            for asked, vectors in jobs:
                with changed(model, part, lambda output: output + strength * vectors[name]):  # every position
                    turned += [scores(model, batch.clean_ids, batch) < 0 for batch in pair_batches(asked)]
                    costs.append(window_losses(model, windows).mean().item() - base)
            turned = torch.cat(turned).numpy()
            row[name] = ratio(turned, np.ones(len(turned)))
            row[f"{name}_cost"] = float(np.mean(costs))
        rows.append(row)
    return rows
