"""Snapshots: the weights of a run at some of its steps, the same ones however often it was stopped."""

from pathlib import Path

import pytest
import torch
from helpers import ARTICLES, TINY, call, write_articles

from llm import LLM
from support.checkpoint import load_snapshot, save_snapshot, snapshot_paths, snapshot_steps
from support.cli import UserError
from support.training_run import TrainingRun


def train(folder: Path, *more):
    text = folder.parent / "text.jsonl"
    done = call("train.py", "--dataset", text, "--out_dir", folder, *TINY, "--epochs", 1, *more)
    assert "Traceback" not in done.err, done.err
    return done


def stop_at(monkeypatch, step: int) -> None:
    """Let Ctrl-C come at a step."""
    monkeypatch.setattr(TrainingRun, "should_stop", lambda run: run.step == step)


def kill_at(monkeypatch, step: int) -> None:
    """End the program at a step, so that nothing is saved any more."""
    record = TrainingRun.record

    def record_or_die(run, *args, **kwargs):
        record(run, *args, **kwargs)
        if run.step == step:
            raise SystemExit(9)

    monkeypatch.setattr(TrainingRun, "record", record_or_die)


def contents(folder: Path) -> dict[int, dict]:
    return {step: torch.load(path, weights_only=True) for step, path in snapshot_paths(folder)}


def assert_same(ours: Path, theirs: Path) -> None:
    ours, theirs = contents(ours), contents(theirs)
    assert ours.keys() == theirs.keys()
    for step in ours:
        names = ours[step].keys() - {"_extra_state"}
        assert all(torch.equal(ours[step][name], theirs[step][name]) for name in names)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a run that nothing happened to, beside its text."""
    home = tmp_path_factory.mktemp("snapshots")
    write_articles(home / "text.jsonl", ARTICLES[:20])
    assert train(home / "whole").code == 0
    return home / "whole"


def test_the_steps_are_evenly_spaced_in_their_logarithm_and_never_the_last_one():
    assert sorted(snapshot_steps(1008, 12)) == [0, 1, 2, 5, 9, 17, 31, 56, 100, 178, 318, 566]
    assert snapshot_steps(1000, 1) == {0} and snapshot_steps(1000, 0) == set()
    assert all(max(snapshot_steps(steps, 100)) < steps for steps in range(1, 200))


def test_a_snapshot_is_what_a_run_stopped_there_saves_and_it_goes_on_to_the_same_ones(whole, monkeypatch):
    folder, steps = whole.parent / "stopped", list(contents(whole))
    middle = steps[-2]
    assert steps[:3] == [0, 1, 2] and 10 < middle
    with monkeypatch.context() as patch:
        stop_at(patch, middle)
        assert "ended early" in train(folder).out
    state, saved = contents(whole)[middle], torch.load(folder / "parameters.pt2", weights_only=True)
    assert {**state["_extra_state"], "finished": False} == saved.pop("_extra_state")
    for name in saved:
        assert state[name].dtype == torch.float16 and torch.equal(state[name], saved[name].half())
    model = load_snapshot(dict(snapshot_paths(whole))[middle])
    assert model.embedding.weight.dtype == torch.float32 and not model.training

    assert "goes on" in train(folder).out
    assert_same(folder, whole)


def test_a_killed_run_goes_on_to_the_same_snapshots_and_leaves_no_half_written_one(whole, monkeypatch):
    folder = whole.parent / "killed"
    for step in (4, 19):
        with monkeypatch.context() as patch:
            kill_at(patch, step)
            assert train(folder).code == 9
        (folder / "snapshots" / "step-00000099.pt2.a1b2.tmp").write_bytes(b"half")
    assert "goes on" in train(folder).out
    assert_same(folder, whole)
    assert len(list((folder / "snapshots").iterdir())) == len(contents(whole))


def test_a_new_run_keeps_those_of_a_finished_one_in_previous_and_none_of_a_killed_one(whole, monkeypatch):
    folder = whole.parent / "again"
    train(folder)
    with monkeypatch.context() as patch:
        kill_at(patch, 4)
        train(folder, "--seed", 1)
    assert_same(folder / "previous", whole)
    assert list(contents(folder)) == [step for step in contents(whole) if step < 4]

    train(folder, "--seed", 2, "--snapshots", 2)
    assert len(contents(folder)) == 2
    train(folder, "--seed", 3, "--snapshots", 0)
    assert not (folder / "snapshots").exists() and len(contents(folder / "previous")) == 2


def test_an_unfinished_run_finds_its_own_again_after_another_has_finished(whole, monkeypatch):
    folder = whole.parent / "aside"
    with monkeypatch.context() as patch:
        stop_at(patch, 12)
        train(folder)
    train(folder, "--seed", 1, "--snapshots", 3)
    assert len(contents(folder)) == 3
    assert "goes on" in train(folder).out
    assert_same(folder, whole)
    assert len(contents(folder / "previous")) == 3 and not list(folder.glob("checkpoint-*"))


OTHER_MODEL = """
import torch
import llm

class LLM(llm.LLM):
    def __init__(self, *sizes, **more):
        super().__init__(*sizes, **more)
        self.unused = torch.nn.Parameter(torch.ones(3), requires_grad=False)
"""


def test_a_model_with_a_parameter_that_does_not_learn_goes_on_and_displaces_nothing(whole, monkeypatch):
    folder, model = whole.parent / "other_model", whole.parent / "other_model.py"
    model.write_text(OTHER_MODEL)
    train(folder)
    finished = (folder / "parameters.pt2").read_bytes()
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        train(folder, "--model", model)
    train(folder, "--seed", 1)
    assert (folder / "previous" / "parameters.pt2").read_bytes() == finished
    assert "goes on" in train(folder, "--model", model).out
    assert "unused" in torch.load(folder / "parameters.pt2", weights_only=True)


def test_files_of_others_in_its_folder_stay(whole, monkeypatch):
    folder = whole.parent / "shared"
    (folder / "snapshots").mkdir(parents=True)
    (folder / "snapshots" / "holiday.jpg").touch()
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        train(folder)
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        train(folder, "--seed", 1)
    assert "goes on" in train(folder).out
    assert (folder / "snapshots" / "holiday.jpg").exists()
    assert contents(folder).keys() == contents(whole).keys()


def test_weights_that_float16_does_not_hold_are_not_written(tmp_path):
    for value in (float("nan"), float("inf"), 1e6):
        model = LLM(300, 16, 2, 1, 16)
        model.embedding.weight.data[0, 0] = value
        save_snapshot(model, tmp_path, 1)
        assert not snapshot_paths(tmp_path)
    (tmp_path / "damaged.pt2").write_bytes(b"PK")
    with pytest.raises(UserError, match="damaged.pt2"):
        load_snapshot(tmp_path / "damaged.pt2")
