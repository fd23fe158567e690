"""experiments/emergence.py as a person starts it: two runs of a tiny model that differ in their seed."""

import json
import shutil
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from helpers import ARTICLES, TINY, call, write_articles

import evaluate
from evaluation import samples
from experiments.emergence import draw, half_way_step, mean_over_runs
from llm import LLM
from support.checkpoint import load_weights

SCRIPT = "experiments.emergence"
FACTS = [
    {"relation": "столица", "prompt": f"Столица {a}", "answer": b, "paraphrase": f"Главный город {a} —"}
    for a, b in (("Франции", "Париж"), ("Италии", "Рим"))
] + [{"relation": "река", "prompt": "Волга впадает в", "answer": "море"}]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Two runs, one/ and two/, and what they are asked."""
    home = tmp_path_factory.mktemp("emergence")
    write_articles(home / "text.jsonl", ARTICLES[:20])
    (home / "facts.jsonl").write_text("\n".join(map(json.dumps, FACTS)), encoding="utf-8")
    pairs = "source_sentence,target_sentence,phenomenon\nКот спит.,Кот спят.,число\n"
    (home / "pairs.csv").write_text(pairs, encoding="utf-8")
    flags = ["--dataset", home / "text.jsonl", *TINY, "--epochs", 1, "--snapshots", 2]
    for seed, name in enumerate(("one", "two")):
        done = call("train.py", *flags, "--out_dir", home / name, "--seed", seed)
        assert done.code == 0, done.err
    return home


@pytest.fixture(autouse=True)
def few(home, monkeypatch):
    """Less to generate and to ask."""
    monkeypatch.setattr(samples, "NUM_SAMPLES", 4)
    monkeypatch.setattr(evaluate, "BUNDLED_FACTS", home / "facts.jsonl")


def test_the_last_row_is_what_evaluate_py_finds_and_several_runs_give_an_interval(home):
    asked = ["--pairs", home / "pairs.csv"]
    for folder in (home / "one", home / "two"):
        assert call("evaluate.py", "--out_dir", folder).code == 0
        assert call("evaluate.py", "--out_dir", folder, *asked).code == 0
    asked += ["--facts", home / "facts.jsonl", "--runs", home / "two"]
    done = call(SCRIPT, "--out_dir", home / "one", *asked)
    assert done.code == 0, done.err
    result = json.loads((home / "one" / "emergence.json").read_text(encoding="utf-8"))
    steps, figures = result["steps"], result["figures"]
    assert steps[0] == 0 and len(steps) == 3 and result["tokens"] == [step * 8 * 32 for step in steps]

    for run, folder in enumerate((home / "one", home / "two")):
        found = {}
        for group, names in figures.items():
            found[group] = {name: each["runs"][run][-1] for name, each in names.items()}
        expected = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        bits_per_char = expected["text"]["bits"]["model"]["bits_per_char"]
        assert found["held-out text"] == {"bits per character": bits_per_char}
        written = expected["samples"]["0.5"]
        agree = written["agreement"]["adjective and noun"].get("accuracy")
        known = written["known"]
        assert found["generated text"] == {"words in the dictionary": known, "adjectives that agree": agree}
        assert found["facts"]["prompt, top1"] == expected["facts"]["overall"]["top1"]
        assert found["facts"]["paraphrase, exact"] == expected["facts"]["paraphrase"]["overall"]["exact"]
        of_capitals = expected["facts"]["paraphrase"]["by_relation"]["столица"]["top1"]
        assert found["facts by relation"]["столица, paraphrase, top1"] == of_capitals
        assert "река, paraphrase, top1" not in found["facts by relation"]
        cases = {case: part["accuracy"] for case, part in expected["cases"]["by_case"].items()}
        assert found["case endings"] == {"all": expected["cases"]["overall"]["accuracy"]} | cases
        assert found["minimal pairs"]["число"] == expected["pairs"]["by_phenomenon"]["число"]["accuracy"]
        shares = [found["strongest head"][name] for name in ("previous token", "same token", "induction")]
        assert all(0 < share <= 1 for share in shares)

    bits = figures["held-out text"]["bits per character"]
    assert bits["low"][-1] < bits["mean"][-1] == np.mean([run[-1] for run in bits["runs"]]) < bits["high"][-1]
    assert 0 < bits["half_way"]["step"]["mean"][0] < steps[-1]
    assert "held-out text: bits per character" in done.out and "±" in done.out and "столица" not in done.out
    assert matplotlib.image.imread(home / "one" / "emergence.png").shape == (900, 1600, 4)


def test_half_way_is_found_between_the_snapshots():
    steps = [0, 3, 15, 63]  # log2(step + 1) is 0, 2, 4, 6
    assert half_way_step(steps, np.array([10.0, 9.0, 2.0, 0.0])) == pytest.approx(2 ** (2 + 2 * 4 / 7) - 1)
    assert half_way_step(steps, np.array([0.0, 0.5, 0.9, 1.0])) == pytest.approx(3)
    assert half_way_step(steps, np.array([np.nan, 0.0, 1.0, 1.0])) == pytest.approx(7)  # unmeasured at first
    assert np.isnan(half_way_step(steps, np.array([1.0, 2.0, 3.0, 1.0])))
    assert np.isnan(half_way_step(steps, np.full(4, np.nan)))


def test_the_interval_of_the_mean_is_student_s():
    result = mean_over_runs(np.array([[1.0, np.nan], [2.0, 1.0], [3.0, 1.0]]))
    assert result["mean"] == [2.0, None] and result["low"][1] is None
    assert result["high"][0] == pytest.approx(2 + 4.303 / 3**0.5, abs=1e-3)
    assert mean_over_runs(np.array([[1.0]])) == {"mean": [1.0]}


def test_what_a_person_gets_wrong_is_one_line_and_exit_code_2(home, tmp_path):
    folders = {}
    for name in ("bare", "other", "small", "unfinished"):
        folders[name] = Path(shutil.copytree(home / "one", tmp_path / name))
    shutil.rmtree(folders["bare"] / "snapshots")
    (folders["other"] / "snapshots" / "step-00000000.pt2").unlink()
    model = load_weights(home / "one" / "parameters.pt2")
    small = LLM(**model.architecture() | {"num_layers": 1})
    small.trained_on = model.trained_on
    torch.save(small.state_dict(), folders["small"] / "parameters.pt2")
    model.trained_on["finished"] = False
    torch.save(model.state_dict(), folders["unfinished"] / "parameters.pt2")
    for arguments, message in (
        (["--out_dir", tmp_path], "train.py"),
        (["--out_dir", folders["bare"]], "has no snapshots"),
        (["--out_dir", folders["unfinished"]], "has not finished"),
        (["--out_dir", home / "one", "--runs", folders["other"]], "the runs differ"),
        (["--out_dir", home / "one", "--runs", folders["small"]], "the runs differ"),
        (["--out_dir", home / "one", "--runs", home / "two", home / "two/../one"], "the same folder twice"),
        (["--out_dir", home / "one", "--facts", tmp_path / "none.jsonl"], "No such file"),
        (["--out_dir", home / "one", "--pairs", tmp_path / "none.csv"], "no such file"),
    ):
        done = call(SCRIPT, *arguments)
        last = done.err.splitlines()[-1]
        assert done.code == 2 and message in last and "Traceback" not in done.err, done.err


def test_the_name_of_a_paradigm_is_no_formula(tmp_path):
    figures = {"minimal pairs": {"$x^$": {"mean": [0.5, 1]}}}
    draw({"tokens": [0, 10], "figures": figures}, tmp_path / "emergence.png")
    assert matplotlib.image.imread(tmp_path / "emergence.png").ndim == 3
