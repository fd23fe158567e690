"""Snapshots of a run's weights, packed small enough for the page: 8 bits a number, with a scale for each row.

The page's time slider runs the text through the model as it was at each of these steps.
"""

import base64
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dataset import validation_windows
from interpretability.measurements import even_windows, window_losses
from llm import LLM
from support.checkpoint import load_snapshot
from support.cli import UserError

MOST_SNAPSHOTS = 8  # in a page


def read_snapshot(path: Path, model: LLM) -> LLM:
    """The model of a snapshot. Raises UserError if it is not of the run that made `model`."""
    snapshot = load_snapshot(path)
    same_shape = snapshot.architecture() == model.architecture()
    if not same_shape or snapshot.trained_on.get("tokenizer") != model.trained_on.get("tokenizer"):
        raise UserError(f"{path} is not of the run that made the model: move the folder {path.parent} away")
    return snapshot


def snapshot_losses(
    model: LLM, snapshots: Sequence[tuple[int, Path]], last_step: int,
    train_tokens: np.ndarray, val_tokens: np.ndarray, eval_windows: int,
) -> dict[str, list[float]]:  # fmt: skip
    """The loss of each snapshot and the finished model on some training text and on the windows of val_loss.

    The columns have the names of training_log.csv, which begins too late to draw a loss curve from it alone.
    """
    batches = validation_windows(val_tokens, model.max_seq_len, eval_windows)
    held_out = [torch.cat((input_ids, target_ids[-1:])) for input_ids, target_ids in batches]
    windows = {
        "train_loss": even_windows(train_tokens, model.max_seq_len, 4_000, overlap=True),
        "val_loss": torch.stack(held_out),
    }
    columns = {"step": [], "train_loss": [], "val_loss": []}
    models = [*snapshots, (last_step, None)]
    for step, path in tqdm(models, "snapshots", leave=False, dynamic_ncols=True):
        at_step = read_snapshot(path, model) if path else model
        columns["step"].append(step)
        for name, of_text in windows.items():
            columns[name].append(window_losses(at_step, of_text).mean().item())
    return columns


def last_step_of(log: dict[str, list[float]], snapshots: Sequence[tuple[int, Path]]) -> int:
    """The finished model's step: that of the log's last row, or a little later if the run ended early."""
    logged = int(max(log.get("step", []), default=0))
    newest = max((step for step, _ in snapshots), default=0)
    return logged if logged >= newest else newest + 1


def choose_evenly(steps: Sequence[int], last_step: int, count: int) -> list[int]:
    """The indices of `count` steps, or of all if fewer, evenly spread in log(step + 1) up to last_step.

    The first step is always among them. last_step itself is the finished model's and not chosen.
    """
    left = [i for i, step in enumerate(steps) if step < last_step]
    chosen = []
    for k in range(min(count, len(left))):
        place = k / count * math.log1p(last_step)
        nearest = min(left, key=lambda i: abs(math.log1p(steps[i]) - place))
        left.remove(nearest)
        chosen.append(nearest)
    return sorted(chosen)


def pack(model: LLM) -> str:
    """The weights as base64: all rows' scales in float32, then all numbers, divided by the scale, in int8.

    The largest number of a row is 127 or -127 times its scale. Each weight of a norm is a row of its own.
    """
    scales, numbers = [], []
    for parameter in model.parameters():
        rows = parameter.detach().numpy().reshape(len(parameter), -1)
        scale = np.abs(rows).max(axis=1, keepdims=True) / 127
        scales.append(scale.ravel().astype("<f4"))
        numbers.append(np.round(rows / np.maximum(scale, 1e-30)).astype("i1").ravel())
    return base64.b64encode(np.concatenate(scales).tobytes() + np.concatenate(numbers).tobytes()).decode()


def packed_size(model: LLM) -> int:
    """The length of what pack() returns."""
    size = sum(4 * len(parameter) + parameter.numel() for parameter in model.parameters())
    return 4 * math.ceil(size / 3)
