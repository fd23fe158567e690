"""The model: a decoder-only transformer, written out from nn.Linear, nn.Embedding and tensor operations.

Token ids go in; out come, for every position, the logits (unnormalised log-probabilities) of the token after it.
Tensor for tensor this is the dense Qwen3 architecture (2025, arXiv:2505.09388). By these names Hugging Face's transformers has
it, "model." before each and ".weight" behind, and from there each part comes (V = vocab_size, M = the MLP's inner width):

  here, all with .weight     shape    in transformers                where from
  embedding                  (V, D)   embed_tokens; lm_head too      one matrix for both (Press & Wolf 2017, arXiv:1608.05859)
  blocks.N.attention_norm    (D,)     layers.N.input_layernorm       normalised before each part (Xiong et al. 2020, arXiv:2002.04745)
  blocks.N.attention.
    qkv_proj                 (3D, D)  self_attn.{q,k,v}_proj (D, D)  causal attention in heads (Vaswani et al. 2017, eq. 1)
    q_norm, k_norm           (d,)     self_attn.{q,k}_norm           per head (Henry et al. 2020, arXiv:2010.04245)
    no tensor: rotate()               no tensor                      rotary positions (Su et al. 2021, eq. 34)
    o_proj                   (D, D)   self_attn.o_proj               the heads side by side (Vaswani et al. 2017, section 3.2.2)
  blocks.N.mlp_norm          (D,)     layers.N.post_attention_layernorm
  blocks.N.mlp.gate_up_proj  (2M, D)  mlp.{gate,up}_proj (M, D)      SwiGLU (Shazeer 2020, eq. 6), no biases anywhere
  blocks.N.mlp.down_proj     (D, M)   mlp.down_proj
  norm                       (D,)     norm                           RMSNorm, as all of them (Zhang & Sennrich 2019, eq. 4)

In the comments: B sequences in a batch, T tokens in each, S positions attended to, D = d_model, H heads of size d = D / H.
"""

import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decode import decoder

ROTARY_BASE = 10_000.0  # the slowest pair of features turns once in about 2 pi times so many positions
ARCHITECTURE = ("vocab_size", "d_model", "num_heads", "num_layers", "max_seq_len", "dropout")  # all that makes a model
NORM_EPS = 1e-6  # keeps RMSNorm finite where all features are zero


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis  (Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4)."""

    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), NORM_EPS)


def rotary_tables(length: int, head_size: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angles by which features turn at each position: two tensors (length, head_size).

    Features i and i + head_size / 2 are a pair and turn by position * ROTARY_BASE^(-2i / head_size)
    (Su et al. 2021, arXiv:2104.09864, section 3.2.2); so the second half of a row repeats the first.
    """
    frequencies = ROTARY_BASE ** (-torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (a, b) of features of x (..., T, d) to (a cos - b sin, b cos + a sin)  (arXiv:2104.09864, eq. 34).

    Both turned so, the product of a query and a key depends on how far apart they stand, not on where.
    """
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


def attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(Q K^T / sqrt(d)) V, each query looking only at keys up to its own  (arXiv:1706.03762, eq. 1).

    q (B, H, T, d) are the last T of the S positions of k and v (B, H, S, d).
    Returns the values mixed (B, H, T, d) and the weights of the mixture (B, H, T, S), whose rows sum to 1.
    """
    T, S = q.shape[-2], k.shape[-2]
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5  # (B, H, T, S)
    future = torch.full((T, S), float("-inf"), dtype=q.dtype, device=q.device).triu(S - T + 1)
    weights = (scores + future).softmax(dim=-1)
    return weights @ v, weights


def fused_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The mixed values of attention() from one call of PyTorch, which never holds the weights in memory."""
    T, S = q.shape[-2], k.shape[-2]
    if T == 1 or T == S:
        return F.scaled_dot_product_attention(q, k, v, is_causal=T > 1)
    past = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=past)


class Cache:
    """The keys and values of the tokens seen so far, so that a next token costs one step and not the whole text again."""

    def __init__(self, model: "LLM", batch_size: int):
        weight = model.embedding.weight
        shape = (batch_size, model.num_heads, model.max_seq_len, model.d_model // model.num_heads)
        self.layers = [torch.zeros(2, *shape, dtype=weight.dtype, device=weight.device) for _ in model.blocks]
        self.length = 0  # tokens seen; the same in every layer


class Attention(nn.Module):
    """Every position asks (query), and gathers (values) from itself and those before it what answers (keys)."""

    def __init__(self, d_model: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv_proj = nn.Linear(d_model, 3 * d_model, bias=False)  # queries, keys and values in one product
        self.q_norm = RMSNorm(d_model // num_heads)
        self.k_norm = RMSNorm(d_model // num_heads)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cached: Tensor | None = None, start: int = 0) -> Tensor:
        B, T, D = x.shape
        q, k, v = self.qkv_proj(x).view(B, T, 3, self.num_heads, -1).unbind(2)  # each (B, T, H, d)
        q = rotate(self.q_norm(q).transpose(1, 2), cos, sin)  # (B, H, T, d)
        k = rotate(self.k_norm(k).transpose(1, 2), cos, sin)
        v = v.transpose(1, 2)
        if cached is not None:  # (2, B, H, max_seq_len, d)
            cached[0, :, :, start : start + T] = k
            cached[1, :, :, start : start + T] = v
            k, v = cached[:, :, :, : start + T]  # each (B, H, S, d)
        if q.device.type == "cpu" and T > 1 and k.shape[-2] <= 256:
            y, _ = attention(q, k, v)  # on a processor faster than fused: 6 ms, not 17, for 16 windows of 128 in bf16
        else:
            y = fused_attention(q, k, v)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, D))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))  (Shazeer 2020, arXiv:2002.05202, eq. 6), 8/3 as wide inside as outside."""

    def __init__(self, d_model: int):
        super().__init__()
        hidden = -(-8 * d_model // 3 // 32) * 32  # rounded up to a multiple of 32
        self.gate_up_proj = nn.Linear(d_model, 2 * hidden, bias=False)  # gate and up in one product
        self.down_proj = nn.Linear(hidden, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)  # each (B, T, hidden)
        return self.down_proj(F.silu(gate) * up)


class Block(nn.Module):
    """One layer: attention moves information between positions, the MLP works on each; both add to the residual stream."""

    def __init__(self, d_model: int, num_heads: int, dropout: float):
        super().__init__()
        self.attention_norm = RMSNorm(d_model)
        self.attention = Attention(d_model, num_heads)
        self.mlp_norm = RMSNorm(d_model)
        self.mlp = MLP(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cached: Tensor | None = None, start: int = 0) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), cos, sin, cached, start))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))  # (B, T, D)


class LLM(nn.Module):
    """The language model. Its constructor's arguments are attributes, and travel in its state_dict."""

    def __init__(
        self, vocab_size: int, d_model: int, num_heads: int, num_layers: int, max_seq_len: int, dropout: float = 0.0
    ):
        super().__init__()
        if d_model % (2 * num_heads):
            raise ValueError(f"d_model={d_model} does not divide into num_heads={num_heads} heads of an even size")
        self.vocab_size, self.d_model, self.num_heads = vocab_size, d_model, num_heads
        self.num_layers, self.max_seq_len, self.dropout = num_layers, max_seq_len, dropout
        self.tokenizer_key = ""  # of a model from a file: dataset.tokenizer_key() of the tokenizer it was trained with

        self.embedding = nn.Embedding(vocab_size, d_model)  # also the output layer
        self.blocks = nn.ModuleList(Block(d_model, num_heads, dropout) for _ in range(num_layers))
        self.norm = RMSNorm(d_model)
        cos, sin = rotary_tables(max_seq_len, d_model // num_heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.init_weights()

    def init_weights(self) -> None:
        """What is added to the residual stream starts at zero, so that at first each block passes it on unchanged."""
        nn.init.normal_(self.embedding.weight, std=0.1)
        for block in self.blocks:
            for layer in (block.attention.qkv_proj, block.mlp.gate_up_proj):
                nn.init.normal_(layer.weight, std=self.d_model**-0.5)  # keeps the size of what passes through
            for layer in (block.attention.o_proj, block.mlp.down_proj):
                nn.init.zeros_(layer.weight)

    def forward(self, input_ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits (B, T, vocab_size) of the token after each of input_ids (B, T).

        With a cache, input_ids are the tokens after those it has seen, and it remembers them too.
        Raises ValueError if there are more tokens than max_seq_len.
        """
        return self.logits(self.residual(input_ids, cache))

    def residual(self, input_ids: Tensor, cache: Cache | None = None) -> Tensor:
        """What forward() makes logits of: the residual stream behind the last block, (B, T, D)."""
        start = cache.length if cache else 0
        stop = start + input_ids.shape[1]
        if stop > self.max_seq_len:
            raise ValueError(f"{stop} tokens do not fit into the window of max_seq_len={self.max_seq_len}")
        x = F.dropout(self.embedding(input_ids), self.dropout, self.training)  # (B, T, D): the residual stream
        cos, sin = self.cos[start:stop].to(x.dtype), self.sin[start:stop].to(x.dtype)  # (T, d)
        for i, block in enumerate(self.blocks):
            x = block(x, cos, sin, cache.layers[i] if cache else None, start)
        if cache:
            cache.length = stop
        return x

    def logits(self, x: Tensor) -> Tensor:
        """The output layer: (..., D) to (..., vocab_size)."""
        return F.linear(self.norm(x), self.embedding.weight)

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, generator=None
    ) -> Iterator[Tensor]:
        """Endlessly the next token of each of the B sequences input_ids (B, T >= 1): tensors (B,).

        Tokens that no longer fit the window are forgotten, half of it at a time.
        """
        context = input_ids
        cache, new = Cache(self, len(context)), context[:, -self.max_seq_len :]
        small = context.device.type == "cpu" and len(context) <= 4 and cache.layers[0].dtype == torch.float32
        step = decoder(self, cache, NORM_EPS) if small else None  # up to four sequences are faster in numpy
        while True:
            if cache.length + new.shape[1] > self.max_seq_len:
                cache.length, new = 0, context[:, -max(1, self.max_seq_len // 2) :]
            if step:
                logits = torch.from_numpy(step(new.numpy()))
            else:
                logits = self.logits(self.residual(new, cache)[:, -1])
            token = sample(logits.float(), temperature, top_k, top_p, generator)
            yield token
            new = token[:, None]
            context = torch.cat((context, new), dim=1)

    def get_extra_state(self) -> dict:
        """The architecture, which PyTorch saves in the state_dict beside the weights."""
        return {name: getattr(self, name) for name in ARCHITECTURE}

    def set_extra_state(self, state: dict) -> None:
        """Called by load_state_dict. Raises ValueError, naming what differs, if the weights are of another architecture."""
        mine = self.get_extra_state()
        differ = [name for name in mine if name != "dropout" and state.get(name) != mine[name]]
        if differ:
            pairs = ", ".join(f"{name}={state.get(name)} and not {mine[name]}" for name in differ)
            raise ValueError(f"these weights belong to a model with {pairs}")
        self.tokenizer_key = state.get("tokenizer", "")

    @classmethod
    def load(cls, path) -> "LLM":
        """The model saved at path as a state_dict, in evaluation mode on the CPU; no code in the file is run.

        Raises FileNotFoundError, or ValueError if the file is no state_dict of an LLM, is damaged, or holds not-a-numbers.
        """
        try:
            state = read_state(path)
            architecture = {name: state["_extra_state"][name] for name in ARCHITECTURE}
            shapes = {name: value.shape for name, value in state.items() if name != "_extra_state"}
            if not 0 < architecture["num_layers"] <= len(shapes) or not 0 < architecture["max_seq_len"] < 2**17:
                raise ValueError("its architecture is not that of its weights")
            with torch.device("meta"):  # shapes without memory, to compare before any is taken
                expected = {name: value.shape for name, value in cls(**architecture).named_parameters()}
            if shapes != expected or sum(shape.numel() for shape in shapes.values()) > os.path.getsize(path):
                raise ValueError("its architecture is not that of its weights")
            model = cls(**architecture)
            model.load_state_dict(state)
        except OSError:
            raise
        except Exception as error:  # damaged files make torch.load, and then the lines after it, fail in many ways
            reason = str(error).split("\n")[0]
            raise ValueError(f"{path} does not hold the weights of an LLM: {reason}") from error
        if not all(parameter.isfinite().all() for parameter in model.parameters()):
            raise ValueError(f"{path} holds weights that are not finite numbers")
        return model.eval()


def sample(logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0, generator=None) -> Tensor:
    """One token id for each row of logits (B, vocab_size), drawn from softmax(logits / temperature): a tensor (B,).

    top_k > 0 draws from the k likeliest alone (Fan et al. 2018, arXiv:1805.04833); top_p < 1 from the fewest likeliest
    that together have probability top_p (Holtzman et al. 2020, arXiv:1904.09751). Temperature 0 takes the likeliest.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    k = min(top_k, logits.shape[-1]) if top_k else logits.shape[-1]
    logits, ids = logits.topk(k) if k < logits.shape[-1] or top_p < 1 else (logits, None)  # likeliest first
    probabilities = (logits / temperature).softmax(dim=-1)
    if top_p < 1:
        before = probabilities.cumsum(dim=-1) - probabilities  # what the likelier tokens have together
        probabilities = probabilities.masked_fill(before >= top_p, 0)
    choice = torch.multinomial(probabilities, 1, generator=generator)
    return (choice if ids is None else ids.gather(-1, choice)).squeeze(-1)


def read_state(path) -> dict:
    """What torch.save wrote to path, its tensors on the CPU; no code in it is run.

    Raises FileNotFoundError, or another error if the file is no such thing or a bit of its contents has changed.
    """
    data = io.BytesIO(Path(path).read_bytes())
    with zipfile.ZipFile(data) as archive:  # what torch.save writes; torch.load does not look at the checksums
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("it is compressed")
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} in it is damaged")
    data.seek(0)
    return torch.load(data, map_location="cpu", weights_only=True)
