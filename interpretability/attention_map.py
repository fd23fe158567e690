"""Draws the attention weights of all heads on one text as a picture."""

import math
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from corpus.tokenizer import encode_prompt
from interpretability.trace import run_layers
from llm import LLM
from support.cli import UserError, atomic_write

MOST_LABELS = 64  # tokens named along an axis; of a longer text every second, third, ... token is named


@torch.no_grad()
def attention_png(model: LLM, tokenizer: Tokenizer, text: str, path: Path) -> None:
    """Write a PNG with one row per layer and one map per head; queries run down, keys run across.

    The text is encoded as in generate.py, with <EOS> before it. Raises UserError if it exceeds the window.
    """
    from matplotlib.colors import PowerNorm  # here, because it takes a second
    from matplotlib.figure import Figure

    _, ids = encode_prompt(tokenizer, text)
    T, L, H = len(ids), model.num_layers, model.num_heads
    limit = model.max_seq_len
    if T > limit:
        raise UserError(f"the text has {T} tokens, more than the {limit} that the model sees at once")
    layers = run_layers(model, torch.tensor([ids]))
    weights = torch.stack([layer.weights[0] for layer in layers]).double().numpy()  # (L, H, T, T)
    future = np.triu(np.ones((T, T), dtype=bool), 1)
    weights[..., future] = np.nan  # left blank

    label_every = math.ceil(T / MOST_LABELS)
    places = range(0, T, label_every)
    labels = [token_label(tokenizer, token) for token in ids[::label_every]]
    map_size = min(9, max(2.2, 0.16 * len(labels)))  # inches
    figure = Figure((H * map_size + 2.2, L * map_size + 1.8), layout="constrained")
    maps = figure.subplots(L, H, squeeze=False, sharex=True, sharey=True)
    colours = PowerNorm(0.5, 0, 1)  # the square root of a weight, so that small weights stay visible
    for (layer, head), axes in np.ndenumerate(maps):
        image = axes.imshow(weights[layer, head], cmap="viridis", norm=colours, interpolation="nearest")
        axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=9)
        axes.set_xticks(places, labels, rotation=90, fontsize=7, parse_math=False)
        axes.set_yticks(places, labels, fontsize=7, parse_math=False)
    figure.supxlabel("attends to", fontsize=10)
    figure.supylabel("token", fontsize=10)
    shrink = min(1, 4 / (L * map_size))
    legend = figure.colorbar(image, ax=maps, shrink=shrink, aspect=30, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    legend.set_label("attention weight (each row of a map sums to 1)", fontsize=9)

    dpi = min(150, 6000 / max(figure.get_size_inches()))  # at most 6000 pixels on a side
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)


def token_label(tokenizer: Tokenizer, token: int) -> str:
    """A token with its white space visible: · a space, ↵ a line feed, ⇥ a tab. A part of a character is �."""
    text = tokenizer.decode([token], skip_special_tokens=False)
    return text.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥").replace("\r", "␍")
