"""Samples of a model that always writes the same text, and shares of four-grams counted by hand."""

import pytest
from table_models import table_model, word_tokenizer

from evaluation.samples import evaluate_samples, recited_shares, without_last_word
from evaluation.scoring import Scorer
from evaluation.words import words_of


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


def test_sequences_of_four_words():
    train = words_of(["Раз два три четыре пять.", "Шесть семь восемь девять."])
    texts = {"a": ["раз, два, три, четыре!", "Семь восемь девять раз"], "c": ["раз"]}
    texts["b"] = ["два три четыре пять", "один"]
    assert recited_shares(train, texts) == {"a": 0.5, "b": 1.0, "c": 0.0}


def test_the_last_word_is_dropped():
    assert without_last_word(["Раз два. ", "Три четы"]) == ["Раз два. ", "Три "]
    assert without_last_word(["Раз два. "]) == ["Раз "]
    assert without_last_word(["Ра"]) == [""] and without_last_word([""]) == [""]


def test_samples(tokenizer):
    words = ["Он", " жил", " без", " кота", " и", " котов", "."]
    model = table_model(tokenizer, *((a, b, 99.0) for a, b in zip(words, words[1:])))
    end = tokenizer.token_to_id(".")
    model.table[0, tokenizer.encode("Он").ids[0]] = model.table[end, 0] = 99.0  # after <EOS> and a full stop
    words = words_of(["Он жил без кота"])
    result = evaluate_samples(Scorer(model, tokenizer), ["Он жил без ктоа."], words, 0)
    assert result["real"]["known"] == 0.75 and result["real"]["recited"] == 0
    for temperature in ("0.5", "1.0"):
        written = result[temperature]
        assert written["known"] == 1
        # 16 tokens: "Он жил без кота и котов. Он жил без кота и (котов.)", last word cut; 3 + 2 four-grams
        assert written["recited"] == 2 / 5
        assert written["agreement"]["preposition and noun"]["accuracy"] == 1
        assert len(result["continuations"][temperature]) == 3
