"""Which training recipe is best at equal tokens?  python -m experiments.recipes --tokens 300000 --seeds 3

Each recipe changes one hyperparameter, or two that belong together. The table shows the validation loss, its
95% interval, and the difference to params.py seed by seed: one whose interval contains 0 shows nothing.
"""

import math
from pathlib import Path

from evaluation.report import print_table
from experiments.harness import Outcome, compare, read_flags, shown
from support.cli import UserError, make_parser, run_script

RECIPES = {  # a value, or a function of the arguments
    "params.py": {},
    "batches of half the size": {"batch_size": lambda args: max(1, args.batch_size // 2)},
    "batches of twice the size": {"batch_size": lambda args: 2 * args.batch_size},
    "twice the batch, beta2 squared, rate x 1.4": {  # Adam forgets after as many tokens, arXiv:2507.07101
        "batch_size": lambda args: 2 * args.batch_size,
        "adam_beta2": lambda args: args.adam_beta2**2,
        "learning_rate": lambda args: 1.4 * args.learning_rate,
    },
    "rate x 1.5": {"learning_rate": lambda args: 1.5 * args.learning_rate},
    "rate / 1.5": {"learning_rate": lambda args: args.learning_rate / 1.5},
    "beta1 0.9": {"adam_beta1": 0.9},
    "beta2 0.95": {"adam_beta2": 0.95},
    "the embedding's rate as the others'": {"embedding_rate": 1.0},  # for any width, arXiv:2203.03466
    "no weight decay": {"weight_decay": 0.0},
    "twice the weight decay": {"weight_decay": lambda args: 2 * args.weight_decay},
    "warm-up 0.15": {"warmup": 0.15},
    "decay 0.4": {"decay": 0.4},
}


def print_outcomes(title: str, outcomes: dict[str, Outcome]) -> None:
    """A table, the first recipe being what the others are compared with."""
    base = next(iter(outcomes.values()))
    rows = []
    for name, outcome in outcomes.items():
        if math.isinf(outcome.mean):
            rows.append((name, "diverged", "", len(outcome.losses)))
            continue
        differences = [a - b for a, b in zip(outcome.losses, base.losses)]  # seed by seed: less noise
        difference = "" if outcome is base else shown(differences, "+.3f")
        rows.append((name, shown(outcome.losses, ".3f"), difference, len(outcome.losses)))
    print_table(title, ("", "nats a token", "difference", "seeds"), rows)


def main() -> None:
    args, tokens, seeds = read_flags(make_parser(__doc__), 300_000, 3, {"snapshots": 0})
    recipes = {}
    for name, changes in RECIPES.items():
        recipes[name] = {key: value(args) if callable(value) else value for key, value in changes.items()}
    outcomes = compare(recipes, seeds, tokens, args, Path(args.out_dir) / "recipes", may_diverge=True)
    name, base = next(iter(outcomes.items()))
    if math.isinf(base.mean):
        raise UserError(f"{name} diverges: try a smaller --learning_rate")
    print_outcomes(f"Validation loss after {tokens:,} tokens", outcomes)


if __name__ == "__main__":
    run_script(main)
