"""Compares recipes at equal tokens: runs train.py for each recipe and seed.

A recipe is a dict of the hyperparameters in which it differs from the others. The loss after a number of
tokens does not depend on how busy the machine is; seconds do, so speeds are bench.py's business. A run that
is done is kept and not repeated, and one that was interrupted goes on from its last checkpoint, if it has
one. The same command started twice shares the runs out: each process trains what the other is not training.
"""

import functools
import hashlib
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from corpus.token_files import Corpus
from dataset import load_text, text_settings
from support.checkpoint import FOLDER_IN_USE, lock_folder
from support.cli import UserError, check, parse_args
from support.training_log import last_row

ROOT = Path(__file__).parent.parent
STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # 97.5% point, 2 to 10 runs
NOT_SHAPING = {"out_dir", "given"}  # what the result of a run does not depend on
# For runs of some hundred steps: the longer warm-up they need, and one validation at the end, on more windows
SHORT_RUNS = {"warmup": 0.15, "eval_windows": 512, "eval_every": 10**9, "snapshots": 0}


class Outcome(NamedTuple):
    """The results of a recipe: each seed's last validation loss (nats per token) and its run's folder."""

    losses: list[float]
    folders: Sequence[Path] = ()

    @property
    def mean(self) -> float:
        return float(np.mean(self.losses))


def half_interval(values: Sequence) -> np.ndarray:
    """Half the 95% interval of the mean of values (runs, ...), by Student's t: (...); nan for one run."""
    runs = len(values)
    if runs == 1:
        return np.full(np.shape(values[0]), np.nan)
    return STUDENT_T[min(runs, 10) - 2] * np.std(values, axis=0, ddof=1) / math.sqrt(runs)


def shown(values: list[float], form: str) -> str:
    """The mean with its 95% interval, if there are two values or more."""
    interval = f" ± {half_interval(values):{form.lstrip('+')}}" if len(values) > 1 else ""
    return f"{np.mean(values):{form}}{interval}"


def read_flags(parser: ArgumentParser, tokens: int, seeds: int, recipe: dict) -> tuple[Namespace, int, int]:
    """Parse the parser's flags and --tokens and --seeds. Returns the hyperparameters, tokens and seeds.

    tokens and seeds are the defaults. A hyperparameter that the command line does not set has its value in
    the recipe, if it is there.
    """
    parser.add_argument("--tokens", type=int, default=tokens, help=f"tokens of a run, at most [{tokens}]")
    parser.add_argument("--seeds", type=int, default=seeds, help=f"runs of each recipe [{seeds}]")
    args = parse_args(parser)
    check(args, "from 1 to 10^12", ["tokens", "seeds"], lambda value: 1 <= value <= 10**12)
    vars(args).update({name: value for name, value in recipe.items() if name not in args.given})
    tokens, seeds = args.tokens, args.seeds
    del args.tokens, args.seeds  # train.py has no such flags
    return args, tokens, seeds


@functools.cache
def load_corpus(folder: Path, **settings) -> tuple[Corpus, str]:
    """What load_text() gives for text_settings(), cached. train() copies its tokens from folder / "cache"."""
    return load_text(Namespace(out_dir=str(folder), **settings))


def compare(
    recipes: dict[str, dict], seeds: int, tokens: int, args: Namespace, folder: Path,
    may_diverge: bool = False, tokens_to_come: int = 0,
) -> dict[str, Outcome]:  # fmt: skip
    """Train every recipe with seeds 0 to seeds - 1 on about `tokens` tokens. Returns the outcomes by name.

    args: the hyperparameters that all share; a recipe may have its own "tokens". The time left includes
    tokens_to_come, of later calls. Raises UserError if a run fails; with may_diverge, divergence is loss inf.
    """
    runs = [(name, seed) for seed in range(seeds) for name in recipes]  # all recipes before any second seed
    folders = {name: [None] * seeds for name in recipes}
    began, tokens_trained, time_left = time.time(), 0, "?"
    tokens_left = sum(recipes[name].get("tokens", tokens) for name, _ in runs) + tokens_to_come
    bar_format = "{desc}: {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
    with tqdm(total=len(runs), desc="runs", bar_format=bar_format) as bar:
        while runs:
            name, seed = runs.pop(0)
            bar.set_postfix_str(f"{name}, seed {seed}, left {time_left}")
            shared = vars(args) | {"tokens": tokens} | recipes[name] | {"seed": seed}
            # All runs read the same text
            corpus, shared["dataset"] = load_corpus(folder, **text_settings(Namespace(**shared)))
            flags = {key: value for key, value in shared.items() if key not in NOT_SHAPING}
            run_tokens = flags.pop("tokens")
            flags["epochs"] = run_tokens / len(corpus.train)
            out_dir = folder / run_key(flags, corpus.key)
            try:
                folders[name][seed] = train(out_dir, flags)
            except UserError as error:
                if FOLDER_IN_USE not in str(error):
                    raise
                runs.append((name, seed))  # look again when all others are done
                time.sleep(5)
                continue
            if math.isinf(final_loss(out_dir)) and not may_diverge:
                raise UserError(f"a run failed: {finished_file(out_dir).read_text(encoding='utf-8')}")
            if finished_file(out_dir).stat().st_mtime > began:  # trained meanwhile, here or elsewhere
                tokens_trained += run_tokens
            tokens_left -= run_tokens
            if tokens_trained:
                time_left = tqdm.format_interval((time.time() - began) / tokens_trained * tokens_left)
            bar.update()
    return {name: Outcome([final_loss(out_dir) for out_dir in done], done) for name, done in folders.items()}


def run_key(flags: dict, text_key: str) -> str:
    """The name of a run's folder: it changes with the flags, the text, llm.py and train.py."""
    code = [(ROOT / name).read_text(encoding="utf-8") for name in ("llm.py", "train.py")]
    if "model" in flags:  # what is in the file counts, not where it is
        flags = flags | {"model": Path(flags["model"]).read_text(encoding="utf-8")}
    shaping = json.dumps([flags, text_key, code], sort_keys=True)
    return hashlib.blake2b(shaping.encode(), digest_size=8).hexdigest()


def finished_file(out_dir: Path) -> Path:
    """The file that marks a run as done. It is empty, or holds the error of a run that diverged."""
    return out_dir / "finished"


def train(out_dir: Path, flags: dict) -> Path:
    """Run train.py with these flags in out_dir, unless done. Raises UserError with its last line if it fails.

    A run whose loss ceases to be finite is done, too: it would end so again.
    """
    if finished_file(out_dir).exists():
        return out_dir
    out_dir.mkdir(parents=True, exist_ok=True)
    cache = out_dir.parent / "cache"  # the tokens of the text, shared by all runs
    with lock_folder(out_dir):  # only for the copy: train.py locks the folder itself
        if finished_file(out_dir).exists():  # by another process, meanwhile
            return out_dir
        if cache.exists() and not (out_dir / "cache").exists():
            shutil.copytree(cache, out_dir / "cache", ignore=shutil.ignore_patterns("making-*"))
    options = [f"--{name}={value}" for name, value in flags.items()]
    command = [sys.executable, ROOT / "train.py", "--out_dir", out_dir, *options]
    # Ctrl-C reaches train.py, too: it ends early and saves. subprocess.run alone would kill it a moment later
    handler = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, errors="replace")
    finally:
        signal.signal(signal.SIGINT, handler)
    if done.returncode in (130, -2) or "ended early" in done.stdout:
        raise KeyboardInterrupt
    if done.returncode < 0:
        raise UserError(f"a run failed: signal {-done.returncode} ended it; is there enough memory?")
    diverged = re.search(r"the [a-z ]+ at step \d+ is (nan|-?inf);.*", done.stderr)
    if done.returncode and not diverged:
        lines = done.stderr.strip().splitlines() or [f"train.py ended with code {done.returncode}"]
        raise UserError(f"a run failed: {lines[-1]}")
    finished_file(out_dir).write_text(diverged[0] if diverged else "", encoding="utf-8")
    shutil.rmtree(out_dir / "cache", ignore_errors=True)
    return out_dir


def final_loss(out_dir: Path) -> float:
    """The last validation loss of a run, nats per token; inf if it diverged."""
    return math.inf if finished_file(out_dir).stat().st_size else last_row(out_dir)["val_loss"]
