"""Measures what the heads, neurons and layers of a trained model do, averaged over text.

measure() collects, on the CPU, what the page shows: the loss by position, what each head attends to, how much
the loss rises when a head is ablated, the text that activates each neuron most, and the record of training.

Shapes in the comments: B windows of T tokens, H heads, L layers, V = vocab_size.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from corpus.tokenizer import EOS
from interpretability.trace import run_layers
from llm import LLM
from support.training_log import read_log, read_samples

BATCH_TOKENS = 2048  # about; their activations in one layer of the default model take some 20 MB
TOKENS_BEFORE = 7  # shown before the token that activates a neuron

# The scores of head_scores(). A mean is over the positions that have such a token to attend to.
SCORE_DEFINITIONS = {
    "previous token": "Mean weight on the token just before.",
    "first token": "Mean weight on the first token of the window. "
    "Heads that find nothing relevant attend to it.",
    "sentence end": "Mean total weight on all <EOS> tokens up to this position, divided by what uniform "
    "attention would give. 1 means no preference.",
    "same token": "Mean total weight on all earlier occurrences of the same token, where there are any.",
    "induction": "Mean total weight on the tokens that followed earlier occurrences of the same token "
    "(Olsson et al. 2022, arXiv:2209.11895). "
    "Such a head predicts that what followed last time follows again.",
    "spread": "Mean of 2^entropy, with the entropy of the weights in bits: over how many tokens a head "
    "spreads its attention. 1 is a single token; uniform attention spreads over all visible tokens.",
}


def measure(
    model: LLM, tokenizer: Tokenizer, train_tokens: np.ndarray, val_tokens: np.ndarray, folder: Path
) -> dict:
    """Everything the page shows that is not computed as the reader types.

    Returns {"base_loss": nats per held-out token, "position_loss": [T], "head_scores": see head_scores(),
    "ablation": [L][H], "neurons": {"contexts", "activations"}: see neuron_contexts(), "training": {"log": see
    read_log(), "samples": see read_samples()}}. The folder is where train.py wrote both. Raises UserError if
    they cannot be read. It takes half a minute for a model of the default size on two cores.
    """
    training = {"log": read_log(folder), "samples": read_samples(folder)}  # first: the rest takes long
    position_loss = loss_by_position(model, val_tokens)
    contexts, activations = neuron_contexts(model, train_tokens)
    return {
        "base_loss": sum(position_loss) / len(position_loss),
        "position_loss": position_loss,
        "head_scores": head_scores(model, val_tokens, tokenizer.token_to_id(EOS)),
        "ablation": ablation_losses(model, val_tokens),
        "neurons": {"contexts": contexts, "activations": activations},
        "training": training,
    }


# Windows of text


def even_windows(tokens: np.ndarray, max_seq_len: int, max_tokens: int, overlap: bool) -> Tensor:
    """Windows of T tokens and the token after them, spread evenly over the text: int64 (N, T + 1).

    T is max_seq_len, or less if the text is shorter. All together have about max_tokens tokens. With overlap,
    a text shorter than that is cut into overlapping windows. Then nearly the same tokens occur at every
    position of a window, so that positions can be compared. Raises ValueError for fewer than two tokens.
    """
    T = min(max_seq_len, len(tokens) - 1)
    if T < 1:
        raise ValueError(f"{len(tokens)} tokens are too few to measure anything on")
    last_start = len(tokens) - T - 1
    possible = last_start + 1 if overlap else last_start // T + 1
    count = min(max(1, max_tokens // T), possible)
    starts = np.linspace(0, last_start, count).astype(int)
    positions = starts[:, None] + np.arange(T + 1)  # (N, T + 1)
    return torch.from_numpy(np.asarray(tokens)[positions].astype(np.int64))


def window_batches(windows: Tensor, description: str) -> Iterator[tuple[Tensor, Tensor]]:
    """The windows (N, T + 1) as batches of (input_ids, target_ids), both (B, T).

    There is a progress bar if it has a name.
    """
    batches = windows.split(max(1, BATCH_TOKENS // windows.shape[1]))
    for batch in tqdm(batches, description, disable=not description, leave=False, dynamic_ncols=True):
        yield batch[:, :-1], batch[:, 1:]


# Losses


def target_losses(logits: Tensor, target_ids: Tensor) -> Tensor:
    """The cross-entropy (B, T), in nats, of each target (B, T) under logits (B, T, V)."""
    losses = F.cross_entropy(logits.flatten(0, 1), target_ids.flatten(), reduction="none")
    return losses.view(target_ids.shape)


@torch.no_grad()
def window_losses(model: LLM, windows: Tensor, description: str = "") -> Tensor:
    """The loss (N, T), in nats, of each target in windows of text (N, T + 1)."""
    batches = window_batches(windows, description)
    return torch.cat([target_losses(model(input_ids), target_ids) for input_ids, target_ids in batches])


def loss_by_position(model: LLM, tokens: np.ndarray) -> list[float]:
    """The mean loss, in nats, at each of the T positions of a window. It falls while more context helps."""
    windows = even_windows(tokens, model.max_seq_len, 50_000, overlap=True)
    return window_losses(model, windows, "loss by position").mean(dim=0).tolist()


# Heads


@torch.no_grad()
def head_scores(model: LLM, tokens: np.ndarray, eos: int) -> dict[str, dict]:
    """What heads attend to: name -> {"definition", "values": [L][H], "uniform": of uniform attention}."""
    windows = even_windows(tokens, model.max_seq_len, 8_000, overlap=True)
    input_ids = windows[:, :-1]  # (N, T)
    layers = run_layers(model, input_ids)
    scores_of_layers = [score_weights(layer.weights, input_ids, eos) for layer in layers]

    N, T = input_ids.shape
    uniform = score_weights(uniform_weights(T).expand(N, 1, T, T), input_ids, eos)
    found = {}
    for name, definition in SCORE_DEFINITIONS.items():
        values = [scores[name].tolist() for scores in scores_of_layers]
        found[name] = {"definition": definition, "values": values, "uniform": uniform[name].item()}
    return found


def uniform_weights(T: int) -> Tensor:
    """The attention weights (T, T) of a head that attends to all visible tokens alike."""
    return torch.ones(T, T).tril() / torch.arange(1, T + 1)[:, None]


def score_weights(weights: Tensor, input_ids: Tensor, eos: int) -> dict[str, Tensor]:
    """The SCORE_DEFINITIONS scores of attention weights (B, H, T, T) on input_ids (B, T): name -> (H,)."""
    B, T = input_ids.shape
    visible = torch.ones(T, T, dtype=torch.bool).tril()  # query, key
    earlier = visible.tril(-1)
    same_token = (input_ids[:, :, None] == input_ids[:, None, :]) & earlier  # (B, T, T)

    # For each score, the keys that count for each query: (B, T, T)
    counted = {
        "previous token": earlier.triu(-1).expand(B, T, T),
        "first token": (earlier & (torch.arange(T) == 0)).expand(B, T, T),
        "sentence end": (input_ids == eos)[:, None, :] & visible,
        "same token": same_token,
        "induction": F.pad(same_token, (1, -1)) & earlier,  # moved by one key: the token after the same token
    }
    scores = {}
    for name, keys in counted.items():
        num_queries = keys.any(dim=2).sum().clamp(min=1)  # those that have such a key
        scores[name] = (weights * keys[:, None]).sum(dim=(0, 2, 3)) / num_queries

    num_queries = counted["sentence end"].any(dim=2).sum().clamp(min=1)
    uniform = (uniform_weights(T) * counted["sentence end"]).sum() / num_queries
    scores["sentence end"] /= uniform.clamp(min=1e-9)

    entropy = -torch.special.xlogy(weights, weights).sum(dim=3)  # (B, H, T), in nats
    scores["spread"] = entropy.exp().mean(dim=(0, 2))
    return scores


@torch.no_grad()
def ablation_losses(model: LLM, tokens: np.ndarray) -> list[list[float]]:
    """How much the mean loss rises, in nats, if one head is ablated: [L][H]. Negative: better without it."""
    windows = even_windows(tokens, model.max_seq_len, 4_000, overlap=True)
    rises = torch.zeros(model.num_layers, model.num_heads, dtype=torch.float64)  # sums over all tokens
    for input_ids, target_ids in window_batches(windows, "ablated heads"):
        base = target_losses(model(input_ids), target_ids).sum()
        cos, sin = model.rotary(0, input_ids.shape[1])
        for i, layer in enumerate(run_layers(model, input_ids)):
            for head in range(model.num_heads):
                # Earlier layers do not depend on the head: only this MLP and the later layers run again
                changed = layer.residual - layer.mlp_output - layer.head_outputs[:, head]  # (B, T, D)
                changed = changed + model.blocks[i].mlp(model.blocks[i].mlp_norm(changed))
                for block in model.blocks[i + 1 :]:
                    changed = block(changed, cos, sin)
                loss = target_losses(model.logits(changed), target_ids).sum()
                rises[i, head] += (loss - base).item()
    num_tokens = windows[:, 1:].numel()
    return (rises / num_tokens).tolist()


# Neurons


@torch.no_grad()
def neuron_contexts(
    model: LLM, tokens: np.ndarray, count: int = 3, tokens_before: int = TOKENS_BEFORE
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` positions in about 60,000 tokens where each neuron is most active, the most active first.

    Returns the token ids (L, hidden, count, tokens_before + 1) up to each position, and the activations there
    (L, hidden, count), float32. Active means far from 0 on either side, since a neuron writes its vector with
    either sign. The model saw all the tokens returned. A short text may give fewer than `count`.
    """
    windows = even_windows(tokens, model.max_seq_len, 60_000, overlap=False)
    tokens_before = min(tokens_before, windows.shape[1] - 2)
    contexts = windows[:, :-1].unfold(1, tokens_before + 1, 1)  # (N, per_window, tokens_before + 1)
    per_window = contexts.shape[1]

    # The most active so far: the activation, and the number of its position, counted over all windows
    hidden = model.blocks[0].mlp.down_proj.in_features
    top_values = torch.empty(model.num_layers, hidden, 0)  # (L, hidden, up to count)
    top_positions = top_values.long()
    num_done = 0
    for input_ids, _ in window_batches(windows, "neurons"):
        # Positions with fewer than tokens_before tokens before them are left out
        layers = run_layers(model, input_ids)
        activations = [layer.activations[:, tokens_before:].flatten(0, 1).T for layer in layers]
        new_values = torch.stack(activations)  # (L, hidden, positions in the batch)
        num_new = new_values.shape[2]
        new_positions = torch.arange(num_done, num_done + num_new).expand(new_values.shape)
        num_done += num_new

        values = torch.cat((top_values, new_values), dim=2)
        positions = torch.cat((top_positions, new_positions), dim=2)
        best = values.abs().topk(min(count, values.shape[2])).indices
        top_values, top_positions = values.gather(2, best), positions.gather(2, best)

    top_contexts = contexts[top_positions // per_window, top_positions % per_window]
    return top_contexts.numpy(), top_values.float().numpy()
