"""A scaling law from your own computer:  python -m experiments.scaling

Trains models of four sizes on three numbers of tokens, in less than half an hour on two cores, and fits the
law of Hoffmann et al. 2022 (arXiv:2203.15556, section 3.3) to their losses. Prints which size is best for a
given time, and predicts the loss of a full pass with the model of params.py, for train.py to confirm or
refute. Writes scaling.json and scaling.png to out_dir.
"""

import itertools
import math
import shlex
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch

from dataset import text_settings
from evaluation.report import print_table
from experiments.harness import SHORT_RUNS, compare, load_corpus, read_flags
from experiments.scaling_law import CONSTANTS, best_split, bounds, draw, draw_laws, fit, loss_of
from llm import LLM
from support.cli import UserError, make_parser, run_script, write_json
from support.training_log import last_row

WIDTHS = (32, 64, 128, 192)  # d_model of the runs
SHARES = (1 / 16, 1 / 4, 1)  # of --tokens: what the runs of each width train on
MINUTES = (1, 5, 20, 60)  # of training, to find the best size for
TABLES = {
    "runs": "Loss of the runs, nats a token",
    "law": "The law: loss = E + A / parameters^a + B / tokens^b",
    "best": "The best model size for a training time "
            "(d_model is the nearest; the loss is that of the exact size)",
    "prediction": "Prediction for a full pass over the text with the model of params.py",
}
RECIPE = SHORT_RUNS | {"compile": "off"}  # of all runs: compiling would speed up only the longest


def heads(d_model: int) -> int:
    """The fewest heads whose size is even and at most 64."""
    return next(h for h in itertools.count(math.ceil(d_model / 64)) if d_model % (2 * h) == 0)


def parameters(d_model: int, vocab_size: int, args: Namespace) -> int:
    """N: all parameters, the embedding too. It is also the output layer, so each token is multiplied with it.

    In models this small it is a third to three quarters of all. Kaplan et al. 2020 left it out, which is much
    of why their exponents differ from those of Hoffmann et al. (Pearce & Song 2024, arXiv:2406.12907).
    """
    with torch.device("meta"):  # shapes without memory
        model = LLM(vocab_size, d_model, heads(d_model), args.num_layers, args.max_seq_len)
    return sum(parameter.numel() for parameter in model.parameters())


def train_grid(seeds: int, tokens: int, args: Namespace, folder: Path) -> np.ndarray:
    """Train every width on every number of tokens, short runs first.

    Returns the width, tokens, loss (nats a token) and seconds of the runs, together an array (4, runs).
    """
    recipes, rows = {}, []
    for share, width in itertools.product(SHARES, WIDTHS):
        recipe = {"d_model": width, "num_heads": heads(width), "tokens": round(share * tokens)}
        # A narrow model learns best at a higher rate
        recipe["learning_rate"] = args.learning_rate * math.sqrt(args.d_model / width)
        recipes[f"d_model {width}, {recipe['tokens']:,} tokens"] = recipe
    for recipe, outcome in zip(recipes.values(), compare(recipes, seeds, tokens, args, folder).values()):
        for log in map(last_row, outcome.folders):
            rows.append((recipe["d_model"], log["tokens"], log["val_loss"], log["seconds"]))
    return np.array(rows).T


def conclude(runs: np.ndarray, vocab_size: int, text_tokens: int, args: Namespace) -> dict:
    """What scaling.json holds, from the runs of train_grid(): the rows of four tables, and the speed."""
    widths, tokens, losses, seconds = runs
    possible = {*range(16, 1025, 16), *widths.astype(int).tolist()}
    count = {width: parameters(width, vocab_size, args) for width in possible}
    sizes = np.array([count[width] for width in widths])
    law = fit(sizes, tokens, losses)
    laws, noise = draw_laws(law, sizes, tokens, losses, args.seed)

    fitted = loss_of(law, sizes, tokens)
    names = ("d_model", "parameters", "tokens", "tokens/s", "loss", "law", "difference")
    whole = [column.astype(int).tolist() for column in (widths, sizes, tokens, tokens / seconds)]
    rows = zip(*whole, losses.tolist(), fitted.tolist(), (losses - fitted).tolist())
    result = {"runs": [dict(zip(names, row)) for row in rows]}
    constants = zip(CONSTANTS, law.tolist(), laws)
    result["law"] = [{"": name, "fit": value} | bounds(drawn) for name, value, drawn in constants]

    # A token takes k N^p seconds, by the longest run of each size, in which starting takes the smallest share
    longest = tokens == tokens.max()
    log_n, log_seconds = np.log(sizes[longest]), np.log(seconds[longest] / tokens[longest])
    p = max(0.05, np.polyfit(log_n, log_seconds, 1)[0])  # above 0, even if all sizes are equally fast
    k = math.exp((log_seconds - p * log_n).mean())
    result["speed"] = {"k": k, "p": p}

    result["best"] = []
    for minutes in MINUTES:
        size, budget = best_split(law, k, p, 60 * minutes)
        width = min(count, key=lambda width: abs(math.log(count[width] / size)))
        row = {"minutes": minutes, "d_model": width, "num_heads": heads(width)}
        sizes_drawn, _ = best_split(laws, k, p, 60 * minutes)
        row |= {"million parameters": size / 1e6} | bounds(sizes_drawn / 1e6, "fewest", "most")
        row |= {"tokens": round(budget), "passes": budget / text_tokens, "loss": loss_of(law, size, budget)}
        result["best"].append(row | bounds(loss_of(laws, size, budget)))

    size = parameters(args.d_model, vocab_size, args)
    row = {"d_model": args.d_model, "parameters": size, "tokens": text_tokens}
    row |= {"loss": loss_of(law, size, text_tokens)} | bounds(loss_of(laws, size, text_tokens) * noise)
    result["prediction"] = [row | {"minutes": k * size**p * text_tokens / 60}]
    return result | {"flags": {name: getattr(args, name) for name in RECIPE}}


def main() -> None:
    args, tokens, seeds = read_flags(make_parser(__doc__), 3_200_000, 1, RECIPE)
    out_dir = Path(args.out_dir)
    folder = out_dir / "scaling"  # of the runs
    corpus, _ = load_corpus(folder, **text_settings(args))
    text_tokens = len(corpus.train)
    if tokens > text_tokens:  # the law is about tokens that are read once
        raise UserError(f"the text has {text_tokens:,} tokens: use a longer one or --tokens {text_tokens}")
    step, shortest = args.batch_size * args.max_seq_len, tokens * SHARES[0]
    if shortest < step:
        needed = f"the shortest runs have {shortest:.0f}, and a step {step}"
        raise UserError(f"--tokens {tokens} is too few: {needed}")
    runs = train_grid(seeds, tokens, args, folder)
    result = conclude(runs, corpus.tokenizer.get_vocab_size(), text_tokens, args)
    write_json(out_dir / "scaling.json", result)
    draw(result, MINUTES[-1], out_dir / "scaling.png")
    for name, title in TABLES.items():
        print_table(title, tuple(result[name][0]), [tuple(row.values()) for row in result[name]])
    print("\nBounds: 95% intervals. They know the noise of the runs, not whether the law holds beyond them.")
    print("Passes after the first count as if the text were new, but bring less (arXiv:2305.16264).")
    if args.compile == "off":
        print("Minutes are of training that is not compiled; train.py compiles long runs, which is faster.")
    names = ["warmup", "eval_windows", *sorted(args.given - {"warmup", "eval_windows", "epochs"})]
    flags = " ".join(f"--{name} {shlex.quote(str(getattr(args, name)))}" for name in names)
    print(f"Test the prediction: python train.py --epochs 1 {flags}")
    print(f"saved {out_dir / 'scaling.json'} and {out_dir / 'scaling.png'}")


if __name__ == "__main__":
    run_script(main)
