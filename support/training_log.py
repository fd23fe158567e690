"""training_log.csv, a row for each validation, and training_samples.jsonl, what the model wrote."""

import csv
import io
import itertools
import json
import math
from pathlib import Path

from support.cli import UserError, atomic_write

LOG, SAMPLES = "training_log.csv", "training_samples.jsonl"
LOG_COLUMNS = "step tokens seconds train_loss val_loss bits_per_char learning_rate tokens_per_second".split()


def log_text(rows: list[list]) -> str:
    """training_log.csv."""
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(LOG_COLUMNS)
    for row in rows:
        table.writerow(f"{value:.6g}" if isinstance(value, float) else value for value in row)
    return file.getvalue()


def samples_text(samples: list[dict]) -> str:
    """training_samples.jsonl."""
    lines = [json.dumps({"step": each["step"], "text": each["text"]}, ensure_ascii=False) for each in samples]
    return "".join(line + "\n" for line in lines)


def write_log(folder: Path, rows: list[list], samples: list[dict]) -> None:
    """Write both files. rows: numbers in the order of LOG_COLUMNS; samples: {"step": ..., "text": ...}."""
    for name, text in ((LOG, log_text(rows)), (SAMPLES, samples_text(samples))):
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def read_log(folder: Path) -> dict[str, list[float]]:
    """The columns of training_log.csv; {} if there is no row or no file. Raises UserError if damaged."""
    path = folder / LOG
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines())) if path.exists() else []
        columns = {name: [float(row[name]) for row in rows] for name in LOG_COLUMNS} if rows else {}
        if not all(map(math.isfinite, itertools.chain(*columns.values()))):
            raise ValueError("a number is not finite")
        return columns
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise UserError(f"{path} is not what train.py writes: {error}") from error


def last_row(folder: Path) -> dict[str, float]:
    """The last row of training_log.csv, {} if there is none. Raises UserError if the file is damaged."""
    return {name: column[-1] for name, column in read_log(folder).items()}


def read_samples(folder: Path) -> list[dict]:
    """The lines of training_samples.jsonl, none if there is no file. Raises UserError if one is not JSON."""
    path = folder / SAMPLES
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        lines = text.split("\n")  # not splitlines(): a sample may hold other separators
        return [json.loads(line) for line in lines if line.strip()]
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not what train.py writes: {error}") from error
