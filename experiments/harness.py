"""Compares recipes at equal tokens: runs train.py for each recipe and seed, and tabulates the loss with its interval.

A recipe is a dict of hyperparameters that differ from params.py. The loss after a number of tokens does not depend on how busy
the machine is; seconds do, so speeds are bench.py's business. A run that is done is kept and not repeated, and one that was
interrupted goes on from its last checkpoint, if it has one.
"""

import csv
import hashlib
import json
import math
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from dataset import load_text, text_settings
from evaluation.report import print_table
from support.cli import UserError

ROOT = Path(__file__).parent.parent
STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # its 97.5% point, for 2 to 10 runs
NOT_SHAPING = {"out_dir", "given"}  # what the result of a run does not depend on


class Outcome(NamedTuple):
    """Of one recipe, over its seeds: the last validation loss, nats per token."""

    losses: list[float]

    @property
    def mean(self) -> float:
        return float(np.mean(self.losses))

    @property
    def half_interval(self) -> float:
        """Half of the 95% interval of the mean. Not a number for a single seed."""
        return float(half_interval(np.array(self.losses))) if len(self.losses) > 1 else math.nan


def half_interval(values: np.ndarray) -> np.ndarray:
    """Half of the 95% interval of the mean of values (runs, ...) over two runs or more, by Student's t: (...)."""
    runs = len(values)
    return STUDENT_T[min(runs, 10) - 2] * values.std(axis=0, ddof=1) / math.sqrt(runs)


def compare(recipes: dict[str, dict], seeds: int, tokens: int, args: Namespace, folder: Path) -> dict[str, Outcome]:
    """Train every recipe with seeds 0 to seeds - 1 on about `tokens` tokens. Returns the outcome of each, by its name.

    args are the hyperparameters that all share. Raises UserError if a run fails.
    """
    runs = [(name, seed) for seed in range(seeds) for name in recipes]  # all recipes once, before any has its second seed
    losses = {name: [] for name in recipes}
    corpora = {}  # by the settings of the text
    began, num_trained = time.monotonic(), 0
    with tqdm(total=len(runs), desc="runs", bar_format="{desc}: {n_fmt}/{total_fmt} [{elapsed}{postfix}]") as bar:
        for number, (name, seed) in enumerate(runs):
            bar.set_postfix_str(f"{name}, seed {seed}")
            shared = vars(args) | recipes[name] | {"seed": seed}
            text_args = Namespace(**shared | {"out_dir": str(folder)})
            settings = tuple(text_settings(text_args).values())
            if settings not in corpora:
                corpora[settings], _ = load_text(text_args)
            corpus = corpora[settings]
            flags = {key: value for key, value in shared.items() if key not in NOT_SHAPING}
            flags["epochs"] = flags["sample_epochs"] = tokens / len(corpus.train)
            out_dir = folder / run_key(flags, corpus.key)
            num_trained += not is_finished(out_dir)
            losses[name].append(final_loss(train(out_dir, flags)))
            seconds_per_run = (time.monotonic() - began) / max(1, num_trained)
            bar.set_postfix_str(f"left {tqdm.format_interval(seconds_per_run * (len(runs) - number - 1))}", refresh=False)
            bar.update()
    return {name: Outcome(values) for name, values in losses.items()}


def run_key(flags: dict, text_key: str) -> str:
    """The name of a run's folder: it changes with everything that the run's result depends on."""
    code = [(ROOT / name).read_text(encoding="utf-8") for name in ("llm.py", "train.py")]
    return hashlib.blake2b(json.dumps([flags, text_key, code], sort_keys=True).encode(), digest_size=8).hexdigest()


def is_finished(out_dir: Path) -> bool:
    return (out_dir / "finished").exists()


def train(out_dir: Path, flags: dict) -> Path:
    """Run train.py with these flags in out_dir, unless that was done. Raises UserError with its last line if it fails."""
    if is_finished(out_dir):
        return out_dir
    out_dir.mkdir(parents=True, exist_ok=True)
    cache = out_dir.parent / "cache"  # the tokens of the text, shared by all runs
    if cache.exists() and not (out_dir / "cache").exists():
        shutil.copytree(cache, out_dir / "cache")
    command = [sys.executable, ROOT / "train.py", "--out_dir", out_dir, *(f"--{name}={value}" for name, value in flags.items())]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, errors="replace")
    shutil.rmtree(out_dir / "cache", ignore_errors=True)
    if done.returncode in (130, -2) or "ended early" in done.stdout:
        raise KeyboardInterrupt
    if done.returncode:
        raise UserError(f"a run failed: {done.stderr.strip().splitlines()[-1]}")
    (out_dir / "finished").touch()
    return out_dir


def final_loss(out_dir: Path) -> float:
    """The validation loss in the last row of a run's log, nats per token."""
    with open(out_dir / "training_log.csv", encoding="utf-8") as file:
        return float(list(csv.DictReader(file))[-1]["val_loss"])


def print_outcomes(title: str, outcomes: dict[str, Outcome]) -> None:
    """A table, the first recipe being what the others are compared with."""
    base = next(iter(outcomes.values()))
    rows = []
    for name, outcome in outcomes.items():
        differences = Outcome([a - b for a, b in zip(outcome.losses, base.losses)])  # seed by seed: less noise
        shown = "" if outcome is base else f"{differences.mean:+.3f} ± {differences.half_interval:.3f}"
        rows.append((name, f"{outcome.mean:.3f} ± {outcome.half_interval:.3f}", shown, len(outcome.losses)))
    print_table(title, ("", "nats a token", "difference", "seeds"), rows)
