"""When does the model learn what?  python -m experiments.emergence

Measures the snapshots of a run and its final weights: held-out text, generated text, facts, case endings,
heads, and minimal pairs with --pairs. Prints a table, and writes emergence.json and emergence.png to out_dir.
With --runs, the out_dirs of runs with other seeds, figures are means over all runs, with 95% intervals.
"""

import math
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from corpus.token_files import Corpus
from corpus.tokenizer import EOS, decode_sentences
from dataset import load_text_of
from evaluation.case_endings import evaluate_cases
from evaluation.facts import BUNDLED_FACTS, Fact, evaluate_facts, load_facts
from evaluation.minimal_pairs import Pair, evaluate_pairs, load_pairs
from evaluation.report import print_table
from evaluation.samples import TEMPERATURES, evaluate_samples
from evaluation.scoring import Scorer
from experiments.harness import half_interval
from interpretability.measurements import head_scores
from interpretability.snapshots import read_snapshot
from llm import LLM
from support.checkpoint import PARAMETERS, load_model, snapshot_paths
from support.cli import UserError, atomic_write, make_parser, parse_args, run_script, write_json
from support.device import choose_device
from support.training_log import read_log

RESULTS, PICTURE = "emergence.json", "emergence.png"
HEADS = ("previous token", "same token", "induction")  # SCORE_DEFINITIONS in interpretability/measurements.py
MOST_COLUMNS = 6  # steps in the printed table; the other files have all

Figures = dict[str, dict[str, float | None]]  # group -> name -> value; None where there is nothing to measure


class Run(NamedTuple):
    tokenizer: Tokenizer
    corpus: Corpus
    steps: list[int]
    paths: list[Path]  # the weights at each of the steps, the final ones last
    tokens_per_step: float
    model: LLM  # the finished one


def open_run(folder: Path, args: Namespace) -> Run:
    """The run that left its weights in a folder. Raises UserError if it is unfinished or has no snapshots."""
    model, tokenizer = load_model(folder)
    snapshots, log = snapshot_paths(folder), read_log(folder)
    if not snapshots or not log:
        command = "python train.py --snapshots 12"
        raise UserError(f"{folder} has no snapshots, or no training_log.csv: train with  {command}")
    if not model.trained_on.get("finished"):
        raise UserError(f"the run in {folder} has not finished: run  python train.py  again, and it goes on")
    corpus, _ = load_text_of(model, tokenizer, Namespace(**vars(args) | {"out_dir": str(folder)}))
    steps, paths = zip(*snapshots, (int(log["step"][-1]), folder / PARAMETERS))
    tokens_per_step = log["tokens"][-1] / log["step"][-1]
    return Run(tokenizer, corpus, list(steps), list(paths), tokens_per_step, model)


def measure(model: LLM, run: Run, facts: list[Fact], pairs: list[Pair], args: Namespace) -> Figures:
    """The figures of one model. What evaluate.py measures, too, is measured as it does."""
    heads = head_scores(model, run.corpus.val, run.tokenizer.token_to_id(EOS))  # on the CPU
    device, dtype = choose_device(args.precision)
    scorer = Scorer(model.to(device), run.tokenizer, dtype)
    ids = run.corpus.val.tolist()
    held_out = decode_sentences(run.tokenizer, ids)
    losses = scorer.token_losses([[scorer.eos, *ids]], [1], "held-out text")[0]
    # The shares of the samples alone, not those of real text
    samples = evaluate_samples(scorer, [], [], args.seed)[str(TEMPERATURES[0])]
    answers = evaluate_facts(scorer, facts)
    cases = evaluate_cases(scorer, held_out)

    figures = {
        "held-out text": {"bits per character": float(losses.sum()) / math.log(2) / len("".join(held_out))},
        "generated text": {
            "words in the dictionary": samples["known"],
            "adjectives that agree": samples["agreement"]["adjective and noun"].get("accuracy"),
        },
        "facts": {},
        "facts by relation": {},
        "case endings": {"all": cases["overall"].get("accuracy")},
        "strongest head": {name: max(map(max, heads[name]["values"])) for name in HEADS},
    }
    for asked_by, result in (("prompt", answers), ("paraphrase", answers["paraphrase"])):
        for score in ("top1", "exact"):
            figures["facts"][f"{asked_by}, {score}"] = result["overall"].get(score)
            for relation, part in result["by_relation"].items():
                figures["facts by relation"][f"{relation}, {asked_by}, {score}"] = part[score]
    figures["case endings"] |= {case: part["accuracy"] for case, part in cases["by_case"].items()}
    if pairs:
        result = evaluate_pairs(scorer, pairs)
        figures["minimal pairs"] = {"all": result["overall"]["accuracy"]}
        figures["minimal pairs"] |= {name: part["accuracy"] for name, part in result["by_phenomenon"].items()}
    return figures


def summary(values: np.ndarray, steps: list[int], tokens_per_step: float) -> dict:
    """A figure's values (runs, steps), their mean, and when they are half-way from first to last."""
    half_way = np.array([[half_way_step(steps, each)] for each in values])  # (runs, 1)
    return {
        "runs": [numbers(each) for each in values],
        **mean_over_runs(values),
        "half_way": {"step": mean_over_runs(half_way), "tokens": mean_over_runs(half_way * tokens_per_step)},
    }


def half_way_step(steps: list[int], values: np.ndarray) -> float:
    """The step at which the values are first half-way from the first to the last; nan if these are equal.

    Between two snapshots, a value is taken to be linear in log(step + 1).
    """
    known = ~np.isnan(values)
    places, values = np.log1p(steps)[known], values[known]
    if len(values) < 2 or values[0] == values[-1]:
        return np.nan
    way = (values - values[0]) / (values[-1] - values[0])  # from 0 to 1
    after = int(np.argmax(way >= 0.5))
    return float(np.expm1(np.interp(0.5, way[after - 1 : after + 1], places[after - 1 : after + 1])))


def mean_over_runs(values: np.ndarray) -> dict[str, list]:
    """The mean of values (runs, N) and, of two runs or more, its 95% interval. None where a run has none."""
    mean = values.mean(axis=0)
    if len(values) == 1:
        return {"mean": numbers(mean)}
    reach = half_interval(values)
    return {"mean": numbers(mean), "low": numbers(mean - reach), "high": numbers(mean + reach)}


def numbers(values: Iterable[float]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def printed_groups(result: dict) -> list[tuple[str, dict]]:
    """The groups of figures to print and draw. Facts by relation, too many, are only in emergence.json."""
    return [(group, figures) for group, figures in result["figures"].items() if group != "facts by relation"]


def cell(part: dict[str, list], i: int, form: str) -> str:
    """The mean at place i, with its interval if there is one."""
    mean = part["mean"][i]
    if mean is None:
        return "–"
    return f"{mean:{form}}" + (f" ±{part['high'][i] - mean:{form}}" if "high" in part else "")


def print_figures(result: dict) -> None:
    """A row for each figure: its value at some of the steps, and when it is half-way."""
    places = np.unique(np.linspace(0, len(result["steps"]) - 1, MOST_COLUMNS).round().astype(int))
    header = ["", *(f"step {result['steps'][i]:,}" for i in places), "half-way: step", "tokens"]
    rows = []
    for group, figures in printed_groups(result):
        for name, each in figures.items():
            values = [cell(each, i, ".3f") for i in places]
            half_way = [cell(part, 0, ",.0f") for part in each["half_way"].values()]
            rows.append((f"{group}: {name}", *values, *half_way))
    print_table("What the model has learned", header, rows)


def draw(result: dict, path: Path) -> None:
    """A panel for each group of figures, over the tokens read."""
    from matplotlib.figure import Figure  # here, because it takes a second

    tokens = result["tokens"]
    picture = Figure((16, 9), layout="constrained")
    for place, (group, figures) in enumerate(printed_groups(result), 1):
        axes = picture.add_subplot(2, 3, place)
        for name, each in figures.items():
            (line,) = axes.plot(tokens, np.array(each["mean"], float), ".-", label=name)
            if "low" in each:
                bounds = np.array([each["low"], each["high"]], float)
                axes.fill_between(tokens, *bounds, alpha=0.2, color=line.get_color())
        axes.set_xscale("symlog", linthresh=tokens[1])  # logarithmic, with a place for 0
        axes.set(title=group, xlabel="tokens")
        for name in axes.legend(fontsize="small").get_texts():
            name.set_parse_math(False)  # a "$" in the name of a paradigm is a "$"
    with atomic_write(path) as temporary:
        picture.savefig(temporary, format="png", dpi=100)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--runs", nargs="+", default=[], help="out_dirs of runs that differ only in seed")
    parser.add_argument("--facts", default=BUNDLED_FACTS, help="a file as for evaluate.py [data/facts.jsonl]")
    parser.add_argument("--pairs", help="a file or a data set of the hub, as for evaluate.py")
    args = parse_args(parser)

    # Read all files first, so that errors in them show before any work
    facts = load_facts(Path(args.facts).expanduser())
    pairs = load_pairs(args.pairs) if args.pairs else []
    folders = [Path(folder).expanduser() for folder in (args.out_dir, *args.runs)]
    if len({folder.resolve() for folder in folders}) < len(folders):  # else one seed would count as two
        raise UserError("--runs names the same folder twice, or that of --out_dir: give each run once")
    runs = [open_run(folder, args) for folder in folders]
    first, shared = runs[0], [(run.corpus.key, run.steps, run.model.architecture()) for run in runs]
    if any(each != shared[0] for each in shared):
        where = "in text, architecture, or the steps of their snapshots"
        raise UserError(f"the runs differ in more than their seed: {where}")

    weights = [(run, path) for run in runs for path in run.paths]
    measured = []  # Figures, of the first run, then of the second, ...
    for run, path in tqdm(weights, "snapshots", smoothing=0, dynamic_ncols=True):
        measured.append(measure(read_snapshot(path, run.model), run, facts, pairs, args))
    tokens = [round(step * first.tokens_per_step) for step in first.steps]
    result = {"steps": first.steps, "tokens": tokens, "figures": {}}
    for group, names in measured[0].items():
        result["figures"][group] = {}
        for name in names:
            values = np.array([each[group][name] for each in measured], float).reshape(len(runs), -1)
            result["figures"][group][name] = summary(values, first.steps, first.tokens_per_step)

    write_json(folders[0] / RESULTS, result)
    print_figures(result)
    draw(result, folders[0] / PICTURE)
    print(f"\nthe results are in {folders[0] / RESULTS} and {folders[0] / PICTURE}")


if __name__ == "__main__":
    run_script(main)
