"""evaluate.py as a person starts it."""

import io
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
import torch
from helpers import ARTICLES, call, write_log
from matplotlib.figure import Figure

import evaluate
from corpus.sources import BUNDLED_FILE
from corpus.token_files import prepare_corpus
from corpus.tokenizer import train_tokenizer
from evaluation import facts, report
from llm import LLM

ROOT = Path(__file__).parent.parent
CAPITALS = (("Франции", "Париж"), ("Италии", "Рим"), ("Египта", "Каир"))
FACTS = [{"relation": "столица", "prompt": f"Столица {a}", "answer": b} for a, b in CAPITALS]
PAIRS = "source_sentence,target_sentence\nКот спит.,Кот спят.\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An older train.py's, whose weights name neither text nor tokenizer. The model has learned nothing."""
    folder = tmp_path_factory.mktemp("evaluate")
    lines = BUNDLED_FILE.read_text(encoding="utf-8").splitlines()[:60]
    (folder / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    corpus = prepare_corpus(ARTICLES[:60], folder / "cache", 600, 0.02, 10_000_000)
    corpus.tokenizer.save(str(folder / "bpe_tokenizer.json"))
    torch.manual_seed(0)
    torch.save(LLM(corpus.tokenizer.get_vocab_size(), 16, 2, 1, 32).state_dict(), folder / "parameters.pt2")
    write_log(folder, tokens=[512, 1024], train_loss=[6.0, 5.0], val_loss=[6.1, 5.1])
    (folder / "facts.jsonl").write_text("\n".join(map(json.dumps, FACTS)))
    (folder / "pairs.csv").write_text(PAIRS, encoding="utf-8")
    return folder


def run(folder, *arguments):
    flags = ["--out_dir", folder, "--dataset", folder / "text.jsonl", "--vocab_size", 600]
    done = call("evaluate.py", *flags, *arguments)
    assert done.code == 0, done.err
    return done.out


def results_in(folder) -> dict:
    return json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))


def test_all_parts_and_then_one_alone(folder, monkeypatch):
    few = folder / "few_facts.jsonl"  # the bundled facts, fewer of them
    lines = facts.BUNDLED_FACTS.read_text(encoding="utf-8").splitlines()
    few.write_text("\n".join(lines[:100]), encoding="utf-8")
    monkeypatch.setattr(evaluate, "BUNDLED_FACTS", few)
    out = run(folder)
    titles = ["Perplexity of", "Loss by position", "Facts", "Samples", "Case endings"]
    for title in [*titles, "--pairs RussianNLP/rublimp"]:
        assert title in out
    assert "prompt (recitation?) / paraphrase (knowledge?)" in out  # the bundled facts have both
    results = results_in(folder)
    assert set(results) == {"weights", "text", "facts", "samples", "cases"}
    assert results["text"]["characters"] == len(ARTICLES[59])  # one of 60 is held out
    assert results["facts"]["overall"]["count"] == 100
    assert matplotlib.image.imread(folder / "evaluation.png").shape == (1000, 1300, 4)

    out = run(folder, "--facts", folder / "facts.jsonl", "--pairs", folder / "pairs.csv")
    assert "Minimal pairs" in out and "Facts" in out and "Perplexity" not in out and "Case endings" not in out
    after = results_in(folder)
    assert after["text"] == results["text"] and after["pairs"]["overall"]["count"] == 1  # the rest is kept
    assert after["pairs"]["per_token"]["overall"]["count"] == 1 and after["facts"]["overall"]["count"] == 3

    assert "held out" in run(folder, "--text", folder / "text.jsonl")
    other = results_in(folder)
    assert other["text"]["tokens"] > results["text"]["tokens"] and other["facts"] == after["facts"]


def test_facts_with_paraphrases_are_printed_side_by_side(folder, tmp_path):
    asked_twice = [fact | {"paraphrase": "Главный город " + fact["prompt"].split()[1]} for fact in FACTS]
    other = {"relation": "кто", "prompt": "Он", "answer": "кот"}
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, [*asked_twice, other])), encoding="utf-8")
    out = run(folder, "--facts", tmp_path / "facts.jsonl")
    rows = {line.split()[0]: line.split() for line in out.splitlines() if "%" in line}
    assert "prompt (recitation?) / paraphrase (knowledge?)" in out
    assert rows["столица"].count("/") == 5 and rows["кто"][3] == "/" and rows["кто"][4] == "–"
    assert rows["кто"][5:8] == ["–", "/", "–"]  # a fact alone has no corrected rank
    assert rows["all"][-3:] == ["50.0%", "/", "33.3%"]  # «кто» has a single answer, and no paraphrase
    result = results_in(folder)["facts"]
    assert result["overall"]["count"] == 4 and result["paraphrase"]["overall"]["count"] == 3
    assert matplotlib.image.imread(folder / "evaluation.png").shape == (1000, 1300, 4)


def test_a_relation_without_paraphrases_has_no_bar_for_them():
    prompts = {name: {"top1": 0.5, "chance": 0.1} for name in ("столица", "$x^$")}  # no formula
    figure = Figure()
    axes = figure.subplots()
    paraphrases = {"by_relation": {"столица": {"top1": 0.0}}}
    report.draw_facts(axes, {"by_relation": prompts, "paraphrase": paraphrases})
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == pytest.approx([0.5, 0.5, 0, math.nan], nan_ok=True)
    figure.savefig(io.BytesIO())


def test_the_column_of_the_text_may_be_another_one(folder, tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("sample,body\nа,Он жил без кота.\n", encoding="utf-8")
    run(folder, "--text", path)
    assert results_in(folder)["text"]["characters"] == 1  # as in the training text
    run(folder, "--text", path, "--column", "body")
    assert results_in(folder)["text"]["characters"] == len("Он жил без кота.")
    done = call("evaluate.py", "--out_dir", folder, "--text", path, "--column", "none")
    assert done.code == 2 and "no column 'none', only sample, body (--column)" in done.err


def test_results_are_on_the_disk_before_they_are_printed(folder, tmp_path, monkeypatch):
    def fail(result):
        raise UnicodeEncodeError("ascii", "—", 0, 1, "a strange terminal")

    monkeypatch.setitem(report.PRINTERS, "pairs", fail)
    (folder / "evaluation.json").unlink(missing_ok=True)
    with pytest.raises(UnicodeEncodeError):
        call("evaluate.py", "--out_dir", folder, "--pairs", folder / "pairs.csv")
    assert results_in(folder)["pairs"]["overall"]["count"] == 1


def test_what_a_person_gets_wrong_is_one_line_and_exit_code_2(folder, tmp_path, monkeypatch):
    """And it comes before any work: the training text is not loaded, and nothing is scored."""
    (tmp_path / "facts.jsonl").write_text('{"relation": "столица"}\n', encoding="utf-8")
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "cp1251.txt").write_text("Столица этой страны остаётся на месте.\n" * 9, encoding="cp1251")
    pairs = "source_sentence,target_sentence\nКот спит,Кот спят\n"
    (tmp_path / "cp1251.csv").write_text(pairs, encoding="cp1251")
    text, wrong = folder / "text.jsonl", []

    def too_early(*_):
        wrong.append("the training text was loaded")

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "load_text_of", too_early)
        for flags, message in [
            (["--out_dir", tmp_path], "train.py"),
            (["--facts", tmp_path / "facts.jsonl"], "fact 1: no JSON object with relation"),
            (["--facts", tmp_path / "none.jsonl"], "No such file"),
            (["--text", text, "--facts", tmp_path / "facts.jsonl"], "fact 1: no JSON object with relation"),
            (["--pairs", tmp_path / "none.csv"], "no such file"),
            (["--pairs", tmp_path / "cp1251.csv"], "iconv -f CP1251"),
            (["--text", tmp_path / "none.txt"], "no such file"),
            (["--text", tmp_path / "empty.txt"], "holds no text (--text)"),
            (["--text", tmp_path / "cp1251.txt"], "iconv -f CP1251"),
            (["--text", "nobody/nothing"], "the hub cannot be reached (--text)"),
            (["--column", "text"], "--column is the column of --text"),
            (["--text", text, "--column", ""], "no column ''"),
        ]:
            done = call("evaluate.py", *(["--out_dir", folder] if "--out_dir" not in flags else []), *flags)
            last = done.err.splitlines()[-1]
            assert done.code == 2 and message in last and last.startswith("evaluate.py"), (flags, done.err)
            assert "Traceback" not in done.err and not wrong, flags
    done = call("evaluate.py", "--out_dir", folder, "--dataset", text, "--vocab_size", 500)
    assert done.code == 2 and "was not trained on this text" in done.err


def test_older_weights_do_not_name_their_text_but_their_tokenizer_must_be_that_of_the_text(folder, tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(ARTICLES[60:120]), encoding="utf-8")
    flags = ["--dataset", tmp_path / "text.txt", "--vocab_size", 600, "--facts", folder / "facts.jsonl"]
    done = call("evaluate.py", "--out_dir", folder, *flags)
    assert done.code == 2 and "was not trained on this text" in done.err


def test_the_text_settings_of_the_run_travel_with_the_weights(trained, folder):
    """Without a text flag; another split is named, since its held-out articles may have been trained on."""
    done = call("evaluate.py", "--out_dir", trained, "--facts", folder / "facts.jsonl")
    assert done.code == 0 and "text: " + str(trained / "text.jsonl") in done.out, done.err
    assert results_in(trained)["facts"]["overall"]["count"] == len(FACTS)
    done = call("evaluate.py", "--out_dir", trained, "--val_fraction", 0.3)
    assert done.code == 2 and "was not trained on this text, or not on this part of it" in done.err


def test_settings_that_a_damaged_file_holds_are_named(trained, tmp_path):
    shutil.copy(trained / "bpe_tokenizer.json", tmp_path)
    state = torch.load(trained / "parameters.pt2", weights_only=True)
    saved = state["_extra_state"]
    for name, value in (("val_fraction", 0), ("vocab_size", "600"), ("dataset", 5)):
        changed = saved | {"settings": saved["settings"] | {name: value}}
        torch.save(state | {"_extra_state": changed}, tmp_path / "parameters.pt2")
        done = call("evaluate.py", "--out_dir", tmp_path)
        assert done.code == 2 and f"--{name} must be" in done.err and done.err.count("\n") == 1, done.err


def test_another_tokenizer_of_the_same_size_is_named(trained, tmp_path):
    """--pairs alone does not load the training text."""
    (tmp_path / "parameters.pt2").write_bytes((trained / "parameters.pt2").read_bytes())
    train_tokenizer(ARTICLES[100:200], 600).save(str(tmp_path / "bpe_tokenizer.json"))
    (tmp_path / "pairs.csv").write_text(PAIRS, encoding="utf-8")
    done = call("evaluate.py", "--out_dir", tmp_path, "--pairs", tmp_path / "pairs.csv")
    assert done.code == 2 and "do not belong together" in done.err
    assert not (tmp_path / "evaluation.json").exists()


def test_results_of_other_weights_or_of_a_damaged_file_are_not_kept(folder):
    path = folder / "evaluation.json"
    for text in ('{"weights": "other", "text": 1}', "[]", "{", '{"text": 1}', "\udc80"):
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        assert set(report.load_results(folder)) == {"weights"}


def test_the_dictionary_is_not_loaded_by_an_import_or_by_help():
    """Nor by the minimal pairs. In a process, since this one has loaded it."""
    code = "import sys, evaluate\nsys.argv = ['evaluate.py', '--help']\ntry: evaluate.main()\n"
    code += "except SystemExit: print('pymorphy3' in sys.modules or 'matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False", done.stderr
