"""Files of weights: damaged, foreign or hostile ones are named in one line, and no code in them is run."""

import errno
import io
import math
import multiprocessing
import os
import pickle
import shutil
import subprocess
import time
import weakref
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import call, damaged

import support.checkpoint as checkpoint
from corpus.token_files import Corpus, prepare_corpus
from corpus.tokenizer import tokenizer_key, train_tokenizer
from llm import LLM
from support.checkpoint import describe_differences, load_model, lock_folder, run_identity, save_model
from support.cli import UserError
from support.training_run import TrainingRun

SIZES = {"vocab_size": 300, "d_model": 16, "num_heads": 2, "num_layers": 1, "max_seq_len": 16}
TEXT = ["Волга — река в Европе. Она впадает в море.", "Один, два 🙂.", "שלום. Три \u202e и четыре."] * 5


class Bomb:
    """Pickled, it is code that makes a file when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def new_run(folder: Path, model: LLM, tokenizer) -> TrainingRun:
    """A run of 10 steps an epoch in the folder, resumed from its checkpoint if there is one."""
    sizes = {"d_model": 16, "batch_size": 2, "max_seq_len": 16}
    args = Namespace(out_dir=str(folder), **sizes, eval_every=5, checkpoint_minutes=0, snapshots=0)
    tokens = np.arange(300, dtype=np.uint16)
    corpus = Corpus(tokenizer, tokens, tokens, 1.0, "text")
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    return TrainingRun(model, optimizer, corpus, args, epochs=1, steps=10, steps_per_epoch=10)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a small model, its tokenizer, and a checkpoint of it in training."""
    folder = tmp_path_factory.mktemp("home")
    tokenizer = train_tokenizer(TEXT, 300)
    model = LLM(**SIZES)
    model.trained_on = {"tokenizer": tokenizer_key(tokenizer)}
    run = new_run(folder, model, tokenizer)
    model(torch.arange(5)[None]).sum().backward()
    run.optimizer.step()
    run.step, run.tokens, run.seconds = 7, 700, 1.0
    run.interval_steps, run.interval_loss, run.interval_tokens = 1, torch.tensor(2.0), 100
    run.log_rows, run.samples = [[7, 700, 1.0, 2.0, 3.0, 4.0, 0.1, 50.0]], [{"step": 7, "text": "а"}]
    run.save_checkpoint()
    save_model(model, run.corpus, folder, finished=False)
    return folder


def open_checkpoint(folder: Path):
    model = LLM(**SIZES)
    run = new_run(folder, model, train_tokenizer(TEXT, 300))
    return run.step, model.state_dict(), [v for s in run.optimizer.state.values() for v in s.values()]


def same(a, b) -> bool:
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, (list, tuple)) else a == b


@pytest.mark.parametrize("name", ["parameters.pt2", "checkpoint.pt", "bpe_tokenizer.json"])
def test_a_damaged_file_is_refused_or_gives_what_was_saved(home, tmp_path, name):
    """What opens after the damage must hold the same numbers: no bit of the weights changes unnoticed."""

    def read(folder):
        if name == "checkpoint.pt":
            return open_checkpoint(folder)
        model, tokenizer = load_model(folder)
        return model.state_dict(), sorted(tokenizer.get_vocab().items())

    good = read(home)
    for other in ("parameters.pt2", "bpe_tokenizer.json"):
        shutil.copy(home / other, tmp_path)
    refused, total = 0, 330
    for data in damaged((home / name).read_bytes(), total, seed=len(name)):
        (tmp_path / name).write_bytes(data)
        try:
            assert same(read(tmp_path), good)
        except UserError as error:
            refused += 1
            assert name in str(error)
    assert refused > total * 0.6


@pytest.mark.parametrize("name", ["parameters.pt2", "checkpoint.pt"])
def test_no_code_in_a_file_is_run(home, tmp_path, name):
    trap = tmp_path / "trap"
    with zipfile.ZipFile(home / name) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    pickled = next(entry for entry in entries if entry.endswith("data.pkl"))
    inside, compressed = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(inside, "w") as archive:
        for entry, data in entries.items():
            archive.writestr(entry, pickle.dumps({"weights": Bomb(trap)}, 2) if entry == pickled else data)
    with zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, data in entries.items():
            archive.writestr(entry, data)
    for data in (pickle.dumps(Bomb(trap)), inside.getvalue(), compressed.getvalue()):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError):
            load_model(tmp_path) if name == "parameters.pt2" else open_checkpoint(tmp_path)
    assert not trap.exists()


def test_weights_that_are_no_numbers_or_of_another_make(home, tmp_path):
    state = torch.load(home / "parameters.pt2", weights_only=True)
    first = "embedding.weight"
    huge = torch.zeros(1).expand(10**9, 16)  # 64 GB that take 4 bytes in the file
    for change in (
        {first: torch.full_like(state[first], float("nan"))},
        {first: huge, "_extra_state": {**state["_extra_state"], "vocab_size": 10**9}},
        {"_extra_state": {**state["_extra_state"], "max_seq_len": 2**40}},
        {"_extra_state": {**state["_extra_state"], "num_heads": 0}},
        {"_extra_state": {**state["_extra_state"], "settings": 5}},
        {"_extra_state": "text"},
        {first: "text"},
        {"more": state[first]},
    ):
        torch.save({**state, **change}, tmp_path / "parameters.pt2")
        with pytest.raises(UserError, match="parameters.pt2"):
            load_model(tmp_path)
    for whole in ([1, 2], {}, torch.zeros(3), LLM(**{**SIZES, "num_layers": 2}).state_dict()):
        torch.save(whole, tmp_path / "checkpoint.pt")
        with pytest.raises(UserError, match="checkpoint.pt"):
            open_checkpoint(tmp_path)
    saved = torch.load(home / "checkpoint.pt", weights_only=True)
    saved["weights"] = LLM(**{**SIZES, "num_layers": 2}).state_dict()
    torch.save(saved, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="num_layers=2 and not 1"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["parameters.pt2", "bpe_tokenizer.json", "checkpoint.pt"])
def test_the_command_line_says_it_in_one_line(home, tmp_path, name):
    for other in home.iterdir():
        (tmp_path / other.name).write_bytes(other.read_bytes())
    (tmp_path / "text.txt").write_text("\n".join(TEXT * 20), encoding="utf-8")
    (tmp_path / name).write_bytes((home / name).read_bytes()[:-100])
    training = ["train.py", "--dataset", tmp_path / "text.txt", "--batch_size", "2"]
    small = "--max_seq_len 16 --d_model 16 --num_heads 2 --num_layers 1 --vocab_size 300".split()
    command = training if name == "checkpoint.pt" else ["generate.py", "да"]
    done = call(*command, "--out_dir", tmp_path, *small)
    last = done.err.splitlines()[-1]
    assert done.code == 2 and name in last and "Traceback" not in done.err, done.err


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own with one MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_leaves_the_earlier_files_whole(small_disk):
    checkpoint.write_torch_file(small_disk / "checkpoint.pt", {"small": torch.arange(100_000)})  # 0.8 MB
    before = (small_disk / "checkpoint.pt").read_bytes()
    with pytest.raises(OSError, match="No space left") as error:
        checkpoint.write_torch_file(small_disk / "checkpoint.pt", {"large": torch.zeros(100_000)})
    assert str(small_disk / "checkpoint.pt") in str(error.value.filename)
    assert (small_disk / "checkpoint.pt").read_bytes() == before and len(list(small_disk.iterdir())) == 1


def test_finished_weights_stay_until_the_new_ones_are_saved(tmp_path, monkeypatch):
    corpus = prepare_corpus(["Раз. Два. Три."] * 9, tmp_path / "cache", 300, 0.2, 1000)
    folder = tmp_path / "kept"
    folder.mkdir()
    for name in ("bpe_tokenizer.json", "parameters.pt2"):
        (folder / name).write_text("old")

    def full(path, state):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "write_torch_file", full)
    with pytest.raises(OSError):
        save_model(LLM(300, 32, 2, 1, 16), corpus, folder, finished=True)
    assert sorted((p.name, p.read_text()) for p in folder.iterdir()) == [
        ("bpe_tokenizer.json", "old"),
        ("parameters.pt2", "old"),
    ]


def hold_lock(folder: Path, held) -> None:
    lock = lock_folder(folder)  # noqa: F841
    held.set()
    time.sleep(600)


def test_a_lock_dies_with_its_process(tmp_path):
    context = multiprocessing.get_context("spawn")  # a fork would share the lock
    held = context.Event()
    process = context.Process(target=hold_lock, args=(tmp_path, held), daemon=True)
    process.start()
    assert held.wait(120)
    with pytest.raises(UserError, match="another run"):
        lock_folder(tmp_path)
    process.kill()
    process.join()
    lock_folder(tmp_path).close()


def test_a_file_system_without_locks_is_no_other_run(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", no_locks)
    lock_folder(tmp_path).close()


def test_a_run_does_not_go_on_with_another_class(tmp_path):
    corpus = Corpus(train_tokenizer(TEXT, 300), np.arange(9), np.arange(9), 1.0, "text")
    file, identities = tmp_path / "my_transformer.py", []
    for code in ("class LLM: pass", "class LLM: mended = True"):
        file.write_text(code)
        identities.append(run_identity(Namespace(model=str(file)), 1.0, corpus))
    assert describe_differences(*identities) == "another model"


@pytest.mark.parametrize("kind", ["folder", "link", "file"])
def test_what_another_put_where_the_previous_model_goes_is_kept(home, tmp_path, kind):
    theirs, previous = tmp_path / "theirs", tmp_path / "previous"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("mine")
    if kind == "folder":
        shutil.copytree(theirs, previous)
    elif kind == "link":
        previous.symlink_to(theirs)
    else:
        previous.write_text("")
    state = torch.load(home / "parameters.pt2", weights_only=True)
    state["_extra_state"]["finished"] = True
    for _ in range(2):
        torch.save(state, tmp_path / "parameters.pt2")
        checkpoint.keep_previous_model(tmp_path)
    assert (previous / "parameters.pt2").exists() and (theirs / "thesis.txt").exists()
    assert (previous / "thesis.txt").exists() == (kind == "folder")
    assert {path.name for path in tmp_path.iterdir()} == {"theirs", "previous"}


def test_a_tokenizer_of_the_same_size_that_is_not_the_model_s(home, tmp_path):
    other = train_tokenizer(["Совсем другие слова о совершенно других вещах."] * 5, 300)
    assert other.get_vocab_size() == 300
    other.save(str(tmp_path / "bpe_tokenizer.json"))
    shutil.copy(home / "parameters.pt2", tmp_path)
    with pytest.raises(UserError, match="do not belong together"):
        load_model(tmp_path)
    load_model(home)


def test_the_loss_of_a_step_is_counted_and_not_kept(tmp_path):
    """Small blocks left between a step's large ones make the heap grow with every step: gigabytes an hour."""
    torch.manual_seed(0)
    run, kept = new_run(tmp_path, LLM(**SIZES), train_tokenizer(TEXT, 300)), []
    with run:
        for value in (1.0, 2.0, 6.0, 2.0, 4.0):
            loss = torch.tensor(value)
            kept.append(weakref.ref(loss))
            run.record(loss, 0.1, num_tokens=32)
            del loss
        assert [reference() for reference in kept] == [None] * 5
        run.log(3.0, sample=None)
    step, tokens, _, train_loss, *_ = run.log_rows[0]
    assert (step, tokens, train_loss) == (5, 160, 3.0)


def test_a_shorter_run_is_offered_at_the_start_and_not_to_one_that_goes_on(tmp_path, monkeypatch, capsys):
    run = new_run(tmp_path, LLM(**SIZES), train_tokenizer(TEXT, 300))
    run.steps = 1000
    monkeypatch.setattr(run, "_seconds_left", lambda: 600.0)
    for step, offered in ((30, True), (130, False)):
        run.step, run.tokens = step, 32 * step
        run._print_estimate()
        out = capsys.readouterr().out
        assert "about 10:00" in out and ("a fifth of that with --epochs 0.2" in out) == offered


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_weight_that_is_not_finite_is_named_and_the_weights_before_it_are_saved(tmp_path, value):
    model = LLM(**SIZES)
    with new_run(tmp_path, model, train_tokenizer(TEXT, 300)) as run:
        run.args.eval_every = 1
        run.record(torch.tensor(3.0), 0.1, num_tokens=32)
        run.log(3.0, sample=None)
        good = model.norm.weight.detach().clone()
        with torch.no_grad():
            model.norm.weight[1] = value
        run.record(torch.tensor(3.0), 0.1, num_tokens=32)
        message = f"the largest weight at step 2 is {value}; the last weights that were finite are saved"
        with pytest.raises(UserError, match=message):
            run.log(3.0, sample=None)
    assert torch.equal(LLM.load(tmp_path / "parameters.pt2").norm.weight, good)
