"""Case endings: which words are asked for, in which forms, and what is counted; all worked by hand."""

import pytest
import torch

import evaluation.case_endings as case_endings
from corpus.tokenizer import train_tokenizer
from evaluation.case_endings import CASES, agreement, evaluate_cases, find_targets
from evaluation.scoring import Scorer
from llm import LLM

# sentence | the words that are asked for, in order: word case number what decides
SENTENCES = """
Он жил без кота.|кота gent sing без
Мы подошли к старому дому.|старому datv sing к; дому datv sing agreement
Через зелёное поле шли люди.|зелёное accs sing через; поле accs sing agreement
Над городами летел самолёт.|городами ablt plur над
Он думал о войне.|войне loct sing о
Книга лежит на столе.|столе loct sing на
Он положил книгу на стол.|стол accs sing на
Гулял в саду.|саду loct sing в
Молодая женщина поёт.|молодая nomn sing agreement; женщина nomn sing agreement
Он боялся больших собак, без.|
Он вошёл в двери.|
Стоит большой дом.|
Без, кота.|
Полный воды стакан.|
В США и без пальто.|
Она не знает его.|
"""


def asked(sentence: str) -> list[str]:
    found = find_targets(sentence)
    rows = [(sentence[t.begin : t.end].lower(), t.case, t.number, t.preposition or t.rule) for t in found]
    return [" ".join(row) for row in rows]


@pytest.mark.parametrize("line", SENTENCES.strip().split("\n"))
def test_words_whose_case_is_known_are_found(line):
    sentence, expected = line.split("|")
    assert asked(sentence) == [each for each in expected.split("; ") if each]


def forms(sentence: str, **options) -> dict:
    return next(find_targets(sentence, **options)).forms


def test_the_forms_are_the_other_cases_of_the_same_number():
    assert forms("Он жил без кота.") == {
        "кота": ["gent"], "кот": ["nomn"], "коту": ["datv"], "котом": ["ablt"], "коте": ["loct"],
    }  # not the accusative, which is кота, too  # fmt: skip
    assert set(forms("Он шёл к стене.")) == {"стене", "стена", "стены", "стену", "стеной"}
    assert set(forms("Он жил без больших городов.")) == {"больших", "большие", "большим", "большими"}
    assert set(forms("Он жил без большого кота.")) == set("большого большой большому большим большом".split())
    assert set(forms("Гулял в саду.")) == {"саду", "сад", "сада", "садом"}  # саде is the same case


def test_a_text_without_yo_is_asked_for_without_it():
    assert "землёй" in forms("Он шёл к земле.") and "землей" in forms("Он шел к земле.", without_yo=True)
    assert "черной" in forms("Он шел к черной земле.", without_yo=True)


class Likes(LLM):
    """A model whose next token depends only on the last: a logit is 0, or what `pairs` says of two words."""

    def __init__(self, tokenizer, pairs: dict[tuple[str, str], float]):
        size = tokenizer.get_vocab_size()
        super().__init__(size, 8, 1, 1, 32)
        self.table = torch.zeros(size, size)
        for (before, after), value in pairs.items():
            a, b = tokenizer.encode(" " + before).ids, tokenizer.encode(" " + after).ids
            assert len(a) == len(b) == 1
            self.table[a[0], b[0]] = value

    def residual(self, input_ids, cache=None):
        return input_ids[..., None]  # (B, T, 1)

    def logits(self, x):
        return self.table[x[..., 0]]


TEXT = ["Он жил без кота.", "Мы шли к стене.", "Мы шли к домам."]
WORDS = {
    "без": "кот кота коту котом коте",
    "к": "стена стены стене стену стеной дома домов домам домами домах",
}


@pytest.fixture(scope="module")
def tokenizer():
    words = [f"Он {preposition} {word}." for preposition, each in WORDS.items() for word in each.split()]
    return train_tokenizer(["\n\n".join(TEXT + words)] * 3, 3000)


def measured(tokenizer, pairs, text=TEXT) -> dict:
    return evaluate_cases(Scorer(Likes(tokenizer, pairs), tokenizer), text)


def row(result, case):
    return dict(zip(CASES, result["confusion"][CASES.index(case)]))


def test_a_model_that_knows_the_endings_and_one_that_knows_the_opposite(tokenizer):
    right = {("без", "кота"): 9.0, ("к", "стене"): 9.0, ("к", "домам"): 9.0}
    result = measured(tokenizer, right)
    assert result["overall"]["count"] == 3 and result["overall"]["accuracy"] == 1
    assert row(result, "gent")["gent"] == 1 and row(result, "datv")["datv"] == 2
    assert sum(map(sum, result["confusion"])) == 3
    assert result["chance"] == pytest.approx((1 / 5 + 1 / 5 + 1 / 5) / 3)
    opposite = measured(tokenizer, {pair: -value for pair, value in right.items()})
    assert opposite["overall"]["accuracy"] == 0
    assert sum(opposite["confusion"][i][i] for i in range(6)) == 0
    assert measured(tokenizer, {})["overall"]["accuracy"] == 0  # ties count as wrong


def test_a_confusion_matrix_made_by_hand(tokenizer):
    result = measured(tokenizer, {("без", "коту"): 9.0, ("к", "стене"): 9.0, ("к", "дома"): 9.0})
    expected = {case: dict.fromkeys(CASES, 0.0) for case in CASES}
    expected["gent"]["datv"] = expected["datv"]["datv"] = 1.0
    expected["datv"]["nomn"] = expected["datv"]["accs"] = 0.5  # дома may be either
    assert {case: row(result, case) for case in CASES} == expected

    def accuracies(key):
        return {name: (each["count"], each["accuracy"]) for name, each in result[f"by_{key}"].items()}

    assert accuracies("case") == {"gent": (1, 0), "datv": (2, 0.5)}
    assert accuracies("preposition") == {"без": (1, 0), "к": (2, 0.5)}
    assert accuracies("number") == {"sing": (2, 0.5), "plur": (1, 0)}
    assert accuracies("rule") == {"preposition": (3, pytest.approx(1 / 3))}


def test_a_text_with_no_such_word(tokenizer):
    result = measured(tokenizer, {}, ["Он спит."])
    assert result["overall"] == {"count": 0} and result["by_case"] == {}


def test_a_long_text_is_sampled(tokenizer, monkeypatch):
    monkeypatch.setattr(case_endings, "MAX_TARGETS", 10)
    assert measured(tokenizer, {}, TEXT * 10)["overall"]["count"] == 10


def test_the_share_that_agrees():
    text = ["К дому и без кот шли.", "Шёл с горы, по грудь и по дороге.", "Большая собака и большой собаку."]
    result = agreement([*text, "Стоит новый дом."])
    nouns = result["preposition and noun"]
    assert nouns["count"] == 5 and nouns["accuracy"] == 0.8  # not: без кот
    assert result["adjective and noun"]["count"] == 3 and result["adjective and noun"]["accuracy"] == 2 / 3
