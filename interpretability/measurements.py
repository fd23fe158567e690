"""What the heads, neurons and layers of a trained model do, measured on held-out text; visualize.py shows it.

trace() is the model's forward pass written out once more, keeping everything that it meets on the way; measure() runs over
held-out text and says how the loss falls with the context, what each head looks at, how much worse the model is without it,
and which texts excite each neuron most. All on the CPU, where LLM.load puts a model.

In the comments: B windows of T tokens, L layers, D = d_model, H heads of size d = D / H, V = vocab_size.
"""

import csv
import json
import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import cli
from dataset import EOS, encode_prompt
from llm import LLM, Block, rotate

BATCH_TOKENS = 2048  # in a batch, about: what is kept of them takes some 50 MB in a model of the default size
BEFORE = 7  # tokens shown before the one that excites a neuron

# What head_scores() measures. A mean is over the positions of the windows that have such a token to look at.
DEFINITIONS = {
    "previous token": "Mean weight on the token just before.",
    "first token": "Mean weight on the first token of the window, where heads with nothing to fetch often look.",
    "sentence end": "Mean weight on the <EOS> tokens up to here, divided by what equal weights would give: 1 is indifference.",
    "same token": "Mean weight on all earlier occurrences of the same token together, where there is one.",
    "induction": "Mean weight on the tokens that followed earlier occurrences of the same token, together (Olsson et al. 2022, "
    "arXiv:2209.11895): what came after it last time is likely to come again.",
    "spread": "Mean of 2^entropy, the entropy of the weights in bits: over how many tokens the head spreads its attention. "
    "1 is a single token; equal weights spread over all that are visible.",
}


# One text


class Layer(NamedTuple):
    """What one layer meets: tensors (B, ...) of layers(), or those of all layers stacked, (L, ...), in a Trace."""

    attention_input: Tensor  # (T, D), the residual stream normalised
    q: Tensor  # (H, T, d), normalised and turned, like k
    k: Tensor  # (H, T, d)
    v: Tensor  # (H, T, d)
    scores: Tensor  # (H, T, T), q k^T / sqrt(d), not yet masked
    weights: Tensor  # (H, T, T), their softmax over the positions up to each query's own; rows sum to 1
    written: Tensor  # (H, T, D), what each head adds to the residual stream; zero for a head that is off
    attention_output: Tensor  # (T, D), the sum of what the heads write
    mlp_input: Tensor  # (T, D), the residual stream normalised again
    activations: Tensor  # (T, hidden), silu(gate) * up: the neurons
    mlp_output: Tensor  # (T, D)
    residual: Tensor  # (T, D), the residual stream after the layer


class Trace(NamedTuple):
    """What a text meets on its way through the model."""

    embedding: Tensor  # (T, D)
    layers: Layer  # each of its tensors (L, ...)
    lens: Tensor  # (L + 1, T, V), the logit lens: the final norm and output layer on the embedding and on each layer's residual
    logits: Tensor  # (T, V)


def run_block(block: Block, x: Tensor, cos: Tensor, sin: Tensor, off: Collection[int] = ()) -> Layer:
    """A block of llm.py on the residual stream x (B, T, D), cos and sin (T, d), step by step; heads in off write nothing."""
    B, T, D = x.shape
    attention, mlp = block.attention, block.mlp
    H, d = attention.num_heads, D // attention.num_heads

    attention_input = block.attention_norm(x)
    q, k, v = attention.qkv_proj(attention_input).view(B, T, 3, H, d).permute(2, 0, 3, 1, 4)  # each (B, H, T, d)
    q, k = rotate(attention.q_norm(q), cos, sin), rotate(attention.k_norm(k), cos, sin)
    scores = q @ k.transpose(-2, -1) * d**-0.5  # (B, H, T, T)
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, -math.inf).softmax(dim=-1)
    columns = attention.o_proj.weight.view(D, H, d).permute(1, 2, 0)  # (H, d, D): each head has its own columns of o_proj
    written = weights @ v @ columns  # (B, H, T, D)
    written[:, list(off)] = 0
    attention_output = written.sum(dim=1)
    x = x + attention_output

    mlp_input = block.mlp_norm(x)
    gate, up = mlp.gate_up_proj(mlp_input).chunk(2, dim=-1)  # each (B, T, hidden)
    activations = F.silu(gate) * up
    mlp_output = mlp.down_proj(activations)
    return Layer(
        attention_input, q, k, v, scores, weights, written, attention_output, mlp_input, activations, mlp_output, x + mlp_output
    )


def layers(model: LLM, input_ids: Tensor, off: Collection[tuple[int, int]] = ()) -> Iterator[Layer]:
    """What each layer in turn meets when it reads input_ids (B, T), without the heads (layer, head) in off."""
    x = model.embedding(input_ids)
    T = input_ids.shape[1]
    cos, sin = model.cos[:T].to(x.dtype), model.sin[:T].to(x.dtype)
    for n, block in enumerate(model.blocks):
        layer = run_block(block, x, cos, sin, [head for of, head in off if of == n])
        yield layer
        x = layer.residual


@torch.no_grad()
def trace(model: LLM, input_ids: Tensor, off: Collection[tuple[int, int]] = ()) -> Trace:
    """The forward pass on input_ids (T,), with all that it meets; the logits are those of LLM.forward.

    off: heads (layer, head), counted from 0, that are switched off: they write nothing to the residual stream.
    Raises ValueError if there are no tokens, more than max_seq_len, or no such head.
    """
    if not 0 < len(input_ids) <= model.max_seq_len:
        raise ValueError(f"{len(input_ids)} tokens; the model reads 1 to {model.max_seq_len}")
    if not all(0 <= n < model.num_layers and 0 <= h < model.num_heads for n, h in off):
        raise ValueError(f"off={sorted(off)}: there are {model.num_layers} layers of {model.num_heads} heads")
    embedding = model.embedding(input_ids)
    met = Layer(*(torch.cat(tensors) for tensors in zip(*layers(model, input_ids[None], off))))
    lens = model.logits(torch.cat((embedding[None], met.residual)))
    return Trace(embedding, met, lens, lens[-1])


def token_label(tokenizer, token: int) -> str:
    """A token as a person can see it: spaces as ·, line ends as ↵, tabs as ⇥, a piece of a character as �."""
    text = tokenizer.decode([token], skip_special_tokens=False)
    return text.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥").replace("\r", "␍")


def attention_png(model: LLM, tokenizer, text: str, path: Path) -> None:
    """Draw the attention weights of all heads on a text: a row of maps a layer, a map a head, queries down and keys across.

    The text begins behind an <EOS>, as in generate.py. Raises UserError if it does not fit into the window.
    """
    from matplotlib.colors import PowerNorm  # here, because it takes a second
    from matplotlib.figure import Figure

    prompt, ids = encode_prompt(tokenizer, text)
    if len(ids) > model.max_seq_len:
        raise cli.UserError(f"the text has {len(ids)} tokens, more than the {model.max_seq_len} that the model sees at once")
    weights = trace(model, torch.tensor(ids)).layers.weights.double().numpy()  # (L, H, T, T)
    T, L, H = len(ids), model.num_layers, model.num_heads
    weights[..., np.triu(np.ones((T, T), dtype=bool), 1)] = np.nan  # the future is left blank
    every = math.ceil(T / 64)  # of a long text only so many tokens are named
    labels = [token_label(tokenizer, i) for i in ids]
    side = min(9, max(2.2, 0.16 * T / every))  # inches
    figure = Figure((H * side + 2.2, L * side + 1.8), layout="constrained")
    maps = figure.subplots(L, H, squeeze=False, sharex=True, sharey=True)
    for (n, h), axes in np.ndenumerate(maps):
        image = axes.imshow(weights[n, h], cmap="viridis", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
        axes.set_title(f"layer {n + 1}, head {h + 1}", fontsize=9)
        axes.set_xticks(range(0, T, every), labels[::every], rotation=90, fontsize=7, parse_math=False)
        axes.set_yticks(range(0, T, every), labels[::every], fontsize=7, parse_math=False)
    figure.supxlabel("looks at", fontsize=10)
    figure.supylabel("token", fontsize=10)
    legend = figure.colorbar(image, ax=maps, shrink=min(1, 4 / (L * side)), aspect=30, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    legend.set_label("attention weight (each row of a map sums to 1)", fontsize=9)
    with cli.replacing(Path(path)) as temporary:
        figure.savefig(temporary, format="png", dpi=min(150, 6000 / max(figure.get_size_inches())))


# Much text


def windows(tokens: np.ndarray, max_seq_len: int, most: int, overlap: bool) -> Tensor:
    """Windows of T = max_seq_len tokens (fewer if the text has fewer) and the one after them: int64 (N, T + 1).

    They are spread evenly over the text and have about `most` tokens in all. If the text is shorter than that, overlap lets
    them overlap: then nearly the same tokens stand at every place in the window, and places can be compared.
    """
    T = min(max_seq_len, len(tokens) - 1)
    if T < 1:
        raise ValueError(f"{len(tokens)} tokens are too few to measure anything on")
    last = len(tokens) - T - 1  # where the last window begins at the latest
    count = min(max(1, most // T), last + 1 if overlap else last // T + 1)
    starts = np.linspace(0, last, count).astype(int)
    return torch.from_numpy(np.asarray(tokens)[starts[:, None] + np.arange(T + 1)].astype(np.int64))


def batches(chosen: Tensor, what: str) -> Iterator[tuple[Tensor, Tensor]]:
    """The windows (N, T + 1) as batches of (input_ids, target_ids), both (B, T), with a progress bar."""
    for batch in tqdm(chosen.split(max(1, BATCH_TOKENS // chosen.shape[1])), what, leave=False, dynamic_ncols=True):
        yield batch[:, :-1], batch[:, 1:]


def losses(logits: Tensor, target_ids: Tensor) -> Tensor:
    """The cross-entropy in nats of each target (B, T) under logits (B, T, V)."""
    return F.cross_entropy(logits.flatten(0, 1), target_ids.flatten(), reduction="none").view(target_ids.shape)


@torch.no_grad()
def loss_by_position(model: LLM, tokens: np.ndarray, most: int = 50_000) -> list[float]:
    """The mean loss in nats at each of the T places in the window: the more stands before a token, the better predicted."""
    chosen = windows(tokens, model.max_seq_len, most, overlap=True)
    found = [losses(model(input_ids), target_ids) for input_ids, target_ids in batches(chosen, "loss by position")]
    return torch.cat(found).mean(dim=0).tolist()


def equal_weights(T: int) -> Tensor:
    """The weights (T, T) of a head that looks at everything visible alike."""
    return torch.ones(T, T).tril() / torch.arange(1, T + 1)[:, None]


def score_weights(weights: Tensor, input_ids: Tensor, eos: int) -> dict[str, Tensor]:
    """The scores of DEFINITIONS for heads with attention weights (B, H, T, T) on input_ids (B, T): name -> tensor (H,)."""
    B, T = input_ids.shape
    past = torch.ones(T, T, dtype=torch.bool).tril()
    earlier = past.tril(-1)
    same = (input_ids[:, :, None] == input_ids[:, None, :]) & earlier  # (B, T, T): query, key
    targets = {
        "previous token": earlier.triu(-1).expand(B, T, T),
        "first token": (earlier & (torch.arange(T) == 0)).expand(B, T, T),
        "sentence end": (input_ids == eos)[:, None, :] & past,
        "same token": same,
        "induction": F.pad(same, (1, -1)) & earlier,  # a place on: the token after
    }
    equal = equal_weights(T)
    scores = {}
    for name, target in targets.items():
        rows = target.any(dim=2).sum().clamp(min=1)
        scores[name] = (weights * target[:, None]).sum(dim=(0, 2, 3)) / rows
        if name == "sentence end":
            scores[name] /= ((equal * target).sum() / rows).clamp(min=1e-9)
    entropy = -torch.special.xlogy(weights, weights).sum(dim=3)  # (B, H, T), in nats
    scores["spread"] = entropy.exp().mean(dim=(0, 2))
    return scores


@torch.no_grad()
def head_scores(model: LLM, tokens: np.ndarray, eos: int, most: int = 8_000) -> dict[str, dict]:
    """What each head looks at: name -> {"definition", "values": [L][H], "equal": what equal weights would score}."""
    input_ids = windows(tokens, model.max_seq_len, most, overlap=True)[:, :-1]
    rows = [score_weights(layer.weights, input_ids, eos) for layer in layers(model, input_ids)]
    T = input_ids.shape[1]
    equal = score_weights(equal_weights(T).expand(len(input_ids), 1, T, T), input_ids, eos)
    return {
        name: {"definition": text, "values": [row[name].tolist() for row in rows], "equal": equal[name].item()}
        for name, text in DEFINITIONS.items()
    }


@torch.no_grad()
def ablation_losses(model: LLM, tokens: np.ndarray, most: int = 4_000) -> list[list[float]]:
    """How much the mean loss rises, in nats, with one head alone switched off: [L][H]. Below 0: better without it."""
    chosen = windows(tokens, model.max_seq_len, most, overlap=True)
    rises = torch.zeros(model.num_layers, model.num_heads, dtype=torch.float64)
    for input_ids, target_ids in batches(chosen, "heads switched off"):
        before = model.embedding(input_ids)
        T = input_ids.shape[1]
        cos, sin = model.cos[:T].to(before.dtype), model.sin[:T].to(before.dtype)
        base = losses(model(input_ids), target_ids).sum()
        for n, layer in enumerate(layers(model, input_ids)):
            for head in range(model.num_heads):  # what comes before the head is the same without it
                x = run_block(model.blocks[n], before, cos, sin, [head]).residual
                for block in model.blocks[n + 1 :]:
                    x = block(x, cos, sin)
                logits = model.logits(x)
                rises[n, head] += (losses(logits, target_ids).sum() - base).item()
            before = layer.residual
    return (rises / chosen[:, 1:].numel()).tolist()


@torch.no_grad()
def neuron_contexts(
    model: LLM, tokens: np.ndarray, count: int = 5, most: int = 60_000, before: int = BEFORE
) -> tuple[np.ndarray, np.ndarray]:
    """The places in about `most` tokens of a text that excite each neuron most, the strongest first.

    Returns token ids (L, hidden, count, before + 1), the token of the place last, uint16 (uint32 for a large vocabulary); and
    the activations there (L, hidden, count), float32. Strong is far from 0 on either side: a neuron may write with either sign.
    All tokens shown were visible to the model; on a short text there may be fewer than `count`.
    """
    chosen = windows(tokens, model.max_seq_len, most, overlap=False)
    before = min(before, chosen.shape[1] - 2)
    contexts = chosen[:, :-1].unfold(1, before + 1, 1)  # (N, T - before, before + 1)
    per_window, first = contexts.shape[1], 0
    values = torch.empty(model.num_layers, model.blocks[0].mlp.down_proj.in_features, 0)  # (L, hidden, up to count)
    places = values.long()
    for input_ids, _ in batches(chosen, "neurons"):
        found = [layer.activations[:, before:].flatten(0, 1).T for layer in layers(model, input_ids)]  # L of (hidden, places)
        new = torch.arange(first, first + found[0].shape[1]).expand(*values.shape[:2], -1)
        first += found[0].shape[1]
        values, places = torch.cat((values, torch.stack(found)), dim=2), torch.cat((places, new), dim=2)
        top = values.abs().topk(min(count, values.shape[2])).indices
        values, places = values.gather(2, top), places.gather(2, top)
    dtype = np.uint16 if model.vocab_size <= 2**16 else np.uint32
    return contexts[places // per_window, places % per_window].numpy().astype(dtype), values.float().numpy()


def read_training(folder: Path) -> dict:
    """What train.py noted: {"log": {column of training_log.csv: numbers}, "samples": lines of training_samples.jsonl}.

    Either is empty where there is no such file. Raises UserError if it cannot be read.
    """
    log = path = folder / "training_log.csv"
    samples = folder / "training_samples.jsonl"
    try:
        rows = list(csv.DictReader(log.read_text().splitlines())) if log.exists() else []
        columns = {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else ())}
        path = samples
        lines = samples.read_text(encoding="utf-8").split("\n") if samples.exists() else []
        return {"log": columns, "samples": [json.loads(line) for line in lines if line.strip()]}
    except (ValueError, TypeError) as error:
        raise cli.UserError(f"{path} is not what train.py writes: {error}") from error


def measure(model: LLM, tokenizer, train_tokens: np.ndarray, val_tokens: np.ndarray, folder: Path) -> dict:
    """All that the page shows of the model's habits; half a minute for a model of the default size on two cores.

    {"base_loss": nats per held-out token, "position_loss": [T], "head_scores": as head_scores(), "ablation": [L][H],
    "neurons": {"contexts", "activations"}, the arrays of neuron_contexts(), "training": as read_training()}.
    """
    position_loss = loss_by_position(model, val_tokens)
    contexts, activations = neuron_contexts(model, train_tokens)
    return {
        "base_loss": sum(position_loss) / len(position_loss),
        "position_loss": position_loss,
        "head_scores": head_scores(model, val_tokens, tokenizer.token_to_id(EOS)),
        "ablation": ablation_losses(model, val_tokens),
        "neurons": {"contexts": contexts, "activations": activations},
        "training": read_training(folder),
    }
