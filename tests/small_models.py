"""Small models and texts for the tests of interpretability/, and what a model computes on the way."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import torch
from helpers import random_weights

from interpretability.trace import Layer, run_layers
from llm import LLM

VOCAB, T, HEADS, LAYERS = 40, 12, 2, 3


def small_model() -> LLM:
    """In float64, none of its weights zero."""
    torch.manual_seed(0)
    return random_weights(LLM(VOCAB, d_model=16, num_heads=HEADS, num_layers=LAYERS, max_seq_len=T).double())


def without_head(model: LLM, layer: int, head: int) -> LLM:
    """A copy of the model in which the columns of o_proj that belong to the head are zero."""
    changed = LLM(**model.architecture()).to(model.embedding.weight.dtype).eval()
    changed.load_state_dict(model.state_dict())
    head_size = model.d_model // model.num_heads
    with torch.no_grad():
        changed.blocks[layer].attention.o_proj.weight[:, head * head_size : (head + 1) * head_size] = 0
    return changed


class Trace(NamedTuple):
    """What a forward pass on input_ids (B, T) computes on its way."""

    streams: torch.Tensor  # (LAYERS + 1, B, T, D), the residual stream before each layer, and after the last
    layers: list[Layer]
    lens: torch.Tensor  # (LAYERS + 1, B, T, VOCAB), the output layer on each of the streams
    logits: torch.Tensor  # (B, T, VOCAB)


@torch.no_grad()
def trace(model: LLM, input_ids: torch.Tensor, ablated_heads: Collection[tuple[int, int]] = ()) -> Trace:
    """The activations of the model, without the heads (layer, head), counted from 0."""
    for layer, head in ablated_heads:
        model = without_head(model, layer, head)
    layers = list(run_layers(model, input_ids))
    streams = torch.stack([model.embedding(input_ids), *(layer.residual for layer in layers)])
    return Trace(streams, layers, model.logits(streams), model(input_ids))


def random_ids(seed: int, length: int = T) -> torch.Tensor:
    """Token ids (1, length)."""
    return torch.randint(VOCAB, (1, length), generator=torch.Generator().manual_seed(seed))


def random_tokens(seed: int, length: int, vocab_size: int) -> np.ndarray:
    """A text as dataset.py stores it."""
    return np.random.default_rng(seed).integers(vocab_size, size=length).astype(np.uint16)
