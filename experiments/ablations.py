"""What does each part of a transformer buy, in loss and in grammar?  python -m experiments.ablations

Trains the model of llm.py, and again with one part left out at a time, each at the best of three learning
rates. Prints a table, and writes ablations.json and ablations.png to out_dir. The runs are kept in
out_dir/ablations: one that is done is not repeated, and the same command started twice shares them out. The
changed models are files there, too, and  python train.py --model FILE  trains one alone; generate.py computes
with llm.py and does not fit it.
"""

import hashlib
import inspect
import json
import math
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from corpus.token_files import Corpus
from corpus.tokenizer import decode_sentences
from dataset import text_settings
from evaluation.case_endings import evaluate_cases
from evaluation.minimal_pairs import Pair, evaluate_pairs, load_pairs
from evaluation.report import print_table
from evaluation.samples import TEMPERATURES, evaluate_samples
from evaluation.scoring import Scorer, even_sample
from experiments.ablated_models import ABLATIONS, WHOLE, write_model
from experiments.harness import (
    ROOT, SHORT_RUNS, Outcome, compare, half_interval, load_corpus, read_flags, shown,
)  # fmt: skip
from llm import LLM
from support.checkpoint import PARAMETERS, read_torch_file
from support.cli import UserError, atomic_write, make_parser, run_script, write_json
from support.device import choose_device
from support.model_class import model_class
from support.training_log import last_row

RATES = (1, 2, 4)  # times --learning_rate, low for so short a run. Each model has its best one for seed 0
MOST_SENTENCES, MOST_PAIRS = 450, 2000  # that grammar is measured on; of more, an even sample
RESULTS, PICTURE = "ablations.json", "ablations.png"
FORMS = {"nats": ".3f", "difference": "+.3f", "bits/char": ".3f", "case endings": ".1%", "real words": ".1%"}
FORMS |= {"minimal pairs": ".1%"}  # the columns of the table


def train_all(
    recipes: dict[str, dict], seeds: int, tokens: int, args: Namespace, folder: Path
) -> tuple[dict, dict]:
    """Train each model with seed 0 at every rate, and with all seeds at the rate that was best.

    Returns each model's losses by the rate, and the outcomes at the best one. Rates are compared on all
    tokens: a quarter misled, as the early best is too low later (5.03 nats for 4.87 after 750,000 tokens).
    """
    rates = [factor * args.learning_rate for factor in RATES]
    tried = {}
    for name, recipe in recipes.items():
        for rate in rates:
            tried[f"{name}, rate {rate:g}"] = recipe | {"learning_rate": rate}
    to_come = tokens * (seeds - 1) * len(recipes)
    outcomes = compare(tried, 1, tokens, args, folder, may_diverge=True, tokens_to_come=to_come)
    losses, best = {}, {}
    for name, recipe in recipes.items():
        losses[name] = {rate: outcomes[f"{name}, rate {rate:g}"].losses[0] for rate in rates}
        best[name] = recipe | {"learning_rate": min(losses[name], key=losses[name].get)}
    return losses, compare(best, seeds, tokens, args, folder, may_diverge=True)


def measure(run: Path, recipe: dict, corpus: Corpus, pairs: list[Pair], args: Namespace) -> dict[str, float]:
    """The figures of a run's model, and its number of parameters. They are kept in the folder of the run."""
    code_files = (Path(__file__), *sorted((ROOT / "evaluation").glob("*.py")))
    code = [path.read_text(encoding="utf-8") for path in code_files]
    key = hashlib.blake2b(json.dumps([code, pairs, args.seed]).encode(), digest_size=8).hexdigest()
    kept = run / f"figures-{key}.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    state, log = read_torch_file(run / PARAMETERS), last_row(run)
    sizes = {name: state["_extra_state"][name] for name in inspect.signature(LLM).parameters}
    model = model_class(Namespace(**recipe))(**sizes).eval()  # of the class that train.py trained
    model.load_state_dict(state)
    device, dtype = choose_device(args.precision)
    scorer = Scorer(model.to(device), corpus.tokenizer, dtype)
    held_out = even_sample(decode_sentences(corpus.tokenizer, corpus.val.tolist()), MOST_SENTENCES)
    figures = {"parameters": sum(map(Tensor.numel, model.parameters()))}
    figures |= {"nats": log["val_loss"], "bits/char": log["bits_per_char"]}
    cases = evaluate_cases(scorer, held_out)["overall"]
    if cases["count"]:  # a text may have no word whose case is known
        figures["case endings"] = cases["accuracy"]
    figures["real words"] = evaluate_samples(scorer, [], [], args.seed)[str(TEMPERATURES[0])]["known"]
    if pairs:
        figures["minimal pairs"] = evaluate_pairs(scorer, pairs)["overall"]["accuracy"]
    write_json(kept, figures)
    return figures


def measure_all(
    outcomes: dict[str, Outcome], measure_run: Callable[[str, Path], dict]
) -> dict[str, dict[str, list]]:
    """The figures of each model, a value for each seed; none if one of its runs diverged.

    "difference": nats above the whole model with the same seed, which varies less than either of them.
    """
    finite = {name: each.folders for name, each in outcomes.items() if math.isfinite(each.mean)}
    runs = [(name, run) for name, folders in finite.items() for run in folders]
    figures = {name: defaultdict(list) for name in outcomes}
    for name, run in tqdm(runs, "measured", smoothing=0, dynamic_ncols=True):
        for figure, value in measure_run(name, run).items():
            figures[name][figure].append(value)
    for each in figures.values():
        if each:
            each["difference"] = [a - b for a, b in zip(each["nats"], figures[WHOLE]["nats"])]
    return figures


def cell(figure: str, values: list[float]) -> str:
    """The mean over the seeds with its 95% interval. A difference whose interval contains 0 says so."""
    # Never for one seed, whose interval is nan
    contains_0 = figure == "difference" and abs(np.mean(values)) <= half_interval(values)
    return shown(values, FORMS[figure]) + (" contains 0" if contains_0 else "")


def print_models(
    title: str, losses: dict[str, dict[float, float]], figures: dict[str, dict[str, list]]
) -> None:
    """A row for each model."""
    columns, rows = [name for name in FORMS if name in figures[WHOLE]], []
    for name, by_rate in losses.items():
        rate = min(by_rate, key=by_rate.get)
        star = "*" if rate in (min(by_rate), max(by_rate)) else ""
        cells = [cell(figure, figures[name][figure]) if figures[name] else "diverged" for figure in columns]
        if name == WHOLE:
            cells = ["" if figure == "difference" else each for figure, each in zip(columns, cells)]
        parameters = figures[name]["parameters"][0] if figures[name] else ""
        rows.append((name, parameters, f"{rate:g}{star}", *cells))
    print_table(title, ("", "parameters", "rate", *columns), rows)
    star_note = "*: the lowest or highest rate tried; a better one may lie beyond."
    print(f"contains 0: no difference is shown.  {star_note}")


def draw(title: str, figures: dict[str, dict[str, list]], path: Path) -> None:
    """The differences to the whole model, as dots with their intervals."""
    from matplotlib.figure import Figure  # here, because it takes a second

    differences = {name: each["difference"] for name, each in figures.items() if each and name != WHOLE}
    picture = Figure((10, 6), layout="constrained")
    axes = picture.subplots()
    for name, values in differences.items():
        reach = half_interval(values) if len(values) > 1 else None
        label = f"{name}\n{cell('difference', values)}"
        axes.errorbar(np.mean(values), label, xerr=reach, fmt="o", capsize=4, color="tab:blue")
    axes.axvline(0, color="gray", linewidth=1)
    axes.invert_yaxis()
    axes.set(title=title, xlabel=f"nats a token more than {WHOLE}, with 95% intervals")
    with atomic_write(path) as temporary:
        picture.savefig(temporary, format="png", dpi=100)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--pairs", help="minimal pairs: a file or a data set of the hub, as for evaluate.py")
    args, tokens, seeds = read_flags(parser, 750_000, 3, SHORT_RUNS)
    pairs = even_sample(load_pairs(args.pairs), MOST_PAIRS) if args.pairs else []
    del args.pairs  # train.py has no such flag
    out_dir = Path(args.out_dir)
    folder = out_dir / "ablations"  # of the runs
    folder.mkdir(parents=True, exist_ok=True)

    recipes = {name: write_model(change, folder) for name, change in ABLATIONS.items()}
    losses, outcomes = train_all(recipes, seeds, tokens, args, folder)
    if math.isinf(outcomes[WHOLE].mean):
        raise UserError(f"{WHOLE} diverges: try a smaller --learning_rate")
    corpus, _ = load_corpus(folder, **text_settings(args))
    figures = measure_all(outcomes, lambda name, run: measure(run, recipes[name], corpus, pairs, args))

    title = f"One part left out, after {tokens:,} tokens: mean of {seeds} seeds, 95% interval"
    result = {"title": title, "figures": figures, "loss_by_rate": {}}
    for name, by_rate in losses.items():
        finite_losses = {f"{rate:g}": loss if math.isfinite(loss) else None for rate, loss in by_rate.items()}
        result["loss_by_rate"][name] = finite_losses
    write_json(out_dir / RESULTS, result)
    print_models(title, losses, figures)
    draw(title, figures, out_dir / PICTURE)
    print(f"\nthe results are in {out_dir / RESULTS} and {out_dir / PICTURE}")


if __name__ == "__main__":
    run_script(main)
