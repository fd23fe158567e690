"""The activations of each layer during a forward pass, for measurements and pictures.

run_layers() calls the named stages of llm.py, so what it records is what the model computes. Dropout is never
applied.

Shapes in the comments: B sequences of T tokens, D = d_model, H heads of size d.
"""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from llm import LLM, Attention, attention


class Layer(NamedTuple):
    """Activations of one layer."""

    weights: Tensor  # (B, H, T, T), the attention weights: query, key; each row sums to 1
    head_outputs: Tensor  # (B, H, T, D), what each head adds to the residual stream
    activations: Tensor  # (B, T, hidden), the neurons of the MLP
    mlp_output: Tensor  # (B, T, D), what the MLP adds to the residual stream
    residual: Tensor  # (B, T, D), the residual stream after the layer


def run_layers(model: LLM, input_ids: Tensor) -> Iterator[Layer]:
    """Yield the activations of each layer on input_ids (B, T), the first layer first.

    Raises ValueError, at the first layer, if there are more than max_seq_len tokens.
    """
    x = model.embedding(input_ids)
    cos, sin = model.rotary(0, input_ids.shape[1])
    for block in model.blocks:
        q, k, v = block.attention.project(block.attention_norm(x), cos, sin)
        mixed, weights = attention(q, k, v)  # (B, H, T, d) and (B, H, T, T)
        head_outputs = mixed @ output_columns(block.attention)  # (B, H, T, D)
        x = x + head_outputs.sum(dim=1)
        activations = block.mlp.activations(block.mlp_norm(x))
        mlp_output = block.mlp.down_proj(activations)
        x = x + mlp_output
        yield Layer(weights, head_outputs, activations, mlp_output, residual=x)


def output_columns(module: Attention) -> Tensor:
    """o_proj cut into the columns that belong to each head, transposed: (H, d, D).

    o_proj multiplies the mixed values of all heads side by side. So it is a sum of one product per head.
    """
    columns = module.o_proj.weight.unflatten(1, (module.num_heads, -1))  # (D, H, d)
    return columns.permute(1, 2, 0)
