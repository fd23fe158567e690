"""What evaluate.py leaves and shows: evaluation.json, the tables, and the picture evaluation.png."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evaluation.case_endings import CASES
from support.checkpoint import PARAMETERS
from support.cli import atomic_write, write_json
from support.training_log import read_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS, PICTURE = "evaluation.json", "evaluation.png"
HELD_OUT = "the articles held out from "  # begins the held-out text's name; the training text's follows


def load_results(folder: Path) -> dict:
    """The hash of the weights in the folder, and what an earlier run has measured of the same weights."""
    weights = hashlib.blake2b((folder / PARAMETERS).read_bytes(), digest_size=8).hexdigest()
    try:
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        if results["weights"] == weights:
            return results
    except (OSError, ValueError, KeyError, TypeError):  # there is none, or another program wrote it
        pass
    return {"weights": weights}


def report(part: str, result: dict, results: dict, folder: Path) -> None:
    """Add the result of a part to the results, write evaluation.json, and only then print the result."""
    results[part] = result
    write_json(folder / RESULTS, results)
    PRINTERS[part](result)


# Tables


def percent(part: dict) -> str:
    """A share with its 95% interval, or a dash where there is nothing to share."""
    return f"{part['accuracy']:5.1%} ({part['low']:.1%} to {part['high']:.1%})" if part["count"] else "–"


def cell_text(value: float | int | str) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 1e6 else f"{value:.1e}"
    return f"{value:,}" if isinstance(value, int) else value


def print_table(title: str, header: tuple[str, ...], rows: list[tuple]) -> None:
    """Print rows of equally many cells, the first cell to the left and the others to the right."""
    lines = [[cell_text(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    print(f"\n{title}")
    for name, *cells in lines:
        print("  " + "  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]))


def print_text(result: dict) -> None:
    rows = [
        (name, each.get("perplexity", "–"), each["bits_per_char"], each["bits_per_byte"])
        for name, each in result["bits"].items()
    ]
    title = f"Perplexity of {result['tokens']:,} tokens: {result['name']}"
    print_table(title, ("", "per token", "bits/char", "bits/byte"), rows)

    losses, edges = result["loss_by_position"], [0]  # positions are grouped as 1, 2, 3-4, 5-8, ...
    while edges[-1] < len(losses):
        edges.append(min(max(1, 2 * edges[-1]), len(losses)))
    rows = []
    for begin, end in zip(edges, edges[1:]):
        positions = f"{end}" if end == begin + 1 else f"{begin + 1}-{end}"
        rows.append((positions, float(np.mean(losses[begin:end]))))
    print_table("Loss by position in the window: what context is worth", ("position", "nats"), rows)


def print_samples(result: dict) -> None:
    print("\nSamples")
    for temperature, texts in result["continuations"].items():
        for text in texts:
            print(f"  {temperature}  {text}")
    titles = {"real": "held-out text", **{name: f"temperature {name}" for name in result["continuations"]}}
    rows = []
    for name, title in titles.items():
        each = result[name]
        parts = each["agreement"].values()
        agreeing = [f"{part['accuracy']:.1%}" if part["count"] else "–" for part in parts]
        rows.append((title, each["words"], f"{each['known']:.1%}", f"{each['recited']:.1%}", *agreeing))
    agreements = ("preposition+noun agree", "adjective+noun agree")
    header = ("", "words", "in the dictionary", "recited 4-grams", *agreements)
    print_table("Generated text beside real text", header, rows)


FACT_COLUMNS = {"top1": "top-1", "top1_corrected": "corrected", "mrr": "MRR"}
FACT_COLUMNS |= {"exact": "exact", "chance": "chance"}


def fact_cell(key: str, part: dict) -> str:
    if key not in part:  # nothing was asked, or nothing whose rank can be corrected
        return "–"
    return f"{part[key]:.3f}" if key == "mrr" else f"{part[key]:.1%}"


def print_facts(result: dict) -> None:
    prompts = result["by_relation"] | {"all": result["overall"]}
    paraphrases = result["paraphrase"]["by_relation"] | {"all": result["paraphrase"]["overall"]}
    asked_twice = paraphrases["all"]["count"] > 0
    rows = []
    for name, part in prompts.items():
        cells = [fact_cell(key, part) for key in FACT_COLUMNS]
        if asked_twice:
            other = paraphrases.get(name, {"count": 0})
            cells = [f"{cell} / {fact_cell(key, other)}" for key, cell in zip(FACT_COLUMNS, cells)]
        rows.append((name, part["count"], *cells))
    title = "Facts, the answers of a relation competing"
    title += ": prompt (recitation?) / paraphrase (knowledge?)" if asked_twice else ""
    print_table(title, ("", "facts", *FACT_COLUMNS.values()), rows)

    rows = []
    for name, part in result["by_sentences"].items():
        rows.append((name, part["count"], *(fact_cell(key, part) for key in FACT_COLUMNS)))
    title = "Facts by the number of training sentences that hold subject and answer"
    print_table(title, ("sentences", "facts", *FACT_COLUMNS.values()), rows)


def print_pairs(result: dict) -> None:
    def rows_of(key: str, names: list[str]) -> list[tuple]:
        sums, means = result[key], result["per_token"][key]
        return [(name, sums[name]["count"], percent(sums[name]), percent(means[name])) for name in names]

    header = ("", "pairs", "right by the sum (95%)", "by the mean per token (95%)")
    overall, overall_mean = result["overall"], result["per_token"]["overall"]
    rows = rows_of("by_phenomenon", list(result["by_phenomenon"]))
    rows.append(("all", overall["count"], percent(overall), percent(overall_mean)))
    title = f"Minimal pairs ({result['name']}): the grammatical sentence scores higher, chance 50%"
    print_table(title, header, rows)

    paradigms = result["by_paradigm"]
    ranked = sorted(paradigms, key=lambda name: -paradigms[name]["accuracy"])
    chosen = ranked if len(ranked) <= 10 else ranked[:5] + ranked[-5:]
    print_table("  best and worst paradigms, by the sum", header, rows_of("by_paradigm", chosen))


def print_cases(result: dict) -> None:
    if not result["overall"]["count"]:
        print("\nCase endings: the text has no word to ask for")
        return
    prepositions = sorted(result["by_preposition"].items(), key=lambda item: -item[1]["count"])
    parts = {"all": result["overall"], **result["by_rule"], **result["by_number"], **result["by_case"]}
    parts |= dict(prepositions[:10])  # the most frequent
    rows = [(name, each["count"], percent(each)) for name, each in parts.items()]
    title = f"Case endings: the right form is the likeliest, chance {result['chance']:.1%}"
    print_table(title, ("", "words", "right (95%)"), rows)
    rows = [(case, *(round(value) for value in row)) for case, row in zip(CASES, result["confusion"])]
    print_table("  the right case (rows) and the case that the model prefers (columns)", ("", *CASES), rows)


PRINTERS = {
    "text": print_text,
    "samples": print_samples,
    "facts": print_facts,
    "pairs": print_pairs,
    "cases": print_cases,
}


# The picture


def draw(results: dict, folder: Path) -> None:
    """Write evaluation.png: training_log.csv, loss by position, facts by relation, confusion of cases."""
    from matplotlib.figure import Figure  # here, because it takes a second

    figure = Figure((13, 10), layout="constrained")
    (curve, position), (facts, cases) = figure.subplots(2, 2)
    curve.set_title("training")
    position.set_title("loss by position")
    facts.set_title("facts: the right answer is the likeliest")
    cases.set_title("case endings")
    draw_training(curve, read_log(folder))
    if "text" in results:
        losses = results["text"]["loss_by_position"]
        position.plot(range(1, len(losses) + 1), losses, ".-")
        position.set(xlabel="position in the window", ylabel="nats per token", xscale="log")
    if "facts" in results:
        draw_facts(facts, results["facts"])
    if "cases" in results:
        draw_confusion(cases, np.array(results["cases"]["confusion"]))
    with atomic_write(folder / PICTURE) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def draw_training(axes: "Axes", log: dict[str, list[float]]) -> None:
    """The loss curves, of which there are none if the log is missing."""
    for name in ("train_loss", "val_loss"):
        axes.plot(log.get("tokens", []), log.get(name, []), label=name)
    axes.set(xlabel="tokens", ylabel="nats per token")
    axes.legend()


def draw_facts(axes: "Axes", result: dict) -> None:
    """A bar for each relation: top-1 by the prompts, and by the paraphrases where there are any."""
    relations = list(result["by_relation"])
    paraphrases = result.get("paraphrase", {"by_relation": {}})["by_relation"]  # old results have none
    places = np.arange(len(relations))
    bars = {"prompt": result["by_relation"]}
    if paraphrases:
        bars["paraphrase"] = paraphrases
    height = 0.8 / len(bars)
    for i, (label, parts) in enumerate(bars.items()):
        top1 = [parts[relation]["top1"] if relation in parts else np.nan for relation in relations]
        axes.barh(places + (i - (len(bars) - 1) / 2) * height, top1, height, label=label)
    chances = [result["by_relation"][relation]["chance"] for relation in relations]
    axes.plot(chances, places, "k|", label="chance")
    size = min(10, 250 / len(relations))  # so that many have room
    axes.set_yticks(places, relations, fontsize=size, parse_math=False)
    axes.set(xlim=(0, 1))
    axes.invert_yaxis()
    axes.legend()


def draw_confusion(axes: "Axes", counts: np.ndarray) -> None:
    """The confusion matrix, each row coloured by its shares."""
    part = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(part, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(*counts.shape):
        color = "white" if part[i, j] > 0.5 else "black"
        axes.text(j, i, f"{counts[i, j]:.0f}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(CASES)), CASES)
    axes.set_yticks(range(len(CASES)), CASES)
    axes.set(xlabel="the case the model prefers", ylabel="the right case")
