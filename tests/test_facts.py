"""Facts: models that know them, do not, or prefer one answer; probabilities worked by hand; files."""

import json
import math

import pytest
import torch
from table_models import random_model, table_model, word_tokenizer

from corpus.tokenizer import encode_prompt
from evaluation.facts import BUNDLED_FACTS, Fact, answer_logprobs, count_sentences, evaluate_facts
from evaluation.facts import first_answer, load_facts, subjects
from evaluation.scoring import Scorer
from evaluation.words import words_of
from support.cli import UserError

CAPITALS = (("Франции", "Париж"), ("Италии", "Рим"), ("Египта", "Каир"))
FACTS = [Fact("столица", f"Столица {a}", b) for a, b in CAPITALS]
KNOWN = [(f" {country}", f" {capital}", 9.0) for country, capital in CAPITALS]
FIGURES = ("count", "top1", "top1_corrected", "mrr", "mrr_corrected", "exact")


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


@pytest.mark.parametrize("max_seq_len", [16, 2, 1])  # this model sees one token in any window
def test_facts(tokenizer, max_seq_len):
    def measured(*following):
        model = table_model(tokenizer, *following, max_seq_len=max_seq_len)
        result = evaluate_facts(Scorer(model, tokenizer), FACTS)
        assert result["overall"] == result["by_relation"]["столица"]
        assert result["overall"]["chance"] == pytest.approx(1 / 3)
        assert result["paraphrase"] == {"overall": {"count": 0}, "by_relation": {}}
        return [result["overall"][key] for key in FIGURES]

    assert measured(*KNOWN) == [3, 1, 1, 1, 1, 1]
    opposite = measured(*((a, b, -value) for a, b, value in KNOWN))
    assert opposite == pytest.approx([3, 0, 0, 1 / 3, 1 / 3, 0])
    # Париж is what it says everywhere, and the right answer comes second: the correction finds it
    biased = [(a, b, 3.0) for a, b, _ in KNOWN[1:]] + [(a, " Париж", 4.0) for a, _, _ in KNOWN]
    assert measured(*biased) == pytest.approx([3, 1 / 3, 1, (1 + 1 / 2 + 1 / 2) / 3, 1, 1 / 3])


def test_an_answer_that_is_only_the_beginning_of_a_word_is_no_match(tokenizer):
    model = table_model(tokenizer, (" Франции", " Париж", 9.0), (" Париж", "s", 20.0))
    result = evaluate_facts(Scorer(model, tokenizer), FACTS)
    row = result["facts"][0]
    assert (row["exact"], row["rank"], row["written"][:6]) == (False, 3, "Парижs")  # others end their word
    model = table_model(tokenizer, (" Франции", " Париж", 9.0), (" Париж", ".", 20.0))
    row = evaluate_facts(Scorer(model, tokenizer), FACTS)["facts"][0]
    assert (row["exact"], row["rank"], row["written"][:6]) == (True, 1, "Париж.")


def test_prompt_and_paraphrase_side_by_side(tokenizer):
    """The model continues the prompts right and knows nothing of the paraphrases; one fact has none."""
    paraphrases = ("Коты Франции спят", "Коты Италии спят", "")
    facts = [fact._replace(paraphrase=text) for fact, text in zip(FACTS, paraphrases)]
    more = Fact("кто", "Он", "жил")
    model = table_model(tokenizer, *KNOWN, (" спят", " Рим", 5.0))
    result = evaluate_facts(Scorer(model, tokenizer), [*facts, more])
    assert [result["by_relation"]["столица"][key] for key in FIGURES] == [3, 1, 1, 1, 1, 1]
    assert set(result["by_relation"]) == {"столица", "кто"}
    assert set(result["paraphrase"]["by_relation"]) == {"столица"}
    overall = result["paraphrase"]["overall"]
    assert overall == result["paraphrase"]["by_relation"]["столица"]
    assert (overall["count"], overall["top1"], overall["exact"]) == (2, 0.5, 0.5)  # it says Рим to both
    assert overall["mrr"] == pytest.approx((1 / 3 + 1) / 2) and overall["chance"] == pytest.approx(1 / 3)
    assert overall["top1_corrected"] == 0  # and that is all it knows: corrected, every answer ties
    ranks = [row["by_paraphrase"]["rank"] if "by_paraphrase" in row else None for row in result["facts"]]
    assert ranks == [3, 1, None, None]


def test_a_single_prompt_of_a_relation_has_no_corrected_rank(tokenizer):
    """The mean over it would be its own score, so it does not lower the mean over other relations."""
    scorer = Scorer(table_model(tokenizer, *KNOWN), tokenizer)
    facts = [FACTS[0]._replace(paraphrase="Он жил без Франции"), *FACTS[1:]]
    paraphrase = evaluate_facts(scorer, facts)["paraphrase"]["overall"]
    assert (paraphrase["count"], paraphrase["top1"]) == (1, 1)
    assert "top1_corrected" not in paraphrase and "mrr_corrected" not in paraphrase
    result = evaluate_facts(scorer, [*FACTS, Fact("кто", "Кот", "Париж"), Fact("кто", "Кот", "Рим")])
    overall = [result["overall"][key] for key in ("count", "top1", "top1_corrected", "mrr_corrected")]
    assert overall == [5, 0.6, 1, 1]
    assert ["rank_corrected" in row for row in result["facts"]] == [True] * 3 + [False] * 2


# Answers of which one begins with the other

CURRENCIES = ("фунт", "фунт стерлингов", "рубль")
MONEY = [Fact("валюта", "Валюта Англии", "фунт стерлингов"), Fact("валюта", "Валюта Ливана", "фунт")]
MONEY += [Fact("валюта", "Валюта Чили", "рубль")]


@pytest.fixture(scope="module")
def money_tokenizer():
    return word_tokenizer("Валюта Англии фунт стерлингов. Валюта Ливана фунт. Валюта Чили рубль.")


def test_probabilities_of_answers_worked_by_hand(money_tokenizer):
    """фунт alone is фунт, then the end of the word, and then not стерлингов."""
    a, b = 3.0, 2.0
    model = table_model(money_tokenizer, (" Англии", " фунт", a), (" фунт", " стерлингов", b))
    scorer = Scorer(model, money_tokenizer)
    V, E = money_tokenizer.get_vocab_size(), len(scorer.word_end_ids)
    assert 0 < E < V
    pound = math.exp(a) / (V - 1 + math.exp(a))
    sterling = math.exp(b) / (V - 1 + math.exp(b))
    pound_and_end = pound * (E - 1 + math.exp(b)) / (V - 1 + math.exp(b))
    p = {"фунт стерлингов": pound * sterling * E / V}
    p["фунт"] = pound_and_end - p["фунт стерлингов"]
    p["рубль"] = 1 / (V - 1 + math.exp(a)) * E / V
    for max_seq_len in (16, 2, 1):
        model.max_seq_len = max_seq_len
        found = answer_logprobs(scorer, MONEY[:1], ["Валюта Англии"], {"валюта": list(CURRENCIES)}, "")
        assert found == [pytest.approx({answer: math.log(value) for answer, value in p.items()}, abs=1e-5)]


def measured_money(tokenizer, table) -> list[dict]:
    return evaluate_facts(Scorer(table_model(tokenizer, *table), tokenizer), MONEY)["facts"]


def test_an_answer_does_not_beat_the_longer_one_that_begins_with_it(money_tokenizer):
    """The model knows all three. Without the subtraction, фунт would score higher for England as well."""
    table = [(" Англии", " фунт", 9.0), (" Чили", " рубль", 9.0), (" Ливана", " фунт", 9.0)]
    ranks = [row["rank"] for row in measured_money(money_tokenizer, [*table, (" фунт", " стерлингов", 9.0)])]
    assert ranks == [1, 2, 1]  # for the table model фунт has no past, so it says стерлингов in Lebanon, too
    ranks = [row["rank"] for row in measured_money(money_tokenizer, [*table, (" фунт", ".", 9.0)])]
    assert ranks == [3, 1, 1]  # and now it never says стерлингов


def test_rounding_does_not_make_a_probability_negative(money_tokenizer):
    rows = measured_money(money_tokenizer, [(" Ливана", " фунт", 99.0), (" фунт", " стерлингов", 99.0)])
    assert [row["candidates"] for row in rows] == [3, 3, 3] and rows[0]["rank"] >= 1


def test_every_answer_has_the_whole_window_before_it(tokenizer):
    """In a model that looks back: the prompt is longer than the window, so only its last tokens count."""
    model = random_model(4, tokenizer.get_vocab_size())
    scorer = Scorer(model, tokenizer)
    prompt, answers = "Он жил без кота и котов. Столица Египта", ["Рим", "Каир и Париж"]
    _, prompt_ids = encode_prompt(tokenizer, prompt)
    assert len(prompt_ids) > 8
    found = answer_logprobs(scorer, [Fact("", prompt, "Рим")], [prompt], {"": answers}, "")[0]
    for answer in answers:
        ids, expected = list(prompt_ids), 0.0
        for token in tokenizer.encode(" " + answer).ids:
            expected += model(torch.tensor([ids[-4:]]))[0, -1].log_softmax(-1)[token].item()
            ids.append(token)
        log_p = model(torch.tensor([ids[-4:]]))[0, -1].log_softmax(-1)
        expected += log_p[scorer.word_end_ids].logsumexp(0).item()
        assert found[answer] == pytest.approx(expected, abs=1e-9)


def test_the_answer_that_a_text_begins_with():
    answers = ["фунт", "фунт стерлингов", "Нью", "Нью-Йорк"]
    for text, expected in [
        ("фунт стерлингов.", "фунт стерлингов"),
        ("фунт стерлинга", "фунт"),
        ("фунт", "фунт"),
        ("фунты", None),
        ("Нью-Йорк и", "Нью-Йорк"),
        ("Нью-Дели", None),
        ("Нью - и", "Нью"),
        ("", None),
    ]:
        assert first_answer(text, answers) == expected


def test_an_answer_after_a_finished_sentence_has_no_space_before_it(tokenizer):
    model = table_model(tokenizer)
    end = tokenizer.token_to_id("<EOS>")
    model.table[end, tokenizer.encode("Кот").ids[0]] = 9.0
    facts = [Fact("кто", "Кто спит?", "Кот"), Fact("кто", "Кто жил?", "Он")]
    rows = evaluate_facts(Scorer(model, tokenizer), facts)["facts"]
    assert [(row["rank"], row["exact"]) for row in rows] == [(1, True), (2, False)]


# Training sentences


def test_how_many_sentences_hold_subject_and_answer(tokenizer):
    sentences = ["Франция любит Париж.", "В Париже, сердце Франции, тепло.", "Париж."]
    sentences += ["Столица Италии.", "О Риме и Италии."]
    words = words_of(sentences)
    assert count_sentences(FACTS, words) == [2, 1, 0]
    result = evaluate_facts(Scorer(table_model(tokenizer, KNOWN[0]), tokenizer), FACTS, words)
    counted = {name: (each["count"], each["top1"]) for name, each in result["by_sentences"].items()}
    assert counted == {"0": (1, 0), "1": (1, 0), "2": (1, 1)}


def test_the_subject_is_the_fact_s_own_if_it_has_one():
    facts = [*FACTS, Fact("столица", "Столица этой страны", "Осло", subject="Северная Норвегия")]
    assert subjects(facts) == ["франции", "италии", "египта", "Северная Норвегия"]
    sentences = ["Осло в Норвегии.", "Осло в северной Норвегии.", "Осло."]
    assert count_sentences(facts, words_of(sentences)) == [0, 0, 0, 1]


# Files


def write_lines(path, *records, encoding="utf-8", end="\n"):
    path.write_bytes(end.join(json.dumps(each, ensure_ascii=False) for each in records).encode(encoding))
    return path


def test_facts_are_read(tmp_path):
    path = tmp_path / "facts.jsonl"
    record = {"relation": "столица", "prompt": "Столица Франции", "answer": "Париж"}
    asked_twice = record | {"paraphrase": "Главный город Франции", "subject": "Франция"}
    fact, fact_asked_twice = Fact(*record.values()), Fact(*asked_twice.values())
    assert load_facts(write_lines(path, record, asked_twice)) == [fact, fact_asked_twice]
    assert load_facts(write_lines(path, record | {"paraphrase": None, "subject": "", "more": 1})) == [fact]
    assert load_facts(write_lines(path, record | {"answer": 1147})) == [fact._replace(answer="1147")]
    for encoding, end in (("utf-8-sig", "\n"), ("utf-8", "\r\n"), ("utf-8", "\n\n  \n")):
        assert load_facts(write_lines(path, record, record, encoding=encoding, end=end)) == [fact, fact]
    with_separator = record | {"prompt": "Столица\u2028Франции"}
    expected = [fact._replace(prompt="Столица\u2028Франции"), fact]
    assert load_facts(write_lines(path, with_separator, record)) == expected
    messy = record | {"answer": " Пари\u00adж ", "prompt": "Ерева\u200bн и\u0306"}
    assert load_facts(write_lines(path, messy)) == [Fact("столица", "Ереван й", "Париж")]


def test_what_is_no_fact_is_named_with_its_place(tmp_path):
    path = tmp_path / "facts.jsonl"
    record = {"relation": "столица", "prompt": "Столица Франции", "answer": "Париж"}
    bad = [{}, [], 3, None, "текст", {"relation": "столица"}, record | {"answer": ""}]
    bad += [record | {"answer": "\u200b"}, record | {"answer": ["Париж"]}]
    bad += [record | {"prompt": None}, record | {"paraphrase": {}}]
    for each in bad:
        with pytest.raises(UserError, match=r"facts\.jsonl, fact 3: no JSON object with relation"):
            load_facts(write_lines(path, record, record, each))
    path.write_text('{"relation": "столица"\n', encoding="utf-8")
    with pytest.raises(UserError, match="line 1 cannot be read"):
        load_facts(path)
    for empty in ("", "\n\n"):
        path.write_text(empty)
        with pytest.raises(UserError, match="holds no facts"):
            load_facts(path)


@pytest.mark.parametrize("code, name", [("cp1251", "CP1251"), ("koi8-r", "KOI8-R"), ("utf-16", "UTF-16")])
def test_another_encoding_is_named(tmp_path, code, name):
    record = {"relation": "столица", "prompt": "Столицей этой страны остаётся город", "answer": "Париж"}
    path = write_lines(tmp_path / "facts.jsonl", *[record] * 20, encoding=code)
    message = rf"facts\.jsonl is not in UTF-8, but probably in {name}.*iconv -f {name}"
    with pytest.raises(UserError, match=message):
        load_facts(path)


def test_the_bundled_facts_are_read():
    facts = load_facts(BUNDLED_FACTS)
    assert len(facts) == len(BUNDLED_FACTS.read_text(encoding="utf-8").splitlines())
