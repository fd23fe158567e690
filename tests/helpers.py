"""What the tests share: starting a script as a person does, or calling its main(); small models and texts."""

import contextlib
import csv
import importlib
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from corpus.sources import BUNDLED_FILE
from llm import LLM
from support.cli import run_script

ROOT = Path(__file__).parent.parent
NO_HUB = {"HF_ENDPOINT": "http://127.0.0.1:9"}  # nobody listens there
ARTICLES = [json.loads(line)["sample"] for line in BUNDLED_FILE.read_text(encoding="utf-8").splitlines()]
SMALL = (
    "--d_model 64 --num_heads 2 --num_layers 2 --max_seq_len 64 --vocab_size 600 --batch_size 8 "
    "--eval_every 50"
).split()
TINY = (
    "--d_model 32 --num_heads 2 --num_layers 2 --max_seq_len 32 --vocab_size 400 --batch_size 8 "
    "--eval_every 40 --dropout 0.1 --epochs 3 --checkpoint_minutes 0"
).split()


class Result(NamedTuple):
    code: int
    out: str
    err: str


def start(script, *arguments, launch=(sys.executable,), **env) -> subprocess.Popen:
    """Start a script as a process, for tests in which the process is the point."""
    command = [*launch, script, *arguments]
    env = {**os.environ, **NO_HUB, "PYTHONPATH": str(ROOT), **env}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, env=env, start_new_session=True, **pipes)


def finish(process: subprocess.Popen) -> Result:
    """Wait until a process ends. One that takes too long is killed: it would go on beside the other tests."""
    try:
        out, err = process.communicate(timeout=240)
    finally:
        process.kill()  # does nothing to one that has ended
    return Result(process.returncode, out, err)


def run(script, *arguments, **how) -> Result:
    """Run a script in a process of its own, to its end."""
    return finish(start(script, *arguments, **how))


def call(script: str, *arguments) -> Result:
    """Run `python script arguments` as main() in this process: it saves the imports, about three seconds."""
    module = importlib.import_module(script.removesuffix(".py"))
    out, err, code, old_argv = io.StringIO(), io.StringIO(), 0, sys.argv
    sys.argv = [script, *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run_script(module.main)
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = old_argv
    return Result(code, out.getvalue(), err.getvalue())


def start_training(folder: Path, *more, script="train.py", **how) -> subprocess.Popen:
    """Start training of the tiny model on the text beside the folder, with one thread, as its own process."""
    flags = ["--dataset", folder.parent / "text.jsonl", "--out_dir", folder, *TINY, *more]
    return start(script, *flags, OMP_NUM_THREADS="1", **how)


def run_training(folder: Path, *more, **how) -> Result:
    return finish(start_training(folder, *more, **how))


def log_of(folder: Path) -> list[list[str]]:
    """training_log.csv without what a clock has measured."""
    with open(folder / "training_log.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    clocks = ("seconds", "tokens_per_second")
    return [[value for name, value in row.items() if name not in clocks] for row in rows]


def write_log(folder: Path, **columns: list[float]) -> None:
    """A training_log.csv with these columns, and 1 in the others."""
    names = "step tokens seconds train_loss val_loss bits_per_char learning_rate tokens_per_second".split()
    rows = zip(*(columns.get(name, [1] * len(next(iter(columns.values())))) for name in names))
    lines = [",".join(map(str, row)) + "\n" for row in [names, *rows]]
    (folder / "training_log.csv").write_text("".join(lines), encoding="utf-8")


def wait_for(process: subprocess.Popen, word: str) -> str:
    """Read the progress of a process until the word comes."""
    text = ""
    while word not in text:
        got = process.stderr.read(50)
        assert got, text
        text += got
    return text


def write_articles(path: Path, articles: list[str]) -> Path:
    """A .jsonl file of articles."""
    lines = (json.dumps({"sample": text}, ensure_ascii=False) + "\n" for text in articles)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def random_weights(model: LLM, std: float = 0.3) -> LLM:
    """The model with noise on all weights, so that none is zero or one."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * std)
    return model.eval()


def damaged(good: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Variants of a file: cut short, bits turned, stretches overwritten, removed or doubled, noise alone."""
    generator = random.Random(seed)
    yield from (
        b"",
        b"\0" * 1000,
        good[:-1],
        good + good,
        b"\xff\xfe" + good,
        generator.randbytes(5000),
        b"PK\x03\x04" + good[4:200],
    )
    for i in range(count - 7):
        data = bytearray(good)
        at, length = generator.randrange(len(data)), generator.randrange(1, 400)
        match i % 6:
            case 0:
                del data[at:]
            case 1 | 2:
                for _ in range(generator.choice((1, 1, 20))):
                    data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
            case 3:
                data[at : at + length] = generator.randbytes(length)
            case 4:
                del data[at : at + length]
            case 5:
                data[at:at] = data[at : at + length]
        yield bytes(data)
