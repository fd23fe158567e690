"""Activations recorded during one forward pass, with or without some of the attention heads.

trace() records a whole pass; run_layers() records one layer at a time, for measurements on much text. Both
call the named stages of llm.py, so what they record is what the model computes. Dropout is never applied.

Shapes in the comments: B sequences of T tokens, D = d_model, H heads, L layers, V = vocab_size.
"""

from collections.abc import Collection, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from llm import LLM, Attention, Block, attention


class Layer(NamedTuple):
    """Activations of one layer."""

    weights: Tensor  # (B, H, T, T), the attention weights: query, key; each row sums to 1
    head_outputs: Tensor  # (B, H, T, D), what each head adds to the residual stream; 0 for an ablated head
    attention_output: Tensor  # (B, T, D), the sum of the head outputs
    activations: Tensor  # (B, T, hidden), the neurons of the MLP
    mlp_output: Tensor  # (B, T, D), what the MLP adds to the residual stream
    residual: Tensor  # (B, T, D), the residual stream after the layer


class Trace(NamedTuple):
    """Activations recorded during one forward pass."""

    embedding: Tensor  # (B, T, D), the residual stream before the first layer
    layers: list[Layer]  # L of them
    lens: Tensor  # (L + 1, B, T, V), the logit lens: the output layer on the embedding and after each layer
    logits: Tensor  # (B, T, V), the last entry of the lens


@torch.no_grad()
def trace(model: LLM, input_ids: Tensor, ablated_heads: Collection[tuple[int, int]] = ()) -> Trace:
    """Record the forward pass on input_ids (B, T). Without ablated heads, the logits are LLM.forward's.

    ablated_heads: pairs (layer, head), counted from 0. These heads add nothing to the residual stream.
    Raises ValueError if there are no tokens, more than max_seq_len, or no such head.
    """
    if input_ids.shape[1] == 0:
        raise ValueError("there are no tokens to trace")
    embedding = model.embedding(input_ids)
    layers = list(run_layers(model, input_ids, ablated_heads))
    stream = torch.stack([embedding] + [layer.residual for layer in layers])  # (L + 1, B, T, D)
    lens = model.logits(stream)
    return Trace(embedding, layers, lens, logits=lens[-1])


def run_layers(
    model: LLM, input_ids: Tensor, ablated_heads: Collection[tuple[int, int]] = ()
) -> Iterator[Layer]:
    """Yield the activations of each layer on input_ids (B, T), the first layer first.

    Raises ValueError, at the first layer, if there are more than max_seq_len tokens or no such head.
    """
    for layer, head in ablated_heads:
        if not (0 <= layer < model.num_layers and 0 <= head < model.num_heads):
            raise ValueError(
                f"there is no layer {layer}, head {head}: the model has {model.num_layers} layers "
                f"of {model.num_heads} heads, counted from 0"
            )
    x = model.embedding(input_ids)
    cos, sin = model.rotary(0, input_ids.shape[1])
    for i, block in enumerate(model.blocks):
        ablated_here = [head for layer, head in ablated_heads if layer == i]
        recorded = run_block(block, x, cos, sin, ablated_here)
        yield recorded
        x = recorded.residual


def run_block(
    block: Block, x: Tensor, cos: Tensor, sin: Tensor, ablated_heads: Collection[int] = ()
) -> Layer:
    """The activations of a block on the residual stream x (B, T, D). cos, sin (T, d / 2): from LLM.rotary."""
    q, k, v = block.attention.project(block.attention_norm(x), cos, sin)
    mixed, weights = attention(q, k, v)  # (B, H, T, d) and (B, H, T, T)
    head_outputs = mixed @ output_columns(block.attention)  # (B, H, T, D)
    head_outputs[:, list(ablated_heads)] = 0
    attention_output = head_outputs.sum(dim=1)
    x = x + attention_output

    activations = block.mlp.activations(block.mlp_norm(x))
    mlp_output = block.mlp.down_proj(activations)
    return Layer(weights, head_outputs, attention_output, activations, mlp_output, residual=x + mlp_output)


def output_columns(module: Attention) -> Tensor:
    """o_proj cut into the columns that belong to each head, transposed: (H, d, D).

    o_proj multiplies the mixed values of all heads side by side. So it is a sum of one product per head.
    """
    columns = module.o_proj.weight.unflatten(1, (module.num_heads, -1))  # (D, H, d)
    return columns.permute(1, 2, 0)
