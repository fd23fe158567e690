"""experiments/harness.py: recipes side by side, each run once."""

import math
import os
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace

import pytest
from helpers import ARTICLES, call, write_articles
from scipy import stats

from experiments import harness, recipes
from experiments.harness import Outcome, compare, half_interval, load_corpus, read_flags, train
from experiments.recipes import print_outcomes
from support.cli import UserError, make_parser, parse_args

TINY = (
    "--d_model 16 --num_heads 1 --num_layers 1 --max_seq_len 16 --vocab_size 300 --batch_size 4 "
    "--snapshots 0"
).split()


def test_the_interval_is_student_s():
    losses = [3.1, 3.4, 3.2, 3.6]
    low, high = stats.t.interval(0.95, 3, loc=sum(losses) / 4, scale=stats.sem(losses))
    assert Outcome(losses).mean == pytest.approx((low + high) / 2)
    assert half_interval(losses) == pytest.approx((high - low) / 2, rel=0.01)
    of_two = half_interval([[loss, 2 * loss] for loss in losses])
    assert of_two == pytest.approx([(high - low) / 2, high - low], rel=0.01)


def test_each_run_is_made_once_and_the_table_compares(tmp_path, monkeypatch, capsys):
    text = write_articles(tmp_path / "text.jsonl", ARTICLES[:10])
    monkeypatch.setattr("sys.argv", ["recipes", "--dataset", str(text), *TINY])
    args = parse_args(make_parser(""))
    recipes = {"as it is": {}, "no learning": {"learning_rate": 1e-9}}
    first = compare(recipes, 1, 640, args, tmp_path / "runs")
    assert first["as it is"].mean < first["no learning"].mean - 0.1
    both_seeds = compare({"as it is": {}}, 2, 640, args, tmp_path / "runs")["as it is"].losses
    assert both_seeds[0] == first["as it is"].mean != both_seeds[1]

    def refuse(*_, **__):
        raise AssertionError("a run that was done is made again")

    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "run", refuse)
        assert compare(recipes, 1, 640, args, tmp_path / "runs") == first
        with pytest.raises(AssertionError):  # another number of tokens is another run
            compare(recipes, 1, 700, args, tmp_path / "runs")
    print_outcomes("Losses", first)
    rows = capsys.readouterr().out.splitlines()
    assert "no learning" in rows[-1] and "+" in rows[-1] and "±" not in rows[-1]  # one seed has no interval
    print_outcomes("Losses", {name: Outcome([5.0, loss]) for name, loss in (("one", 5.2), ("two", 5.4))})
    assert re.search(r"two +5\.200 ± 2\.541 +\+0\.100 ± 1\.271 +2$", capsys.readouterr().out.rstrip())
    with pytest.raises(UserError, match="a run failed: .*divide"):
        compare({"wrong": {"d_model": 15}}, 1, 640, args, tmp_path / "runs")


@pytest.mark.parametrize(
    "code, err, message",
    [
        (-9, "", "signal 9 ended it"),  # during the imports
        (-9, "epoch 1/1: 20%", "signal 9 ended it"),
        (1, "", "train.py ended with code 1"),
        (2, "epoch 1/1: 20%\ntrain.py: no space left", "no space left"),
    ],
)
def test_a_run_that_fails_says_why(tmp_path, monkeypatch, code, err, message):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: Namespace(returncode=code, stdout="", stderr=err))
    with pytest.raises(UserError, match=f"a run failed: .*{message}"):
        train(tmp_path / "run", {})
    assert not (tmp_path / "run" / "finished").exists()


SLOW_TO_END = """
import pathlib, signal, sys, time

def save(*_):
    time.sleep(1)
    pathlib.Path("saved").touch()
    sys.exit(130)

signal.signal(signal.SIGINT, save)
pathlib.Path("begun").touch()
time.sleep(60)
"""
RUN_IT = """
import pathlib
from experiments import harness

harness.ROOT = pathlib.Path()
harness.train(pathlib.Path("run"), {})
"""


def test_ctrl_c_leaves_the_run_time_to_save(tmp_path):
    (tmp_path / "train.py").write_text(SLOW_TO_END)
    env = {**os.environ, "PYTHONPATH": str(harness.ROOT)}
    command = [sys.executable, "-c", RUN_IT]
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, start_new_session=True)
    while not (tmp_path / "begun").exists():
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: both processes receive it
    assert b"KeyboardInterrupt" in process.communicate(timeout=30)[1]
    assert (tmp_path / "saved").exists() and not (tmp_path / "run" / "finished").exists()


def test_a_recipe_stands_unless_the_command_line_says_otherwise(monkeypatch):
    monkeypatch.setattr("sys.argv", ["recipes", "--tokens", "7", "--dropout", "0.1"])
    args, tokens, seeds = read_flags(make_parser(""), 5, 2, {"dropout": 0.5, "snapshots": 0})
    assert (args.dropout, args.snapshots, tokens, seeds) == (0.1, 0, 7, 2)
    assert not hasattr(args, "tokens") and not hasattr(args, "seeds")
    monkeypatch.setattr("sys.argv", ["recipes", "--seeds", "0"])
    with pytest.raises(UserError, match="--seeds must be from 1"):
        read_flags(make_parser(""), 5, 2, {})


def test_runs_of_recipes_keep_no_snapshots(tmp_path, monkeypatch):
    given = []

    def compare(recipes, seeds, tokens, args, folder, may_diverge):
        given.append(args)
        losses = {name: [math.inf if name == "rate x 1.5" else 3.0] * seeds for name in recipes}
        return {name: Outcome(each) for name, each in losses.items()}

    monkeypatch.setattr(recipes, "compare", compare)
    done = call("experiments.recipes", "--out_dir", tmp_path)
    assert done.code == 0 and "twice the batch, beta2 squared" in done.out, done.err
    assert [args.snapshots for args in given] == [0]
    assert re.search(r"rate x 1.5 +diverged +3\n", done.out) and "inf" not in done.out  # the others have rows


def test_all_runs_read_the_text_that_was_found(tmp_path, monkeypatch):
    datasets = []

    def train(out_dir, flags):
        datasets.append(flags["dataset"])
        out_dir.mkdir(parents=True)
        (out_dir / "finished").write_text("diverged")
        return out_dir

    found = Namespace(train=range(640), key="key"), "what was found"
    monkeypatch.setattr(harness, "load_text", lambda args: found)
    monkeypatch.setattr(harness, "train", train)
    args = Namespace(dataset="owner/name", text_column="text", val_fraction=0.1)
    args.vocab_size, args.tokenizer_chars = 300, 10
    compare({"one": {}, "another": {"learning_rate": 1}}, 2, 640, args, tmp_path, may_diverge=True)
    assert datasets == ["what was found"] * 4


def test_a_text_is_read_once(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(harness, "load_text", lambda args: (read.append(args) or f"text {len(read)}", "name"))
    texts = [load_corpus(tmp_path, vocab_size=size) for size in (300, 300, 400, 300)]
    assert texts == [(name, "name") for name in ("text 1", "text 1", "text 2", "text 1")]
    assert [args.out_dir for args in read] == [str(tmp_path)] * 2
