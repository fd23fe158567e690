"""The bookkeeping of a training run: how far it has come, its log, its checkpoints, and how it ends.

In every step train.py's loop calls record(), save_snapshot_if_due(), should_stop() and save_if_due(), and
log() where evaluation_due(). Three things can end a run early: a signal (Ctrl-C), a loss that is not finite,
and the end of another process. What was learned is saved: every step done, or, if the loss is not finite, the
weights of the last validation.
"""

import contextlib
import copy
import errno
import math
import signal
import statistics
import time
from argparse import Namespace
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from corpus.token_files import Corpus
from llm import LLM
from support.checkpoint import (
    CHECKPOINT,
    aside_path,
    damaged_checkpoint,
    find_checkpoint,
    keep_previous_model,
    run_identity,
    save_model,
    save_snapshot,
    snapshot_steps,
    state_on_cpu,
    weights_are_finite,
    write_torch_file,
)
from support.cli import UserError
from support.distributed import all_reduce_mean, broadcast_from_rank_zero
from support.training_log import log_text, samples_text, write_log

CHECK_EVERY = 10  # steps; to read a loss from the device, or to ask the other processes, is to wait for them
ESTIMATE_AT = 3 * CHECK_EVERY  # steps after the start, or after resuming, when the time left is printed
MOST_SAMPLES = 40  # lines of training_samples.jsonl, about


class TrainingRun:
    """One run of train.py, resumed from its checkpoint if there is one: a context manager around the loop."""

    def __init__(
        self, model: LLM, optimizer: torch.optim.Optimizer, corpus: Corpus, args: Namespace, epochs: float,
        steps: int, steps_per_epoch: int, rank: int = 0, world_size: int = 1,
    ):  # fmt: skip
        self.model, self.optimizer, self.corpus, self.args = model, optimizer, corpus, args
        self.rank, self.world_size = rank, world_size
        self.steps, self.steps_per_epoch = steps, steps_per_epoch
        self.folder = Path(args.out_dir)
        self.identity = run_identity(args, epochs, corpus)
        self.snapshot_steps = snapshot_steps(self.steps, args.snapshots)

        self.step = 0  # steps done
        self.tokens = 0  # read in them
        self.seconds = 0.0  # spent on them, in all sittings together
        self.interval_seconds = 0.0  # of these, since the last row of the log
        self.interval_tokens = 0
        self.interval_steps = 0
        # The sum of their losses: a list of them, small blocks kept between the large ones of each step,
        # would leave the heap full of gaps that no large block fits into, up to 4 MB a step
        self.interval_loss = torch.zeros((), device=model.embedding.weight.device)
        self.log_rows: list[list] = []
        self.samples: list[dict] = []

        self.received_signals: list[str] = []
        self.last_finite_weights: dict | None = None
        self.bar: tqdm | None = None  # of the current epoch
        self.bar_status: dict[str, str] = {}
        self._resume()
        self.clock = self.saved_at = time.monotonic()
        self.timed_at = self.step, self.clock
        self.step_seconds: deque[float] = deque(maxlen=5)  # a step's mean, in each of the last five intervals
        self.estimate_at = self.step + ESTIMATE_AT

    def _resume(self) -> None:
        """Go on from the checkpoint of this run, or start anew."""
        state = find_checkpoint(self.folder, self.identity) if self.rank == 0 else None
        state = broadcast_from_rank_zero(state)
        if state is not None:
            self._restore(state)
            print(f"  goes on from {self.folder / CHECKPOINT}, after step {self.step:,} of {self.steps:,}")
            self.last_finite_weights = copy.deepcopy(self.model.state_dict())
        elif self.rank == 0:
            keep_previous_model(self.folder)
            self.save_snapshot_if_due()  # of the weights before training

    def __enter__(self) -> "TrainingRun":
        self._signals = record_signals(self.received_signals)
        self._signals.__enter__()
        self._show_epoch()
        return self

    def __exit__(self, error_type, error, traceback) -> None:
        self._signals.__exit__(error_type, error, traceback)
        with contextlib.suppress(OSError):
            self.bar.close()
        if self.rank == 0 and self.step:
            if isinstance(error, RuntimeError) and self.world_size > 1:
                self.save_checkpoint()  # another process is gone; the steps done so far are whole
            if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.EIO):
                self.save_checkpoint()  # our output has no reader any more: Ctrl-C ends tee first
                self._save_model(finished=False)

    # What the loop calls, in this order

    def record(self, loss: Tensor, learning_rate: float, num_tokens: int) -> None:
        """Count a step. Raises UserError if its loss is not finite; the last good weights are saved."""
        self.step += 1
        self.tokens += num_tokens
        self.interval_tokens += num_tokens
        self.learning_rate = learning_rate
        self.interval_steps += 1
        self.interval_loss += loss
        self.bar.update()
        if self.checks_now():
            self._read_clock()
            self._time_steps()
            train_loss = self._train_loss()
            rate = self.interval_tokens / self.interval_seconds
            left = tqdm.format_interval(self._seconds_left())
            self.bar_status |= {"loss": f"{train_loss:.3f}", "tokens/s": f"{rate:,.0f}", "left": left}
            self.bar.set_postfix(self.bar_status, refresh=False)
            if not math.isfinite(train_loss):
                self._end_not_finite("loss", train_loss)
            if self.step >= self.estimate_at:
                self._print_estimate()
        if self.step % self.steps_per_epoch == 0 and self.step < self.steps:
            self._show_epoch()

    def save_snapshot_if_due(self) -> None:
        if self.rank == 0 and self.step in self.snapshot_steps:
            save_snapshot(self.model, self.folder, self.step)

    def evaluation_due(self) -> bool:
        return self.step == self.steps or self.step % self.args.eval_every == 0

    def sample_due(self) -> bool:
        """Whether training_samples.jsonl gets a sample now: about MOST_SAMPLES, spread over the run."""
        if not self.samples:
            return True
        place = self.step * MOST_SAMPLES // self.steps
        return place > self.samples[-1]["step"] * MOST_SAMPLES // self.steps

    def log(self, val_loss: float, sample: str | None) -> None:
        """Add a row to training_log.csv, and a sample, if there is one, to training_samples.jsonl."""
        bits_per_char = val_loss / math.log(2) / self.corpus.chars_per_token
        self.bar_status |= {"validation": f"{val_loss:.3f}", "bits/char": f"{bits_per_char:.3f}"}
        self.bar.set_postfix(self.bar_status, refresh=False)
        if not math.isfinite(val_loss):
            self._end_not_finite("validation loss", val_loss)
        self._check_weights()
        rate = self.interval_tokens / self.interval_seconds
        losses = [self._train_loss(), val_loss, bits_per_char]
        row = [self.step, self.tokens, self.seconds, *losses, self.learning_rate, rate]
        self.log_rows.append(row)
        self._read_clock()  # the time of the validation counts, but not for tokens/s
        self.interval_steps, self.interval_seconds, self.interval_tokens = 0, 0.0, 0
        self.interval_loss.zero_()
        if sample is not None:
            self.samples.append({"step": self.step, "text": sample})
        if self.rank == 0:
            write_log(self.folder, self.log_rows, self.samples)
        self.last_finite_weights = copy.deepcopy(self.model.state_dict())

    def should_stop(self) -> bool:
        """Whether a signal asks to stop. All processes give the same answer."""
        if self.world_size == 1:
            return bool(self.received_signals)
        if not self.checks_now():
            return False
        device = self.model.embedding.weight.device
        signalled = torch.tensor(float(bool(self.received_signals)), device=device)
        return all_reduce_mean(signalled).item() > 0

    def save_if_due(self) -> None:
        """Write a checkpoint if the last one is checkpoint_minutes old."""
        due = time.monotonic() - self.saved_at >= 60 * self.args.checkpoint_minutes
        if due and self.rank == 0 and self.step < self.steps and self.checks_now():
            self.save_checkpoint()

    def finish(self) -> str | None:
        """Save the model. Returns the name of the signal that ended the run early, if one did."""
        ended_early = self.step < self.steps
        if self.rank == 0:
            self._check_weights()
            if ended_early:
                self.save_checkpoint()
            self._save_model(finished=not ended_early)
            if not ended_early:
                (self.folder / CHECKPOINT).unlink(missing_ok=True)
                aside_path(self.folder, self.identity).unlink(missing_ok=True)
        if ended_early:
            return self.received_signals[0] if self.received_signals else "a signal to another process"
        return None

    def _save_model(self, finished: bool) -> None:
        """Write the weights and, as the folder may hold those of another run, their log and samples."""
        write_log(self.folder, self.log_rows, self.samples)
        save_model(self.model, self.corpus, self.folder, finished)

    def checks_now(self) -> bool:
        """Whether this step looks at the loss and at what the other processes do."""
        stopped_alone = self.world_size == 1 and bool(self.received_signals)
        return self.evaluation_due() or self.step % CHECK_EVERY == 0 or stopped_alone

    # Checkpoints

    def save_checkpoint(self) -> None:
        """Write checkpoint.pt, unless weights are not finite: from these no run should go on."""
        if not weights_are_finite(self.model):
            return
        self._read_clock()
        progress = {name: getattr(self, attribute) for name, attribute in PROGRESS_FIELDS.items()}
        progress["interval_loss"] = self.interval_loss.item()
        state = {"run": self.identity, "weights": state_on_cpu(self.model)}
        state["optimizer"] = self.optimizer.state_dict()
        write_torch_file(self.folder / CHECKPOINT, state | {"progress": progress})
        self.saved_at = time.monotonic()

    def _restore(self, state: dict) -> None:
        """Bring model, optimizer and run to where the checkpoint was. Raises UserError if it does not fit."""
        try:
            self.model.load_state_dict(state["weights"])
            self.optimizer.load_state_dict(state["optimizer"])
            progress = state["progress"]
            for name, attribute in PROGRESS_FIELDS.items():
                setattr(self, attribute, progress[name])
            self.interval_loss.fill_(progress["interval_loss"])
            averages_fit = all(
                value.shape in ((), parameter.shape) and bool(value.isfinite().all())
                for parameter, averages in self.optimizer.state.items()
                for value in averages.values()
            )
            seconds = self.seconds + self.interval_seconds
            counted = type(self.step) is int and self.step > 0 and math.isfinite(seconds)
            if not (averages_fit and counted and weights_are_finite(self.model)):
                raise ValueError("it holds impossible numbers")
            log_text(self.log_rows), samples_text(self.samples)  # fails if they are not what it writes
        except Exception as error:
            raise damaged_checkpoint(self.folder / CHECKPOINT, error) from error

    def _check_weights(self) -> None:
        if not weights_are_finite(self.model):
            sizes = [parameter.detach().abs().max() for parameter in self.model.parameters()]
            largest = torch.stack(sizes).max()
            self._end_not_finite("largest weight", largest.item())

    def _end_not_finite(self, what: str, value: float) -> None:
        """Save the last weights that were finite, and raise UserError."""
        kept = "nothing is saved"
        if self.last_finite_weights is not None and self.rank == 0:
            self.model.load_state_dict(self.last_finite_weights)
            self._save_model(finished=False)
            kept = "the last weights that were finite are saved"
        raise UserError(f"the {what} at step {self.step} is {value}; {kept}; try a smaller --learning_rate")

    # Clock and progress bar

    def _read_clock(self) -> None:
        now = time.monotonic()
        self.seconds += now - self.clock
        self.interval_seconds += now - self.clock
        self.clock = now

    def _train_loss(self) -> float:
        return self.interval_loss.item() / self.interval_steps

    def _time_steps(self) -> None:
        """Note how long a step took since the last call."""
        step, then = self.timed_at
        self.timed_at = self.step, time.monotonic()
        self.step_seconds.append((self.timed_at[1] - then) / max(1, self.step - step))

    def _seconds_left(self) -> float:
        """What the rest of the run takes, by a median: compiling and validation fall into few intervals."""
        return statistics.median(self.step_seconds) * (self.steps - self.step)

    def _print_estimate(self) -> None:
        """Say once how long the run will take, and how to make it shorter."""
        self.estimate_at = math.inf
        if self.step == self.steps:
            return
        seconds, tokens = self._seconds_left(), (self.steps - self.step) * self.tokens / self.step
        rate, time_left = tokens / seconds, tqdm.format_interval(seconds)
        line = f"  {tokens:,.0f} tokens to go at {rate:,.0f} tokens/s: about {time_left}"
        if seconds > 120 and self.step == ESTIMATE_AT:  # a resumed run would start anew with other epochs
            line += f"; a fifth of that with --epochs {self.identity['epochs'] / 5:g}"
        tqdm.write(line)

    def _show_epoch(self) -> None:
        """Begin the progress bar of the epoch that the next step belongs to."""
        if self.bar is not None:
            self.bar.close()
        epoch, done = divmod(self.step, self.steps_per_epoch)
        begin = self.step - done
        num_epochs = math.ceil(self.steps / self.steps_per_epoch)
        self.bar = tqdm(
            desc=f"epoch {min(epoch + 1, num_epochs)}/{num_epochs}",
            total=min(self.steps_per_epoch, self.steps - begin),
            initial=done,
            unit=" batches",
            dynamic_ncols=True,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
            disable=self.rank > 0,
        )


# The parts of a checkpoint's "progress" and the attributes of TrainingRun that they keep
PROGRESS_FIELDS = {
    "step": "step",
    "tokens": "tokens",
    "seconds": "seconds",
    "interval": "interval_seconds",
    "interval_tokens": "interval_tokens",
    "interval_steps": "interval_steps",
    "rows": "log_rows",
    "samples": "samples",
}


@contextlib.contextmanager
def record_signals(received: list[str]) -> Iterator[None]:
    """Records the names of signals in a list instead of exiting; puts the old handlers back at the end."""

    def record(number: int, frame) -> None:
        received.append(signal.Signals(number).name)
        with contextlib.suppress(OSError, ValueError):  # if nobody reads it any more
            tqdm.write(f"{received[-1]}: training stops after this step and is saved")

    old = {number: signal.signal(number, record) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
