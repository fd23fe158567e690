"""The files of weights: parameters.pt2, the model; checkpoint.pt, from which a run goes on; and snapshots/.

A checkpoint holds the weights, Adam's averages, the step, the log so far, and everything that the result
depends on: the hyperparameters, the text and the tokenizer. The windows of a step and its dropout follow from
the seed and the step. So a run that goes on from a checkpoint ends with the same weights as one that was
never stopped: bit for bit if neither is compiled and the processor is the same, otherwise up to rounding.
"""

import contextlib
import hashlib
import inspect
import io
import json
import os
import shutil
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import IO

import torch
from tokenizers import Tokenizer

from corpus.token_files import Corpus
from corpus.tokenizer import load_tokenizer, tokenizer_key
from llm import LLM
from support.cli import MAX_SEQ_LEN, UserError, atomic_write
from support.training_log import LOG, SAMPLES

PARAMETERS, TOKENIZER, CHECKPOINT = "parameters.pt2", "bpe_tokenizer.json", "checkpoint.pt"
SNAPSHOTS, SNAPSHOT_PATTERN = "snapshots", f"step-{'[0-9]' * 8}.pt2"
MADE_FROM_A_MODEL = [TOKENIZER, LOG, SAMPLES, SNAPSHOTS, "evaluation.json", "evaluation.png", "huggingface"]
MADE_FROM_A_MODEL += ["case_circuit.json", "case_circuit.png", "case_circuit_pair.json"]
MADE_FROM_A_MODEL += ["case_circuit_pair.png", "emergence.json", "emergence.png", "visualization.html"]
# Hyperparameters that may differ when a run goes on: where things are, what is measured and when, and how
# products are rounded (precision, compile). All others shape the result.
MAY_CHANGE_ON_RESUME = (
    "out_dir dataset text_column sample_epochs eval_every eval_windows checkpoint_minutes snapshots "
    "precision compile given"
).split()


# Reading


def read_torch_file(path: Path) -> object:
    """What torch.save wrote to path, with its tensors on the CPU. No code in the file is run.

    Raises OSError if the file cannot be read, and other errors if it is no such file or a bit has changed.
    """
    data = io.BytesIO(Path(path).read_bytes())
    with zipfile.ZipFile(data) as archive:  # the format of torch.save; torch.load ignores the checksums
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("it is compressed")
        damaged_entry = archive.testzip()
        if damaged_entry:
            raise ValueError(f"{damaged_entry} in it is damaged")
    data.seek(0)
    return torch.load(data, map_location="cpu", weights_only=True)


def load_weights(path: Path | str) -> LLM:
    """The model saved at path as a state_dict, in evaluation mode on the CPU. No code in the file is run.

    Raises OSError if the file cannot be read, and ValueError if it is no state_dict of an LLM, is damaged, or
    holds numbers that are not finite.
    """
    try:
        state = read_torch_file(path)
        architecture = {name: state["_extra_state"][name] for name in inspect.signature(LLM).parameters}
        shapes = {name: value.shape for name, value in state.items() if name != "_extra_state"}
        layers, length = architecture["num_layers"], architecture["max_seq_len"]
        if not 0 < layers <= len(shapes) or not 0 < length <= MAX_SEQ_LEN:
            raise ValueError("its architecture is not that of its weights")
        with torch.device("meta"):  # shapes without memory, to compare before any memory is taken
            expected = {name: value.shape for name, value in LLM(**architecture).named_parameters()}
        if shapes != expected or sum(shape.numel() for shape in shapes.values()) > os.path.getsize(path):
            raise ValueError("its architecture is not that of its weights")
        model = LLM(**architecture)
        model.load_state_dict(state)
        if not isinstance(model.trained_on.get("settings", {}), dict):
            raise ValueError("its settings are no dictionary")
    except OSError:
        raise
    except Exception as error:  # a damaged file can make torch.load and the lines after it fail in many ways
        reason = str(error).split("\n")[0]
        raise ValueError(f"{path} does not hold the weights of an LLM: {reason}") from error
    if not weights_are_finite(model):
        raise ValueError(f"{path} holds weights that are not finite numbers")
    return model.eval()


def load_model(folder: Path) -> tuple[LLM, Tokenizer]:
    """The trained model in a folder, and its tokenizer. Raises UserError unless both are there and match."""
    try:
        model = load_snapshot(folder / PARAMETERS)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: train a model first with  python train.py") from error
    tokenizer = load_tokenizer(folder / TOKENIZER)
    size = tokenizer.get_vocab_size()
    key = model.trained_on.get("tokenizer", "")  # older weights have none
    if size != model.vocab_size or key not in ("", tokenizer_key(tokenizer)):
        mismatch = f"do not belong together ({size} and {model.vocab_size} entries)"
        raise UserError(f"{folder / TOKENIZER} and {PARAMETERS} {mismatch}: run  python train.py  again")
    return model, tokenizer


def snapshot_paths(folder: Path) -> list[tuple[int, Path]]:
    """The snapshots of the run in a folder: (step, path), in the order of the steps."""
    paths = (folder / SNAPSHOTS).glob(SNAPSHOT_PATTERN)
    return sorted((int(path.stem.removeprefix("step-")), path) for path in paths)


def load_snapshot(path: Path) -> LLM:
    """The model of a file of weights, in evaluation mode on the CPU. Raises UserError if the file is none."""
    try:
        return load_weights(path)
    except ValueError as error:
        raise UserError(str(error)) from error


def weights_are_finite(model: torch.nn.Module) -> bool:
    return all(bool(parameter.isfinite().all()) for parameter in model.parameters())


# Writing


def write_torch_file(path: Path, state: dict) -> None:
    """torch.save, flushed to the disk and renamed: the file at path is always whole. May raise OSError."""
    data = io.BytesIO()  # if the disk is full, torch.save to a file raises an error that does not say so
    torch.save(state, data)
    with atomic_write(path) as temporary:
        temporary.write_bytes(data.getbuffer())


def state_on_cpu(model: LLM) -> dict:
    """The model's state_dict with its tensors on the CPU."""
    state = model.state_dict().items()
    return {name: value.cpu() if torch.is_tensor(value) else value for name, value in state}


def save_model(model: LLM, corpus: Corpus, folder: Path, finished: bool) -> None:
    """Write the weights, with whether the run has finished, and the tokenizer that belongs to them."""
    model.trained_on["finished"] = finished
    with atomic_write(folder / TOKENIZER) as temporary:  # renamed last, if the weights could be written
        temporary.write_text(corpus.tokenizer.to_str(pretty=True), encoding="utf-8")
        write_torch_file(folder / PARAMETERS, state_on_cpu(model))


def snapshot_steps(steps: int, count: int) -> set[int]:
    """The steps at which weights are kept: `count` of them, evenly spaced in log(step + 1).

    Step 0 is one of them, the last step is not. The first lie close together; some may be the same one.
    """
    return {round((steps + 1) ** (i / count)) - 1 for i in range(count)} - {steps}


def save_snapshot(model: LLM, folder: Path, step: int) -> None:
    """Write the weights at a step in float16, unless some are not finite, or too large for float16."""
    state = state_on_cpu(model).items()
    state = {name: value.half() if torch.is_tensor(value) else value for name, value in state}
    if all(bool(value.isfinite().all()) for value in state.values() if torch.is_tensor(value)):
        (folder / SNAPSHOTS).mkdir(exist_ok=True)
        write_torch_file(folder / SNAPSHOTS / f"step-{step:08}.pt2", state)


def keep_previous_model(folder: Path) -> None:
    """Move the finished model in the folder, with all that was made of it, into previous/.

    A run calls this when it takes the folder over. Unfinished weights are left to be overwritten: they must
    not displace what is in previous/. Their snapshots are removed. The files are moved into a folder beside
    it, which then takes its place; an interrupted move goes on.
    """
    moving, previous, old = (folder / name for name in ("previous.moving", "previous", "previous.old"))
    if not holds_finished_model(folder) and not moving.exists():
        for _, path in snapshot_paths(folder):
            path.unlink()
        return
    moving.mkdir(exist_ok=True)
    for name in (PARAMETERS, *MADE_FROM_A_MODEL):
        if (folder / name).exists():
            os.replace(folder / name, moving / name)
    if previous.is_dir() and not previous.is_symlink():
        for path in previous.iterdir():
            if path.name not in (PARAMETERS, *MADE_FROM_A_MODEL):  # the person's own: it stays in previous/
                os.replace(path, moving / path.name)
    remove(old)
    if previous.is_symlink() or previous.exists():
        os.replace(previous, old)
    os.replace(moving, previous)
    remove(old)
    print(f"  the model trained here before is kept in {previous}")


def remove(path: Path) -> None:
    """Remove a folder with all that is in it, a file, or a link, but not what it leads to."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def holds_finished_model(folder: Path) -> bool:
    """Whether parameters.pt2 is of a run that ended.

    Older files do not say; beside a checkpoint they count as unfinished. What cannot be read counts as
    finished, so that it is kept.
    """
    if not (folder / PARAMETERS).exists():
        return False
    try:
        return read_torch_file(folder / PARAMETERS)["_extra_state"]["finished"]
    except KeyError:
        return not (folder / CHECKPOINT).exists()
    except Exception:  # whatever a file that is none, or a damaged one, makes of it
        return True


# Checkpoints


FOLDER_IN_USE = "another run is training in"  # how the error of lock_folder() begins


def lock_folder(folder: Path) -> IO:
    """Reserve the folder for this process until the returned file is closed or the process ends.

    Raises UserError if another run holds it. Removes what a killed run left half-written.
    """
    file = open(folder / (CHECKPOINT + ".lock"), "w")
    try:
        import fcntl  # not on Windows, where nothing guards the folder

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except (BlockingIOError, PermissionError) as error:
        raise UserError(f"{FOLDER_IN_USE} {folder}: wait, or give this one its own --out_dir") from error
    except OSError:
        pass  # a file system without locks, such as some network folders: nothing guards the folder
    for path in [*folder.glob("*.tmp"), *folder.glob(f"{SNAPSHOTS}/*.tmp")]:
        if path.name.startswith(("checkpoint", PARAMETERS + ".", TOKENIZER + ".", "training_", "step-")):
            path.unlink(missing_ok=True)
    return file


def run_identity(args: Namespace, epochs: float, corpus: Corpus) -> dict:
    """What the result of a run depends on: it goes on only from a checkpoint where all this is the same."""
    shaping = {name: value for name, value in sorted(vars(args).items()) if name not in MAY_CHANGE_ON_RESUME}
    if shaping.get("model"):  # the class counts, not where it is
        shaping["model"] = hashlib.blake2b(Path(args.model).read_bytes(), digest_size=8).hexdigest()
    return shaping | {"epochs": epochs, "text": corpus.key, "tokenizer": tokenizer_key(corpus.tokenizer)}


def aside_path(folder: Path, identity: dict) -> Path:
    """Where the checkpoint of an unfinished run is kept while another run trains in the folder."""
    text = json.dumps(identity, sort_keys=True, default=str)
    key = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    return folder / f"checkpoint-{key}.pt"


def find_checkpoint(folder: Path, identity: dict) -> dict | None:
    """The checkpoint of this run, if there is one. That of another run is kept aside until that one goes on.

    With it go the snapshots of that run. Raises UserError if the file is damaged.
    """
    path, own = folder / CHECKPOINT, aside_path(folder, identity)
    if path.exists():
        state = read_checkpoint(path)
        if state["run"] == identity:
            return state
        kept = aside_path(folder, state["run"])
        os.replace(path, kept)
        move_snapshots(folder / SNAPSHOTS, kept.with_suffix(".snapshots"))
        differences = describe_differences(state["run"], identity)
        print(f"  {path} is of a run with {differences}: it is kept as {kept.name}, and training starts anew")
    if own.exists():
        keep_previous_model(folder)
        os.replace(own, path)
        move_snapshots(own.with_suffix(".snapshots"), folder / SNAPSHOTS)
        return read_checkpoint(path)
    return None


def move_snapshots(old: Path, new: Path) -> None:
    """Move the snapshots in a folder, if there are any, into another. Files of others stay where they are."""
    for path in old.glob(SNAPSHOT_PATTERN):
        new.mkdir(exist_ok=True)
        os.replace(path, new / path.name)
    with contextlib.suppress(OSError):  # it is missing, or not empty
        old.rmdir()


def read_checkpoint(path: Path) -> dict:
    """The contents of a checkpoint. Raises UserError if it is damaged."""
    try:
        state = read_torch_file(path)
        complete = isinstance(state, dict) and {"run", "weights", "optimizer", "progress"} <= state.keys()
        if not complete or not isinstance(state["run"], dict):
            raise ValueError("something is missing from it")
        return state
    except OSError:
        raise
    except Exception as error:  # damaged files fail in many ways
        raise damaged_checkpoint(path, error) from error


def damaged_checkpoint(path: Path, error: Exception) -> UserError:
    reason = (str(error) or type(error).__name__).split("\n")[0]
    return UserError(f"{path} is damaged, or no checkpoint: {reason}; move it away, and training starts anew")


def describe_differences(old: dict, new: dict) -> str:
    """In what a run differs from another, in words."""
    differ = [name for name in new | old if old.get(name) != new.get(name)]
    files = ("text", "tokenizer", "model")  # which are known by a hash
    values = [f"{name}={old.get(name)!r} and not {new.get(name)!r}" for name in differ if name not in files]
    return ", ".join(values + [f"another {name}" for name in files if name in differ])
