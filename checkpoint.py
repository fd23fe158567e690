"""What keeps a run from being lost: checkpoint.pt, from which train.py goes on after a crash, a signal or a full disk.

It holds the weights, Adam's averages, the step, the log so far, and what the result depends on: the hyperparameters, the text
and the tokenizer. Where in the text a step reads, and its dropout, follow from the seed and the step, so the run that goes
on ends with the same weights, bit for bit, as one that was never stopped.
"""

import csv
import dataclasses
import io
import json
import math
import os
import time
from pathlib import Path

import torch

import cli
from llm import read_state

NAME = "checkpoint.pt"
LOG = "step tokens seconds train_loss val_loss bits_per_char learning_rate tokens_per_second".split()
# Hyperparameters that may change on the way: where things are, what is measured and when. All others shape the result.
FREE = "out_dir dataset text_column sample_epochs eval_every eval_windows checkpoint_minutes".split()


@dataclasses.dataclass
class Progress:
    """How far a run has come."""

    step: int = 0  # steps done
    seconds: float = 0.0  # spent on them, in all the sittings together
    interval: float = 0.0  # of these, since the last row of the log
    recent: list[torch.Tensor] = dataclasses.field(default_factory=list)  # losses since the last row, each a tensor ()
    rows: list[list] = dataclasses.field(default_factory=list)  # of training_log.csv
    samples: list[dict] = dataclasses.field(default_factory=list)  # of training_samples.jsonl

    @property
    def best(self) -> float:
        """The lowest validation loss so far."""
        return min((row[LOG.index("val_loss")] for row in self.rows), default=math.inf)

    def tick(self) -> None:
        """Count the time since the last tick, or since this sitting began."""
        now = time.monotonic()
        self.seconds, self.interval = self.seconds + now - self.ticked, self.interval + now - self.ticked
        self.ticked = now

    def __post_init__(self):
        self.ticked = time.monotonic()


def lock(out: Path):
    """Hold the folder against a second run until this process ends, however it ends. Keep what this returns.

    Raises UserError if another run holds it. Removes what a killed run left half-written.
    """
    file = open(out / (NAME + ".lock"), "w")
    try:
        import fcntl  # not on Windows, where nothing guards the folder

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except OSError as error:
        raise cli.UserError(f"another run is training in {out}: wait, or give this one its own --out_dir") from error
    for path in out.glob("*.tmp"):
        if path.name.startswith((NAME, "parameters.pt2.", "bpe_tokenizer.json.", "training_")):
            path.unlink(missing_ok=True)
    return file


def identity(args, epochs: float, text_key: str, tokenizer_key: str) -> dict:
    """What the result of a run depends on: a run goes on only from a checkpoint in which all of it is the same."""
    shaping = {name: value for name, value in sorted(vars(args).items()) if name not in FREE}
    return shaping | {"epochs": epochs, "text": text_key, "tokenizer": tokenizer_key}


def write(path: Path, state: dict) -> None:
    """torch.save, flushed to the disk and renamed: the file at path is whole, old or new. Raises OSError if that fails."""
    data = io.BytesIO()  # torch.save to a file that cannot be written ends in an error that says nothing of the disk
    torch.save(state, data)
    with cli.replacing(path) as temporary:
        temporary.write_bytes(data.getbuffer())


def on_cpu(model) -> dict:
    """The model's state_dict with its tensors on the CPU."""
    return {name: value.cpu() if torch.is_tensor(value) else value for name, value in model.state_dict().items()}


def save(out: Path, model, optimizer, progress: Progress, run: dict) -> None:
    """Write checkpoint.pt; run is the identity() of the run. Weights that are not finite are not worth keeping."""
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        return
    progress.tick()
    state = {name: getattr(progress, name) for name in ("step", "seconds", "interval", "rows", "samples", "best")}
    state["recent"] = torch.tensor([loss.item() for loss in progress.recent], dtype=torch.float32)
    write(out / NAME, {"run": run, "weights": on_cpu(model), "optimizer": optimizer.state_dict(), "progress": state})


def find(out: Path, run: dict) -> dict | None:
    """The checkpoint of this run, if there is one. That of a run in which something differs is named and put aside.

    Raises UserError if the file is damaged.
    """
    path = out / NAME
    if not path.exists():
        return None
    try:
        state = read_state(path)
        if not isinstance(state, dict) or not {"run", "weights", "optimizer", "progress"} <= state.keys():
            raise ValueError("something is missing from it")
        if not isinstance(state["run"], dict):
            raise ValueError("something is missing from it")
    except OSError:
        raise
    except Exception as error:  # damaged files fail in many ways
        raise damaged(path, error) from error
    old = state["run"]
    differ = [name for name in run | old if old.get(name) != run.get(name)]
    if not differ:
        return state
    aside = next(p for n in range(1, 10**6) if not (p := out / f"{NAME}.{n}").exists())
    os.rename(path, aside)
    pairs = (f"{n}={old.get(n)!r} and not {run.get(n)!r}" for n in differ if n not in ("text", "tokenizer"))
    what = ", ".join([*pairs, *(f"another {n}" for n in ("text", "tokenizer") if n in differ)])
    print(f"  {path} is of a run with {what}: it is kept as {aside.name}, and training starts anew")
    return None


def damaged(path: Path, error: Exception) -> cli.UserError:
    reason = (str(error) or type(error).__name__).split("\n")[0]
    return cli.UserError(f"{path} is damaged, or no checkpoint: {reason}; move it away, and training starts anew")


def restore(state: dict | None, out: Path, model, optimizer) -> Progress:
    """Bring the model and the optimizer to where the checkpoint was. Raises UserError if it does not fit them."""
    if state is None:
        return Progress()
    try:
        model.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        progress = Progress(**{name: value for name, value in state["progress"].items() if name != "best"})
        device = next(model.parameters()).device
        progress.recent = list(progress.recent.to(device).unbind())
        shapes_fit = all(
            value.shape in ((), parameter.shape) and value.isfinite().all()
            for parameter, values in optimizer.state.items()
            for value in values.values()
        )
        finite = all(parameter.isfinite().all() for parameter in model.parameters())
        whole = type(progress.step) is int and progress.step > 0 and len(optimizer.state) == len(list(model.parameters()))
        if not (shapes_fit and finite and whole and math.isfinite(progress.seconds + progress.interval)):
            raise ValueError("it holds numbers that cannot be")
        log_text(progress.rows), samples_text(progress.samples)
    except Exception as error:
        raise damaged(out / NAME, error) from error
    return progress


def log_text(rows: list[list]) -> str:
    """training_log.csv."""
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(LOG)
    for row in rows:
        table.writerow(f"{value:.6g}" if isinstance(value, float) else value for value in row)
    return file.getvalue()


def samples_text(samples: list[dict]) -> str:
    """training_samples.jsonl."""
    return "".join(json.dumps({"step": s["step"], "text": s["text"]}, ensure_ascii=False) + "\n" for s in samples)


def write_log(out: Path, progress: Progress) -> None:
    """Write training_log.csv and training_samples.jsonl, each whole."""
    texts = {"training_log.csv": log_text(progress.rows), "training_samples.jsonl": samples_text(progress.samples)}
    for name, text in texts.items():
        with cli.replacing(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def finish(out: Path) -> None:
    """The run has ended and its weights are saved: nothing is to go on from."""
    (out / NAME).unlink(missing_ok=True)
