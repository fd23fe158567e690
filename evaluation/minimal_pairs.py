"""Minimal pairs: two sentences that differ in one place, one grammatical and one not. Which is likelier?"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from corpus.sources import clean, datasets_package, is_hub_name, read_csv
from evaluation.scoring import Scorer, share, shares
from support.cli import UserError


class Pair(NamedTuple):
    grammatical: str
    ungrammatical: str
    phenomenon: str = ""
    paradigm: str = ""


def load_pairs(name: str) -> list[Pair]:
    """The minimal pairs of a CSV file, or of a data set of the hub (all its configurations and splits).

    The columns are source_sentence (grammatical), target_sentence (not), and perhaps phenomenon and paradigm;
    without the latter, the hub's configuration is the paradigm. Raises UserError if the pairs cannot be read.
    """
    path = Path(name).expanduser()
    if path.is_file():
        pairs = [pair_of(row, "", name) for row in read_csv(path)]
    elif is_hub_name(name):
        pairs = [pair_of(row, config, name) for config, row in rows_from_hub(name)]
    else:
        raise UserError(f"{name}: no such file (and a data set of the hub is called owner/name)")
    if not pairs:
        raise UserError(f"{name} holds no pairs (--pairs)")
    return pairs


def pair_of(row: dict, config: str, name: str) -> Pair:
    """A row as a pair. Raises UserError if one of its sentences is missing or empty."""
    sentences = []
    for column in ("source_sentence", "target_sentence"):
        sentence = row.get(column)
        sentence = clean(sentence).strip() if isinstance(sentence, str) else ""
        if not sentence:
            raise UserError(f"{name}: each pair must have a source_sentence and a target_sentence (--pairs)")
        sentences.append(sentence)
    return Pair(*sentences, str(row.get("phenomenon") or ""), str(row.get("paradigm") or config))


def rows_from_hub(name: str) -> Iterator[tuple[str, dict]]:
    """The rows of a data set of the hub, each with the name of its configuration."""
    datasets = datasets_package(name)
    try:
        for config in datasets.get_dataset_config_names(name):
            for split in datasets.load_dataset(name, config).values():
                for row in split:
                    yield config, row
    except Exception as error:  # no hub, no such data set, a broken one
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{name}: the hub does not give these pairs: {reason}") from error


def evaluate_pairs(scorer: Scorer, pairs: list[Pair]) -> dict:
    """The share of pairs whose grammatical sentence scores higher, over all, by phenomenon and by paradigm.

    Two scores are in use. The first is the sentence's log-probability, the sum over its tokens (as in BLiMP,
    Warstadt et al. 2020, arXiv:1912.00582). The second, "per_token", is the mean over its tokens, which does
    not prefer the sentence with fewer tokens (as in RuBLiMP's own scorer, arXiv:2406.19232; here <EOS> is one
    of the tokens). Ties count as wrong.
    """
    sentences = [sentence for pair in pairs for sentence in (pair.grammatical, pair.ungrammatical)]
    losses = scorer.sentence_losses(sentences, "minimal pairs")
    sums = np.array([each.sum() for each in losses]).reshape(-1, 2)  # a row for each pair
    means = np.array([each.mean() for each in losses]).reshape(-1, 2)
    by_sum, by_mean = sums[:, 0] < sums[:, 1], means[:, 0] < means[:, 1]
    return accuracies(pairs, by_sum) | {"per_token": accuracies(pairs, by_mean)}


def accuracies(pairs: list[Pair], right: np.ndarray) -> dict[str, dict]:
    """The share of right pairs, over all, by phenomenon and by paradigm."""
    return {
        "overall": share(right),
        "by_phenomenon": shares([pair.phenomenon for pair in pairs], right),
        "by_paradigm": shares([pair.paradigm for pair in pairs], right),
    }
