"""The next token on a CPU, in numpy: what LLM.forward does, for one sequence or a few.

A step for one token is mostly the overhead of calls, and a numpy call costs a fifth of a PyTorch call: with
the default model a step takes 0.7 ms here and 2.4 ms in PyTorch. It works in the memory of the model's
weights and of its cache; nothing is copied.

Shapes: B sequences of T tokens, S positions attended to, D = d_model, H heads of size d = D / H.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llm import LLM, NORM_EPS, Cache

MOST_SEQUENCES = 4  # for more of them at once PyTorch is faster: 16 take 0.8 of the time that numpy takes


class BlockWeights(NamedTuple):
    """The weights of a block, by their names in llm.py."""

    attention_norm: np.ndarray  # (D,)
    qkv_proj: np.ndarray  # (3D, D)
    q_norm: np.ndarray  # (d,)
    k_norm: np.ndarray  # (d,)
    o_proj: np.ndarray  # (D, D)
    mlp_norm: np.ndarray  # (D,)
    gate_up_proj: np.ndarray  # (2 hidden, D)
    down_proj: np.ndarray  # (D, hidden)


def fastest_step(model: LLM, batch_size: int) -> Callable[[Tensor, Cache], Tensor] | None:
    """The step for model.generate() at this batch size. None: its own is faster, or the only one."""
    weight = model.embedding.weight
    if type(model) is not LLM:  # numpy_step() is written for llm.py; a changed model computes something else
        return None
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or batch_size > MOST_SEQUENCES:
        return None
    return numpy_step(model)


def numpy_step(model: LLM) -> Callable[[Tensor, Cache], Tensor]:
    """A step for model.generate(): from input_ids (B, T) and a cache to the logits (B, V) of the next token.

    The model is on the CPU, in float32.
    """
    blocks = [block_weights(block) for block in model.blocks]
    embedding, last_norm = as_numpy(model.embedding.weight), as_numpy(model.norm.weight)
    cos, sin = model.cos.numpy(), model.sin.numpy()
    H, d = model.num_heads, model.d_model // model.num_heads

    @np.errstate(over="ignore", invalid="ignore")  # where numbers overflow, sampling ends with an error
    def step(input_ids: Tensor, cache: Cache) -> Tensor:
        B, T = input_ids.shape
        start, S = cache.length, cache.length + T
        x = embedding[input_ids.numpy()]  # (B, T, D)
        for w, layer in zip(blocks, cache.layers):
            # queries, keys and values
            qkv = rms_norm(x, w.attention_norm) @ w.qkv_proj.T
            qkv = qkv.reshape(B, T, 3, H, d).transpose(2, 0, 3, 1, 4)  # (3, B, H, T, d)
            qk = rms_norm(qkv[:2], np.array((w.q_norm, w.k_norm))[:, None, None, None])  # (2, B, H, T, d)
            a, b, c, s = qk[..., : d // 2], qk[..., d // 2 :], cos[start:S], sin[start:S]
            q, k = np.concatenate((a * c - b * s, b * c + a * s), axis=-1)
            cached = layer.numpy()  # (2, B, H, max_seq_len, d)
            cached[0, :, :, start:S] = k
            cached[1, :, :, start:S] = qkv[2]
            k, v = cached[:, :, :, :S]  # each (B, H, S, d)
            # attention
            scores = q @ k.swapaxes(-2, -1) * d**-0.5  # (B, H, T, S)
            if T > 1:
                scores[..., np.triu(np.ones((T, S), dtype=bool), S - T + 1)] = -np.inf
            exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
            y = exponentials / exponentials.sum(axis=-1, keepdims=True) @ v  # (B, H, T, d)
            x = x + y.swapaxes(1, 2).reshape(B, T, -1) @ w.o_proj.T
            # MLP
            gate_up = rms_norm(x, w.mlp_norm) @ w.gate_up_proj.T  # (B, T, 2 hidden)
            gate, up = np.split(gate_up, 2, axis=-1)
            x = x + gate / (1 + np.exp(-gate)) * up @ w.down_proj.T
        cache.length = S
        return torch.from_numpy(rms_norm(x[:, -1], last_norm) @ embedding.T)

    return step


def block_weights(block: torch.nn.Module) -> BlockWeights:
    """The weights of a block of llm.py, looked up by their names."""
    by_name = {}
    for name, parameter in block.named_parameters():
        by_name[name.removesuffix(".weight").split(".")[-1]] = as_numpy(parameter)
    return BlockWeights(**by_name)


def as_numpy(parameter: Tensor) -> np.ndarray:
    return parameter.detach().numpy()


def rms_norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    mean_square = np.einsum("...i,...i->...", x, x)[..., None] / x.shape[-1]
    return x / np.sqrt(mean_square + NORM_EPS) * weight
