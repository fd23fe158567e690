"""evaluate.py and evaluation/scoring.py against models whose answers are known, sums worked by hand, and sums written out."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from helpers import call
from hub import hub

import evaluate
import evaluation.scoring as scoring
from corpus.tokenizer import encode, train_tokenizer
from corpus.sources import BUNDLED_FILE
from corpus.token_files import prepare_corpus
from evaluation.scoring import Scorer
from llm import LLM
from support.cli import UserError

ROOT = Path(__file__).parent.parent
TEXT = "Кот спит. Коты спят. Столица Франции Париж. Столица Италии Рим. Столица Египта Каир. Он жил без кота и котов."


@pytest.fixture(scope="module")
def tokenizer():
    """One in which every word of TEXT, with the space before it, is a token."""
    return train_tokenizer([TEXT] * 3, 2000)


class Table(LLM):
    """A model whose next token depends on the last one only: its logits are table[last]."""

    def __init__(self, table: torch.Tensor):
        super().__init__(len(table), 8, 1, 1, 16)
        self.double()  # else generate() would read its weights in numpy and not ask it
        self.table = table

    def residual(self, input_ids, cache=None):
        if cache:
            cache.length += input_ids.shape[1]
        return input_ids

    def logits(self, x):
        return self.table[x]


def table(tokenizer, *following: tuple[str, str, float]) -> Table:
    """A Table in which a logit is 0, or the number that stands here with two words."""
    logits = torch.zeros(tokenizer.get_vocab_size(), tokenizer.get_vocab_size())
    for before, after, value in following:
        ids = [tokenizer.encode(word).ids for word in (before, after)]
        assert [len(each) for each in ids] == [1, 1], (before, after)
        logits[ids[0][0], ids[1][0]] = value
    return Table(logits)


def random_model(window: int, vocab_size: int) -> LLM:
    torch.manual_seed(0)
    model = LLM(vocab_size, 16, 2, 2, window)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.double().eval()


# Log-probabilities


def test_log_probabilities_are_those_of_one_sentence_at_a_time(tokenizer):
    model = random_model(12, tokenizer.get_vocab_size())
    sentences = ["Кот спит.", "Столица Франции Париж.", "Он жил без кота.", "Кот.", "Коты спят и спят."]
    expected = []
    for sentence in sentences:
        ids = torch.tensor([[0, *tokenizer.encode(sentence + " ").ids, 0]])  # <EOS> is token 0
        assert ids.shape[1] <= 13
        log_p = model(ids[:, :-1])[0].log_softmax(-1)
        expected.append(sum(log_p[i, token].item() for i, token in enumerate(ids[0, 1:])))
    assert Scorer(model, tokenizer).sentence_logprobs(sentences, "") == pytest.approx(expected, abs=1e-9)
    model.float()
    assert Scorer(model, tokenizer).sentence_logprobs(sentences, "") == pytest.approx(expected, abs=1e-3)


def test_what_is_longer_than_the_window_is_judged_once_and_with_context(tokenizer):
    model = random_model(6, tokenizer.get_vocab_size())
    ids = torch.randint(tokenizer.get_vocab_size(), (29,), generator=torch.Generator().manual_seed(1))

    def loss(token: int, begin: int) -> float:
        return -model(ids[None, begin:token])[0, -1].log_softmax(-1)[ids[token]].item()

    every = [loss(t, max(0, t - 6)) for t in range(1, 29)]  # a window of its own for each token
    fixed = [loss(t, (t - 1) // 6 * 6) for t in range(1, 29)]
    halves = [loss(t, 0 if t <= 6 else (t - 7) // 3 * 3 + 3) for t in range(1, 29)]
    scorer = Scorer(model, tokenizer)
    for stride, expected in ((1, every), (6, fixed), (3, halves), (0, halves)):
        assert scorer.token_losses([ids.tolist()], [1], "", stride)[0] == pytest.approx(expected, abs=1e-9)
    late, short = scorer.token_losses([ids.tolist(), ids[:4].tolist()], [20, 2], "", 1)
    assert late == pytest.approx(every[19:], abs=1e-9) and short == pytest.approx(every[1:3], abs=1e-9)


# Perplexity


def test_the_perplexity_of_a_uniform_model_is_the_size_of_its_vocabulary(tokenizer):
    size = tokenizer.get_vocab_size()
    ids = encode(tokenizer, TEXT)
    result = evaluate.evaluate_text(Scorer(Table(torch.zeros(size, size)), tokenizer), ids, TEXT, np.array(ids))
    for name in ("model", "model, fixed windows"):
        each = result["bits"][name]
        assert each["perplexity"] == pytest.approx(size)
        assert each["bits_per_char"] == pytest.approx(len(ids) * math.log2(size) / len(TEXT))
        assert each["bits_per_byte"] == pytest.approx(len(ids) * math.log2(size) / len(TEXT.encode()))
    assert result["loss_by_position"] == pytest.approx([math.log(size)] * 16)
    assert (result["tokens"], result["characters"], result["bytes"]) == (len(ids), len(TEXT), len(TEXT.encode()))


def test_loss_by_position(tokenizer):
    size = tokenizer.get_vocab_size()
    model = Table(torch.zeros(size, size))
    model.max_seq_len, model.table[0, 5] = 2, math.log(3.0)  # after token 0, token 5 is three times as likely
    result = evaluate.evaluate_text(Scorer(model, tokenizer), [5, 7, 7, 7], "абвг", np.array([1, 2]))
    first, other = math.log(size + 2) - math.log(3), math.log(size)  # windows <EOS> 5, 7 7
    assert result["loss_by_position"] == pytest.approx([(first + other) / 2, other])


def test_count_models_worked_by_hand(tokenizer, monkeypatch):
    monkeypatch.setattr(evaluate, "PRIOR", 13)
    train = np.array([0, 1, 0, 1, 0, 2, 0, 1, 1, 0], np.uint16)  # five 0, four 1, one 2; pairs 01 3x, 10 3x, 02, 20, 11
    unigram, bigram = evaluate.count_losses(train, np.array([0, 1, 2, 0, 0]), 3)
    assert np.exp(-unigram) == pytest.approx([5 / 13, 2 / 13, 6 / 13, 6 / 13])  # one more each, of 10 + 3
    assert np.exp(-bigram) == pytest.approx([(3 + 5) / (4 + 13), (0 + 2) / (4 + 13), (1 + 6) / (1 + 13), (0 + 6) / (4 + 13)])

    model = Table(torch.zeros(3, 3))
    judged = evaluate.evaluate_text(Scorer(model, tokenizer), [1, 2, 0, 0], "четыре", train)["bits"]
    assert judged["unigram counts"]["perplexity"] == pytest.approx((13**4 / (5 * 2 * 6 * 6)) ** 0.25)
    assert judged["unigram counts"]["bits_per_char"] == pytest.approx(math.log2(13**4 / (5 * 2 * 6 * 6)) / 6)
    assert judged["bigram counts"]["perplexity"] == pytest.approx((17 * 17 * 14 * 17 / (8 * 2 * 7 * 6)) ** 0.25)


# Minimal pairs

PAIRS = [
    {"source_sentence": "Кот спит.", "target_sentence": "Кот спят.", "phenomenon": "число", "paradigm": "единственное"},
    {"source_sentence": "Коты спят.", "target_sentence": "Коты спит.", "phenomenon": "число", "paradigm": "множественное"},
]
GRAMMAR = (("Кот", " спит", 9.0), ("Коты", " спят", 9.0))


def test_minimal_pairs(tokenizer):
    def judged(model):
        result = scoring.evaluate_pairs(Scorer(model, tokenizer), PAIRS)
        by = [{name: each["accuracy"] for name, each in result[f"by_{key}"].items()} for key in ("phenomenon", "paradigm")]
        return result["overall"]["accuracy"], *by

    assert judged(table(tokenizer, *GRAMMAR)) == (1, {"число": 1}, {"единственное": 1, "множественное": 1})
    assert judged(table(tokenizer, *((a, b, -value) for a, b, value in GRAMMAR)))[0] == 0
    half = judged(table(tokenizer, GRAMMAR[0]))
    assert half == (0.5, {"число": 0.5}, {"единственное": 1, "множественное": 0})  # a tie is lost


@pytest.mark.parametrize("right, count", [(8, 10), (0, 7), (7, 7), (17000, 22578)])
def test_the_interval_is_where_the_share_is_1_96_standard_errors_off(right, count):
    low, high = scoring.wilson(right, count)
    assert 0 <= low <= right / count <= high <= 1
    for end in (low, high):
        assert abs(right / count - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / count), abs=1e-9)


def test_pairs_are_read_from_csv(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text('id,source_sentence,target_sentence,paradigm\n1,"Да, кот.",Нет,а\n', encoding="utf-8-sig")
    assert scoring.load_pairs(str(path)) == [
        {"source_sentence": "Да, кот.", "target_sentence": "Нет", "phenomenon": "", "paradigm": "а"}
    ]
    for text, message in (("a,b\n1,2\n", "target_sentence"), ("source_sentence,target_sentence\n", "no pairs")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            scoring.load_pairs(str(path))
    with pytest.raises(UserError, match="no such file"):
        scoring.load_pairs(str(tmp_path / "none.csv"))


def test_pairs_are_read_from_the_hub(tmp_path):
    def read(endpoint):
        code = "import json, sys, evaluation.scoring as scoring\ntry: print(json.dumps(scoring.load_pairs(sys.argv[1])))\n"
        code += "except scoring.UserError as e: print('error:', e)"
        env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", code, "some/pairs"], env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "error: some/pairs" in read("http://127.0.0.1:9")
    with hub("some/pairs", PAIRS) as (endpoint, _):
        assert json.loads(read(endpoint)) == PAIRS


# Facts

CAPITALS = (("Франции", "Париж"), ("Италии", "Рим"), ("Египта", "Каир"))
FACTS = [{"relation": "столица", "prompt": f"Столица {a}", "answer": b} for a, b in CAPITALS]
KNOWN = [(f" {fact['prompt'].split()[1]}", f" {fact['answer']}", 9.0) for fact in FACTS]


def test_facts(tokenizer):
    def judged(model):
        result = scoring.evaluate_facts(Scorer(model, tokenizer), FACTS)
        assert result["overall"] == result["by_relation"]["столица"] and result["overall"]["chance"] == pytest.approx(1 / 3)
        return [result["overall"][key] for key in ("count", "top1", "top1_corrected", "mrr", "mrr_corrected", "exact")]

    assert judged(table(tokenizer, *KNOWN)) == [3, 1, 1, 1, 1, 1]
    opposite = judged(table(tokenizer, *((a, b, -value) for a, b, value in KNOWN)))
    assert opposite == pytest.approx([3, 0, 0, 1 / 3, 1 / 3, 0])
    # Париж is what it says everywhere, and the right answer comes second: the correction finds it
    biased = [(a, b, 3.0) for a, b, _ in KNOWN[1:]] + [(a, " Париж", 4.0) for a, _, _ in KNOWN]
    assert judged(table(tokenizer, *biased)) == pytest.approx([3, 1 / 3, 1, (1 + 1 / 2 + 1 / 2) / 3, 1, 1 / 3])


def test_an_answer_that_is_only_the_beginning_of_a_word_is_no_exact_match(tokenizer):
    model = table(tokenizer, (" Франции", " Париж", 9.0), (" Париж", "s", 9.0))
    assert scoring.evaluate_facts(Scorer(model, tokenizer), FACTS[:1])["overall"]["exact"] == 0


def test_how_often_subject_and_answer_stand_together(tokenizer):
    sentences = ["Франция любит Париж.", "В Париже, сердце Франции, тепло.", "Париж.", "Столица Италии.", "О Риме и Италии."]
    words = evaluate.words_of(sentences)
    assert scoring.cooccurrences(FACTS, words) == [2, 1, 0]
    result = scoring.evaluate_facts(Scorer(table(tokenizer, KNOWN[0]), tokenizer), FACTS, words)
    counted = {name: (each["count"], each["top1"]) for name, each in result["by_sentences"].items()}
    assert counted == {"0": (1, 0), "1": (1, 0), "2": (1, 1)}


# Samples


def test_runs_of_four_words():
    train = evaluate.words_of(["Раз два три четыре пять.", "Шесть семь восемь девять."])
    texts = {"a": ["раз, два, три, четыре!", "Семь восемь девять раз"], "b": ["два три четыре пять", "один"], "c": ["раз"]}
    assert evaluate.runs_in(train, texts) == {"a": 0.5, "b": 1.0, "c": 0.0}


def test_samples(tokenizer):
    words = ["Он", " жил", " без", " кота", " и", " котов", "."]
    model = table(tokenizer, *((a, b, 99.0) for a, b in zip(words, words[1:])))
    end = tokenizer.token_to_id(".")
    model.table[0, tokenizer.encode("Он").ids[0]] = model.table[end, 0] = 99.0  # after <EOS>, and after the full stop
    result = evaluate.evaluate_samples(Scorer(model, tokenizer), ["Он жил без ктоа."], evaluate.words_of(["Он жил без кота"]), 0)
    assert result["real"]["known"] == 0.75 and result["real"]["recited"] == 0
    for temperature in ("0.5", "1.0"):
        written = result[temperature]
        assert written["known"] == 1
        # 16 tokens: "Он жил без кота и котов. Он жил без кота и (котов.)", the last word cut off; of 3 + 2 runs of four
        assert written["recited"] == 2 / 5
        assert written["agreement"]["preposition and noun"]["accuracy"] == 1


# The script


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder as train.py leaves it, with a model that has learned nothing."""
    folder = tmp_path_factory.mktemp("evaluate")
    lines = BUNDLED_FILE.read_text(encoding="utf-8").splitlines()[:60]
    (folder / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    articles = [json.loads(line)["sample"] for line in lines]
    text = prepare_corpus(articles, folder / "cache", 600, 0.02, 10_000_000)
    text.tokenizer.save(str(folder / "bpe_tokenizer.json"))
    torch.manual_seed(0)
    torch.save(LLM(text.tokenizer.get_vocab_size(), 16, 2, 1, 32).state_dict(), folder / "parameters.pt2")
    (folder / "training_log.csv").write_text("step,tokens,train_loss,val_loss\n1,512,6.0,6.1\n2,1024,5.0,5.1\n")
    (folder / "facts.jsonl").write_text("\n".join(map(json.dumps, FACTS)))
    (folder / "pairs.csv").write_text("source_sentence,target_sentence\nКот спит.,Кот спят.\n", encoding="utf-8")
    return folder


def run(folder, monkeypatch, *arguments):
    flags = ["--out_dir", folder, "--dataset", folder / "text.jsonl", "--vocab_size", 600, *arguments]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, flags)])
    evaluate.main()


def test_all_parts_and_then_one_alone(folder, monkeypatch, capsys):
    run(folder, monkeypatch)
    out = capsys.readouterr().out
    for title in ("Perplexity of", "Loss by position", "Facts", "Samples", "Case endings", "--pairs RussianNLP/rublimp"):
        assert title in out
    results = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert set(results) == {"weights", "text", "facts", "samples", "cases"}
    with open(folder / "text.jsonl", encoding="utf-8") as file:
        assert results["text"]["characters"] == len(json.loads(file.readlines()[-1])["sample"])  # one of 60 is held out
    assert results["facts"]["overall"]["count"] == len(BUNDLED_FILE.with_name("facts.jsonl").read_text().splitlines())
    assert matplotlib.image.imread(folder / "evaluation.png").shape == (1000, 1300, 4)

    run(folder, monkeypatch, "--facts", folder / "facts.jsonl", "--pairs", folder / "pairs.csv")
    out = capsys.readouterr().out
    assert "Minimal pairs" in out and "Facts" in out and "Perplexity" not in out and "Case endings" not in out
    after = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert after["text"] == results["text"] and after["pairs"]["overall"]["count"] == 1  # the rest is kept
    assert after["facts"]["overall"]["count"] == 3

    run(folder, monkeypatch, "--text", folder / "text.jsonl")
    assert "held out" in capsys.readouterr().out
    other = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert other["text"]["tokens"] > results["text"]["tokens"] and other["facts"] == after["facts"]


def test_what_a_person_gets_wrong_is_one_line_and_exit_code_2(folder, tmp_path):
    (tmp_path / "facts.jsonl").write_text('{"relation": "столица"}\n', encoding="utf-8")
    for arguments, message in [
        (["--out_dir", tmp_path], "train.py"),
        (["--out_dir", folder, "--facts", tmp_path / "facts.jsonl"], "line 1: no JSON object with relation"),
        (["--out_dir", folder, "--pairs", tmp_path / "none.csv"], "no such file"),
        (["--out_dir", folder, "--dataset", folder / "text.jsonl", "--vocab_size", 500], "was not trained on this text"),
    ]:
        done = call("evaluate.py", *arguments)
        last = done.err.splitlines()[-1]
        assert done.code == 2 and message in last and last.startswith("evaluate.py") and "Traceback" not in done.err


def test_the_text_settings_of_the_run_travel_with_the_weights(trained, tmp_path):
    """Without any flag of the text; another split is named, since its held-out articles may have been trained on."""
    done = call("evaluate.py", "--out_dir", trained, "--facts", BUNDLED_FILE.with_name("facts.jsonl"))
    assert done.code == 0 and "text: " + str(trained / "text.jsonl") in done.out, done.err
    done = call("evaluate.py", "--out_dir", trained, "--val_fraction", 0.3)
    assert done.code == 2 and "was not trained on this text, or not on this part of it" in done.err


def test_pairs_are_not_scored_with_another_tokenizer_of_the_same_size(trained, tmp_path):
    (tmp_path / "parameters.pt2").write_bytes((trained / "parameters.pt2").read_bytes())
    other = train_tokenizer(BUNDLED_FILE.read_text(encoding="utf-8").splitlines()[200:300], 600)
    other.save(str(tmp_path / "bpe_tokenizer.json"))
    (tmp_path / "pairs.csv").write_text("source_sentence,target_sentence\nКот спит.,Кот спят.\n", encoding="utf-8")
    done = call("evaluate.py", "--out_dir", tmp_path, "--pairs", tmp_path / "pairs.csv")
    assert done.code == 2 and "do not belong together" in done.err


def test_facts_as_other_programs_write_them(tmp_path):
    fact = {"relation": "столица", "prompt": "Столица\u2028Франции —", "answer": "Париж"}
    path = tmp_path / "facts.jsonl"
    path.write_text("\ufeff\n" + json.dumps(fact, ensure_ascii=False) + "\n\n", encoding="utf-8")  # BOM, blank lines
    assert evaluate.load_facts(path) == [fact]
    path.write_bytes(json.dumps(fact, ensure_ascii=False).encode("cp1251", "replace"))
    with pytest.raises(UserError, match="facts.jsonl is not in UTF-8, but probably in CP1251; convert it:  iconv"):
        evaluate.load_facts(path)
