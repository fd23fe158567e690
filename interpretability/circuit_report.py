"""What experiments/case_circuit.py shows: its tables, and a picture of heat maps, probes and steering."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evaluation.report import print_table
from interpretability.probes import POSITIONS, PROPERTIES
from support.cli import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes


MOST_COST = 0.1  # nats a token on other text: the most that steering may cost


# Tables


def best_row(rows: list[dict]) -> dict:
    """Of the strengths that cost less than MOST_COST, the one that turns most endings; else the weakest."""
    cheap = [row for row in rows if row["steered_cost"] < MOST_COST] or rows[:1]
    return max(cheap, key=lambda row: row["steered"]["share"])


def best_layer(probe: dict) -> int:
    """The layer after which a probe is right most often; 0 is the embedding."""
    return max(range(len(probe["real"])), key=lambda layer: probe["real"][layer]["share"])


def best_steering(steering: dict[str, list[dict]]) -> tuple[str, list[dict]]:
    """The layer after which steering turns the most endings at a cost below MOST_COST, and its rows.

    A layer after which every strength costs more is chosen only if all layers are like that.
    """

    def worth(item: tuple[str, list[dict]]) -> tuple[bool, float]:
        row = best_row(item[1])
        return row["steered_cost"] < MOST_COST, row["steered"]["share"]

    return max(steering.items(), key=worth)


def cell(ratio: dict[str, float]) -> str:
    """A share with its interval, left out where it has no width: of a single pair, or where all agree."""
    if ratio["low"] == ratio["high"]:
        return f"{ratio['share']:6.1%}"
    return f"{ratio['share']:6.1%} ({ratio['low']:.1%} to {ratio['high']:.1%})"


def print_circuit(result: dict) -> None:
    clean, corrupt = result["clean_score"], result["corrupt_score"]
    print(f"\nmean score: {clean:.2f} on the clean sentences, {corrupt:.2f} on the corrupt ones")
    groups = ("best three heads", "all other heads")
    rows = [(name, cell(result["patching"][name]), "", "") for name in groups]
    for name in result["best_heads"][:5] + [f"MLP {layer + 1}" for layer in range(result["num_layers"])]:
        look = f"{result['looks'][name]:.2f}" if name in result["looks"] else ""
        rows.append((name, cell(result["patching"][name]), cell(result["direct"][name]), look))
    header = ("part", "recovered by patching (95%)", "written directly (95%)", "weight on the deciding word")
    print_table(
        "Who carries the case: shares of the difference between clean and corrupt score", header, rows
    )
    places = result["places"]
    rows = []
    for layer in range(result["num_layers"] + 1):
        rows.append(
            (str(layer), *(f"{result['stream'][f'{layer} {place}']['share']:.1%}" for place in places))
        )
    print_table(
        "Where it is: recovered by patching the stream after a layer (0: the embedding)",
        ("layer", *places),
        rows,
    )


def print_contrasts(result: dict) -> None:
    """A row a contrast; without shares where the model may not tell the two sentences apart at all."""
    best, rows = result["best_heads"][0], []
    for name, each in result["by_contrast"].items():
        right, difference, recovered = each["both_right"], each["difference"], each["patching"]
        strongest = max(result["looks"], key=lambda head: recovered[head]["share"])
        cells, apart = ("–", "–"), f"{difference['share']:.2f}"
        if right["count"] > 1:  # a single pair has no interval, and proves nothing
            apart += f" ({difference['low']:.2f} to {difference['high']:.2f})"
            if difference["low"] > 0:
                cells = (cell(recovered[best]), f"{strongest} {recovered[strongest]['share']:.1%}")
        rows.append((name, right["count"], f"{right['accuracy']:.1%}", apart, *cells))
    header = (
        "contrast",
        "pairs",
        "both right",
        "clean - corrupt (95%)",
        f"{best} recovers (95%)",
        "strongest head",
    )
    print_table(f"{result['pairs']} pairs of held-out text", header, rows)


def print_probes(result: dict) -> None:
    rows = []
    for name in PROPERTIES:
        for position in POSITIONS:
            each = result["probes"][name][position]
            layer = best_layer(each)
            shuffled = f"{each['shuffled'][layer]['share']:.1%}"
            chance = f"{result['probes'][name]['chance']:.1%}"
            embedding = f"{each['real'][0]['share']:.1%}"
            rows.append(
                (f"{name}, {position}", str(layer), cell(each["real"][layer]), embedding, shuffled, chance)
            )
    header = ("probe", "best layer", "right (95%)", "embedding", "shuffled", "most frequent")
    print_table("Probes on lemmas that they were not trained on", header, rows)


def print_steering(result: dict) -> None:
    rows = []
    for layer, steered in result["steering"].items():
        row = best_row(steered)
        rows.append((layer, row["strength"], cell(row["steered"]), cell(row["random"]), row["steered_cost"]))
    header = ("after layer", "strength", "endings turned (95%)", "by a random vector", "cost, nats")
    print_table(
        f"Steering, at the best strength that costs less than {MOST_COST} nats a token elsewhere "
        "(else the weakest)",
        header,
        rows,
    )


# The picture


def draw_circuit(result: dict, path: Path) -> None:
    """Write the PNG. Without probes, as for a pair of one's own, it has three heat maps."""
    from matplotlib.figure import Figure  # here, because it takes a second

    L, H, places = result["num_layers"], result["num_heads"], result["places"]
    rows = 2 if "probes" in result else 1
    figure = Figure((8 + max(7, 0.45 * len(places)), 4.6 * rows), layout="constrained")
    maps = figure.subplots(
        rows, 3, squeeze=False, gridspec_kw={"width_ratios": [1, 1, max(1, len(places) / 14)]}
    )

    layers = [str(layer + 1) for layer in range(L)]
    parts = [f"head {head + 1}" for head in range(H)] + ["MLP"]
    names = [[f"head {layer}.{head + 1}" for head in range(H)] + [f"MLP {layer}"] for layer in layers]
    draw_map(maps[0, 0], "recovered if one part is patched", shares(result["patching"], names), parts, layers)
    draw_map(maps[0, 1], "written directly into the score", shares(result["direct"], names), parts, layers)
    stream_names = [[f"{layer} {place}" for place in places] for layer in range(L + 1)]
    after = ["embedding", *layers]
    draw_map(
        maps[0, 2],
        "recovered if the stream is patched",
        shares(result["stream"], stream_names),
        places,
        after,
    )
    if "probes" in result:
        looks = [[result["looks"][name] for name in row[:H]] for row in names]
        draw_map(maps[1, 0], "attention from the last token to the deciding word", looks, parts[:H], layers)
        draw_probes(maps[1, 1], result["probes"])
        if "steering" in result:
            draw_steering(maps[1, 2], *best_steering(result["steering"]))
        else:
            maps[1, 2].set_axis_off()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def shares(ratios: dict[str, dict], names: list[list[str]]) -> list[list[float]]:
    return [[ratios[name]["share"] for name in row] for row in names]


def draw_map(
    axes: "Axes", title: str, values: list[list[float]], columns: list[str], rows: list[str]
) -> None:
    """A heat map of shares, the first layer at the bottom; blue is positive, red negative."""
    axes.imshow(values, cmap="RdBu", vmin=-1, vmax=1, origin="lower", aspect="auto")
    for (i, j), value in np.ndenumerate(np.array(values)):
        axes.text(
            j,
            i,
            f"{value:.2f}",
            ha="center",
            va="center",
            color="white" if abs(value) > 0.6 else "black",
            fontsize=8,
        )
    axes.set_xticks(
        range(len(columns)), columns, rotation=90 if len(columns) > 6 else 0, fontsize=8, parse_math=False
    )
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylabel("layer")
    axes.set_title(title, fontsize=10)


def draw_probes(axes: "Axes", probes: dict) -> None:
    """For each property and position: the embedding, the best layer, it with shuffled labels, chance."""
    groups = [(name, position) for position in POSITIONS for name in PROPERTIES]
    bars = {"embedding alone": [], "best layer": [], "shuffled labels": []}
    for name, position in groups:
        real, shuffled = probes[name][position]["real"], probes[name][position]["shuffled"]
        best = best_layer(probes[name][position])
        bars["embedding alone"].append(real[0])
        bars["best layer"].append(real[best])
        bars["shuffled labels"].append(shuffled[best])
    for i, (label, ratios) in enumerate(bars.items()):
        heights = [each["share"] for each in ratios]
        errors = [
            [each["share"] - each["low"] for each in ratios],
            [each["high"] - each["share"] for each in ratios],
        ]
        axes.bar(np.arange(len(groups)) + (i - 1) * 0.27, heights, 0.27, yerr=errors, label=label)
    chances = [probes[name]["chance"] for name, _ in groups]
    axes.hlines(
        chances,
        np.arange(len(groups)) - 0.4,
        np.arange(len(groups)) + 0.4,
        "black",
        label="most frequent class",
    )
    axes.set_xticks(
        range(len(groups)),
        ["\n".join((name, *position.split(" ", 1))) for name, position in groups],
        fontsize=7,
    )
    axes.set_ylim(0, 1.3)  # room for the legend
    axes.legend(fontsize=8, ncols=2)
    axes.set_title("probes: named right, lemmas not trained on", fontsize=10)


def draw_steering(axes: "Axes", layer: str, rows: list[dict]) -> None:
    """Endings turned, and what it costs elsewhere, by strength."""
    strengths = [row["strength"] for row in rows]
    costs = axes.twinx()
    for name, colour in (("steered", "tab:blue"), ("random", "tab:grey")):
        axes.plot(
            strengths, [row[name]["share"] for row in rows], color=colour, marker=".", label=f"{name}: turned"
        )
        low, high = ([row[name][end] for row in rows] for end in ("low", "high"))
        axes.fill_between(strengths, low, high, color=colour, alpha=0.2)
        costs.plot(
            strengths,
            [row[f"{name}_cost"] for row in rows],
            color=colour,
            linestyle=":",
            label=f"{name}: cost",
        )
    axes.set(xlabel="strength (1 is the mean difference of the cases)", ylabel="endings turned", ylim=(0, 1))
    costs.set_ylabel("cost on other text, nats a token (dotted)")
    axes.legend(fontsize=8, loc="upper left")
    axes.set_title(f"steering after layer {layer}", fontsize=10)
