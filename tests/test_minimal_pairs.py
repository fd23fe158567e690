"""Minimal pairs: two scores of sentences worked by hand; files and the hub."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub import hub
from table_models import table_model, word_tokenizer

from evaluation.minimal_pairs import Pair, evaluate_pairs, load_pairs
from evaluation.scoring import Scorer
from support.cli import UserError

ROOT = Path(__file__).parent.parent
PAIRS = [
    Pair("Кот спит.", "Кот спят.", "число", "единственное"),
    Pair("Коты спят.", "Коты спит.", "число", "множественное"),
]
GRAMMAR = (("Кот", " спит", 9.0), ("Коты", " спят", 9.0))


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


@pytest.mark.parametrize("score", ["sum", "per_token"])
def test_minimal_pairs(tokenizer, score):
    def measured(model):
        result = evaluate_pairs(Scorer(model, tokenizer), PAIRS)
        result = result["per_token"] if score == "per_token" else result
        by = []
        for key in ("by_phenomenon", "by_paradigm"):
            by.append({name: each["accuracy"] for name, each in result[key].items()})
        return result["overall"]["accuracy"], *by

    by_number = {"единственное": 1, "множественное": 1}
    assert measured(table_model(tokenizer, *GRAMMAR)) == (1, {"число": 1}, by_number)
    assert measured(table_model(tokenizer, *((a, b, -value) for a, b, value in GRAMMAR)))[0] == 0
    half = measured(table_model(tokenizer, GRAMMAR[0]))
    assert half == (0.5, {"число": 0.5}, {"единственное": 1, "множественное": 0})  # ties count as wrong


def test_the_sum_prefers_the_shorter_sentence_and_the_mean_does_not(tokenizer):
    """Where every token costs log V the sum decides by length; one better token tips the mean."""
    size = tokenizer.get_vocab_size()
    pair = Pair("Он жил без кота.", "Он жил.")
    model = table_model(tokenizer, (" жил", " без", 1.0))
    losses = Scorer(model, tokenizer).sentence_losses(pair[:2], "")
    better = math.log(size - 1 + math.e) - 1  # the loss of " без"
    worse = math.log(size - 1 + math.e)  # the loss of another token after " жил"
    assert [len(each) for each in losses] == [6, 4]  # words, full stop with its space, <EOS>
    assert losses[0].sum() == pytest.approx(better + 5 * math.log(size))
    assert losses[1].sum() == pytest.approx(worse + 3 * math.log(size))
    result = evaluate_pairs(Scorer(model, tokenizer), [pair])
    assert result["overall"]["accuracy"] == 0 and result["per_token"]["overall"]["accuracy"] == 1


def test_pairs_are_read_from_csv(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text('id,source_sentence,target_sentence,paradigm\n1,"Да, кот.",Нет,а\n', encoding="utf-8-sig")
    assert load_pairs(str(path)) == [Pair("Да, кот.", "Нет", "", "а")]
    bad_files = [
        ("a,b\n1,2\n", "target_sentence"),
        ("source_sentence,target_sentence\n", "no pairs"),
        ("source_sentence,target_sentence\nКот,\u200b\n", "target_sentence"),
        ("source_sentence,target_sentence\nДа, кот,Нет\n", "line 2: 3 fields"),
        ("source_sentence;target_sentence\nДа;Нет\n", "separated by ;"),
        ("", "no pairs"),
    ]
    for text, message in bad_files:
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=message):
            load_pairs(str(path))
    for name in (str(tmp_path / "none.csv"), "some/none.csv"):
        with pytest.raises(UserError, match="no such file"):
            load_pairs(name)


def test_pairs_are_cleaned(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("source_sentence,target_sentence\n\nи\u0306о\u00adд,е\u0308ж\n", encoding="utf-8")
    assert load_pairs(str(path)) == [Pair("йод", "ёж")]


@pytest.mark.parametrize("code, name", [("cp1251", "CP1251"), ("koi8-r", "KOI8-R"), ("utf-16", "UTF-16")])
def test_another_encoding_is_named(tmp_path, code, name):
    path = tmp_path / "pairs.csv"
    rows = "".join(f"Он идёт в дом {i}.,Он идёт в доме {i}.\n" for i in range(20))
    path.write_text("source_sentence,target_sentence\n" + rows, encoding=code)
    message = rf"pairs\.csv is not in UTF-8, but probably in {name}.*iconv -f {name}"
    with pytest.raises(UserError, match=message):
        load_pairs(str(path))


def test_pairs_are_read_from_the_hub(tmp_path):
    columns = ("source_sentence", "target_sentence", "phenomenon", "paradigm")

    def read(endpoint):  # in a process, since `datasets` reads the endpoint when it is imported
        code = "import json, sys; from evaluation.minimal_pairs import UserError, load_pairs\n"
        code += "try: print(json.dumps(load_pairs(sys.argv[1])))\n"
        code += "except UserError as error: print('error:', error)"
        env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", code, "some/pairs"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "error: some/pairs" in read("http://127.0.0.1:9")
    with hub("some/pairs", [dict(zip(columns, pair)) for pair in PAIRS]) as (endpoint, _):
        assert [Pair(*each) for each in json.loads(read(endpoint))] == PAIRS
