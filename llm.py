"""The model: a decoder-only transformer, written out from nn.Linear, nn.Embedding and tensor functions.

It takes token ids and returns, at every position, the logits (unnormalised log-probabilities) of the next
token. The architecture is the dense Qwen3 (2025, arXiv:2505.09388): publishing/qwen3.py lists its names.

Shapes: B sequences of T tokens, S positions attended to, D = d_model, H heads of size d = D / H.
"""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROTARY_BASE = 10_000.0  # the slowest pair of features turns once in about 2 pi times this many positions
NORM_EPS = 1e-6  # keeps RMSNorm finite where all features are zero


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, last axis  (Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4)."""

    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), NORM_EPS)


def rotary_tables(length: int, head_size: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angles by which pairs of features turn: two tensors (length, head_size / 2).

    Pair i, the features i and i + head_size / 2, turns by position * ROTARY_BASE^(-2i / head_size)
    (Su et al. 2021, arXiv:2104.09864, section 3.2.2).
    """
    frequencies = ROTARY_BASE ** (-torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (a, b) of x (..., T, d) to (a cos - b sin, b cos + a sin)  (arXiv:2104.09864, eq. 34).

    After that, the product of a query and a key depends on the distance between them, not on where they are.
    """
    a, b = x.unflatten(-1, (2, -1)).unbind(-2)  # the halves of each head: (..., T, d / 2)
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-2).flatten(-2)  # torch.cat: 5% slower


def attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(Q K^T / sqrt(d)) V, where a query sees keys up to its own position  (arXiv:1706.03762, eq. 1).

    q (B, H, T, d) holds the last T of the S positions of k and v (B, H, S, d). Returns the mixed values
    (B, H, T, d) and the attention weights (B, H, T, S), whose rows sum to 1.
    """
    T, S = q.shape[-2], k.shape[-2]
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5  # (B, H, T, S)
    future = torch.full((T, S), float("-inf"), dtype=q.dtype, device=q.device).triu(S - T + 1)
    weights = (scores + future).softmax(dim=-1)
    return weights @ v, weights


class Attention(nn.Module):
    """Each position asks with its query, and collects values from positions up to it whose keys answer."""

    def __init__(self, d_model: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv_proj = nn.Linear(d_model, 3 * d_model, bias=False)  # queries, keys and values in one product
        self.q_norm = RMSNorm(d_model // num_heads)  # bounds the scores: Henry et al. 2020, arXiv:2010.04245
        self.k_norm = RMSNorm(d_model // num_heads)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, both normalised and turned, and values of x (B, T, D), each (B, H, T, d)."""
        q, k, v = self.qkv_proj(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin), v

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cached: Tensor | None = None) -> Tensor:
        """(B, T, D) to (B, T, D). cached (2, B, H, S, d): S - T earlier keys and values, room for T."""
        q, k, v = self.project(x, cos, sin)
        if cached is not None:
            cached[:, :, :, -x.shape[1] :] = torch.stack((k, v))
            k, v = cached  # each (B, H, S, d)
        T, S = q.shape[2], k.shape[2]
        if T > 1 and (S > T or x.device.type == "cpu" and S <= 256):
            y, _ = attention(q, k, v)  # 6 ms for 16 windows of 128; the call takes 17 (bf16) or 22 (float32)
        else:  # the same in one PyTorch call, which never stores the weights; its mask needs T = S
            y = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1)
        return self.o_proj(y.transpose(1, 2).flatten(2))  # the heads side by side


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))  (Shazeer 2020, arXiv:2002.05202, eq. 6)."""

    def __init__(self, d_model: int):
        super().__init__()
        hidden = 32 * math.ceil(8 * d_model / 3 / 32)  # 8/3 of d_model, rounded up to a multiple of 32
        self.gate_up_proj = nn.Linear(d_model, 2 * hidden, bias=False)  # gate and up in one product
        self.down_proj = nn.Linear(hidden, d_model, bias=False)

    def activations(self, x: Tensor) -> Tensor:
        """The activations of the hidden neurons: (B, T, D) to (B, T, hidden)."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return F.silu(gate) * up

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activations(x))


class Block(nn.Module):
    """A layer: attention mixes positions, the MLP works on each. Both add to the residual stream."""

    def __init__(self, d_model: int, num_heads: int, dropout: float):
        super().__init__()
        self.attention_norm = RMSNorm(d_model)  # before each part: Xiong et al. 2020, arXiv:2002.04745
        self.attention = Attention(d_model, num_heads)
        self.mlp_norm = RMSNorm(d_model)
        self.mlp = MLP(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cached: Tensor | None = None) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), cos, sin, cached))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))  # (B, T, D)


class Cache:
    """Keys and values of the tokens read so far. With them, the next token costs one step, not all again."""

    def __init__(self, model: "LLM", batch_size: int):
        shape = (2, batch_size, model.num_heads, model.max_seq_len, model.d_model // model.num_heads)
        self.layers = [model.embedding.weight.new_zeros(shape) for _ in model.blocks]
        self.length = 0  # tokens read; the same in every layer


class LLM(nn.Module):
    """The language model. Its constructor's arguments are attributes, and are saved in its state_dict."""

    def __init__(
        self, vocab_size: int, d_model: int, num_heads: int, num_layers: int, max_seq_len: int,
        dropout: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        if d_model % (2 * num_heads):
            raise ValueError(f"{d_model=} does not divide into {num_heads=} heads of an even size")
        self.vocab_size, self.d_model, self.num_heads = vocab_size, d_model, num_heads
        self.num_layers, self.max_seq_len, self.dropout = num_layers, max_seq_len, dropout
        self.trained_on = {}  # what train.py saves about the text: data set, split, tokenizer

        self.embedding = nn.Embedding(vocab_size, d_model)  # also the output layer (arXiv:1608.05859)
        self.blocks = nn.ModuleList(Block(d_model, num_heads, dropout) for _ in range(num_layers))
        self.norm = RMSNorm(d_model)
        cos, sin = rotary_tables(max_seq_len, d_model // num_heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

        # The embedding is the output layer, too. So at first each token predicts itself, with logit 0.1 D:
        # the loss is about that (19.2 for D = 192, not ln(vocab_size) = 8.5), and falls within a few steps.
        nn.init.normal_(self.embedding.weight, std=0.1)
        for block in self.blocks:
            for layer in (block.attention.qkv_proj, block.mlp.gate_up_proj):
                nn.init.normal_(layer.weight, std=d_model**-0.5)  # outputs as large as inputs
            for layer in (block.attention.o_proj, block.mlp.down_proj):
                nn.init.zeros_(layer.weight)  # at first, each block passes the residual stream on unchanged

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits (B, T, vocab_size) of the token after each of input_ids (B, T).

        Raises ValueError if there are more tokens than max_seq_len.
        """
        return self.logits(self.residual(input_ids))

    def residual(self, input_ids: Tensor, cache: Cache | None = None) -> Tensor:
        """The residual stream (B, T, D) after the last block. With a cache, input_ids continue its tokens."""
        start = cache.length if cache else 0
        stop = start + input_ids.shape[1]
        x = F.dropout(self.embedding(input_ids), self.dropout, self.training)  # (B, T, D)
        cos, sin = self.rotary(start, stop)
        for i, block in enumerate(self.blocks):
            x = block(x, cos, sin, cache.layers[i][:, :, :, :stop] if cache else None)
        if cache:
            cache.length = stop
        return x

    def rotary(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine (T, d / 2) of positions start to stop - 1. Raises ValueError beyond max_seq_len."""
        if stop > self.max_seq_len:
            raise ValueError(f"{stop} tokens do not fit into the window of max_seq_len={self.max_seq_len}")
        return self.cos[start:stop], self.sin[start:stop]

    def logits(self, x: Tensor) -> Tensor:
        """The last norm and the output layer: (..., D) to (..., vocab_size)."""
        return F.linear(self.norm(x), self.embedding.weight)

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
        generator: torch.Generator | None = None, step: Callable[[Tensor, Cache], Tensor] | None = None,
    ) -> Iterator[Tensor]:  # fmt: skip
        """Yield, without end, the next token of each of the B sequences input_ids (B, T >= 1): tensors (B,).

        step(input_ids, cache) computes the logits (B, vocab_size) of the token after the last; another way to
        do it may be given. When the window is full, its older half is dropped.
        """
        step = step or (lambda input_ids, cache: self.logits(self.residual(input_ids, cache)[:, -1]))
        cache, new = Cache(self, len(input_ids)), input_ids[:, -self.max_seq_len :]  # new: not in it yet
        while True:
            if cache.length + new.shape[1] > self.max_seq_len:
                cache.length, new = 0, input_ids[:, -max(1, self.max_seq_len // 2) :]
            token = sample(step(new, cache).float(), temperature, top_k, top_p, generator)
            yield token
            new = token[:, None]
            input_ids = torch.cat((input_ids, new), dim=1)

    def architecture(self) -> dict[str, int | float]:
        """The constructor's arguments."""
        names = ("vocab_size", "d_model", "num_heads", "num_layers", "max_seq_len", "dropout")
        return {name: getattr(self, name) for name in names}

    def get_extra_state(self) -> dict:
        """What PyTorch saves in the state_dict beside the weights."""
        return self.trained_on | self.architecture()

    def set_extra_state(self, state: dict) -> None:
        """Called by load_state_dict. Raises ValueError if the weights are of another architecture."""
        for name, value in self.architecture().items():
            if name != "dropout" and state.get(name) != value:
                theirs = f"{name}={state.get(name)}"
                raise ValueError(f"these weights belong to a model with {theirs} and not {value}")
        self.trained_on = {name: value for name, value in state.items() if name not in self.architecture()}

    @classmethod
    def load(cls, path) -> "LLM":
        """The model that train.py saved at path, in evaluation mode, on the CPU."""
        from support.checkpoint import load_weights  # here, so that the model itself needs PyTorch alone

        return load_weights(path)


def sample(
    logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """Draw one token id (B,) for each row of logits (B, vocab_size) from softmax(logits / temperature).

    top_k > 0 draws from the k likeliest tokens only (Fan et al. 2018, arXiv:1805.04833). top_p < 1 draws from
    the fewest likeliest tokens that together have probability top_p of what top_k leaves (Holtzman et al.
    2020, arXiv:1904.09751). Temperature 0 (below 1e-6) takes the likeliest token.
    """
    if temperature < 1e-6:
        return logits.argmax(dim=-1)
    logits, ids = logits.topk(min(top_k or logits.shape[-1], logits.shape[-1]))  # the likeliest first
    probabilities = (logits / temperature).softmax(dim=-1)
    if top_p < 1:
        likelier = probabilities.cumsum(dim=-1) - probabilities  # the probability of all likelier tokens
        likelier[:, 0] = -1  # the likeliest is always kept
        probabilities = probabilities.masked_fill(likelier >= top_p, 0)
    choice = torch.multinomial(probabilities, 1, generator=generator)
    return ids.gather(-1, choice).squeeze(-1)
