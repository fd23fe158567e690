"""The bundled encyclopedia and its facts keep what a small model learns from: what a slip would break."""

import json
import lzma
import re
from collections import Counter, defaultdict

import pytest

from corpus.sources import BUNDLED_FILE
from evaluation.words import lemma, morphology

ROUNDS = 8  # articles.jsonl holds one piece of every topic, then another of every topic, and so on
ARTICLES = [json.loads(line) for line in BUNDLED_FILE.read_text(encoding="utf-8").splitlines()]
TEXTS = [article["sample"] for article in ARTICLES]
TOPICS = list(dict.fromkeys(article["topic"] for article in ARTICLES))
FACTS_FILE = BUNDLED_FILE.with_name("facts.jsonl")
FACTS = [json.loads(line) for line in FACTS_FILE.read_text(encoding="utf-8").splitlines()]
CHARACTERS = re.compile(r"[А-Яа-яЁё0-9 .,:;!?…«»()—+-]+")


def words_of(text: str) -> list[str]:
    return re.findall(r"[\w-]+", text.lower())


SENTENCES = [sentence for text in TEXTS for sentence in re.split(r"(?<=[.!?…])»?\s+", text)]
RUNNING_WORDS = [word for text in TEXTS for word in re.findall(r"[а-яё]+(?:-[а-яё]+)*", text.lower())]


def test_there_is_enough_of_it():
    assert sum(map(len, TEXTS)) >= 2_500_000 and len(TOPICS) >= 330
    assert all(set(article) == {"topic", "sample"} for article in ARTICLES)
    assert all(600 <= len(text) <= 1200 for text in TEXTS)


def test_each_round_tells_every_topic_once():
    size = len(TOPICS)
    assert len(ARTICLES) == ROUNDS * size
    for start in range(0, len(ARTICLES), size):
        assert {article["topic"] for article in ARTICLES[start : start + size]} == set(TOPICS)


def test_held_out_pieces_share_few_words_in_a_row_with_the_rest():
    """The last two rounds, up to a fifth, may be held out. They share no six-word runs but those of facts."""
    size = 2 * len(TOPICS)
    told = {run for text in TEXTS[:-size] for run in six_word_runs(text)}
    held_out = [run for text in TEXTS[-size:] for run in six_word_runs(text)]
    assert sum(run in told for run in held_out) <= 0.005 * len(held_out)


def six_word_runs(text: str) -> list[tuple[str, ...]]:
    words = words_of(text)
    return [tuple(words[i : i + 6]) for i in range(len(words) - 5)]


def test_nothing_is_said_twice_in_the_same_words():
    long = [" ".join(words) for words in map(words_of, SENTENCES) if len(words) >= 5]
    assert len(set(long)) == len(long)
    runs = Counter(run for text in TEXTS for run in six_word_runs(text))
    assert runs.most_common(1)[0][1] <= 10
    text = "\n".join(TEXTS).encode()
    assert 4.5 <= len(text) / len(lzma.compress(text, preset=9)) <= 7


def test_its_alphabet_and_marks():
    for text in TEXTS:
        assert CHARACTERS.fullmatch(text), set(CHARACTERS.sub("", text))
        assert not re.search(r" [-–] |  | [,.:;!?]", text), text
        depth = 0
        for mark in re.findall("[«»]", text):
            depth += 1 if mark == "«" else -1
            assert 0 <= depth <= 2, text
        assert depth == 0 and text.count("(") == text.count(")") and re.search(r"[.!?…]»?$", text), text


def test_its_russian_is_simple():
    lengths = [len(words_of(sentence)) for sentence in SENTENCES]
    assert 7 <= sum(lengths) / len(lengths) <= 10
    assert sum(5 <= length <= 14 for length in lengths) >= 0.8 * len(lengths)
    lemmas = Counter(map(lemma, RUNNING_WORDS))
    assert sum(count for _, count in lemmas.most_common(4000)) >= 0.93 * len(RUNNING_WORDS)
    lower_case_word = re.compile(r"(?<![\w-])[а-яё]+(?:-[а-яё]+)*(?![\w-])")
    lower_case = [word for text in TEXTS for word in lower_case_word.findall(text)]
    assert sum(map(morphology().word_is_known, lower_case)) >= 0.98 * len(lower_case)


def test_its_facts():
    answers = defaultdict(set)
    for fact in FACTS:
        answers[fact["relation"]].add(fact["answer"])
    assert len(FACTS) >= 700 and len(answers) >= 15 and min(map(len, answers.values())) >= 10
    for key in ("prompt", "paraphrase"):
        assert len({fact[key] for fact in FACTS}) == len(FACTS)


@pytest.fixture(scope="module")
def texts_by_word() -> dict[str, set[int]]:
    """Each lemma, and each word as it is written, with the numbers of the trained texts that hold it."""
    found = defaultdict(set)
    for number, text in enumerate(TEXTS[: -2 * len(TOPICS)]):  # trained on at any val_fraction up to a fifth
        for word in words_of(text):
            found[word].add(number)
            found[lemma(word)].add(number)
    return found


def test_each_fact_can_be_learned_and_is_asked_twice(texts_by_word):
    """It is told in its prompt's words in several pieces, and never in those of its paraphrase."""
    told = [f" {' '.join(words_of(text))} " for text in TEXTS]
    for fact in FACTS:
        assert set(fact) == {"relation", "prompt", "answer", "paraphrase", "subject"}
        assert all(value == value.strip() for value in fact.values())
        words = words_of(fact["answer"])
        holding = set.intersection(*(texts_by_word[word] | texts_by_word[lemma(word)] for word in words))
        assert len(holding) >= 4, fact
        statement = f" {' '.join(words_of(fact['prompt'] + ' ' + fact['answer']))} "
        assert sum(statement in told[i] for i in holding) >= 4, fact
        assert not any(" ".join(words_of(fact["paraphrase"])) in text for text in told), fact
