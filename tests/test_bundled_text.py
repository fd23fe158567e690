"""The bundled encyclopedia and its facts keep their shape: what a slip of the pen would break."""

import json
import lzma
import re
from collections import Counter

import params
from corpus.sentences import split_sentences
from corpus.sources import BUNDLED_FILE

LINES = BUNDLED_FILE.read_text(encoding="utf-8").splitlines()
ARTICLES = [json.loads(line)["sample"] for line in LINES]
SENTENCES = [sentence.strip() for article in ARTICLES for sentence in split_sentences(article)]
FACTS = [json.loads(line) for line in BUNDLED_FILE.with_name("facts.jsonl").read_text(encoding="utf-8").splitlines()]
CHARACTERS = re.compile(r"[А-Яа-яЁёA-Za-z0-9 \n.,:;!?…«»„“()—–\-%°№/+=×²³⁰¹⁴⁵⁶⁷⁸⁹⁻₀₁₂₃₄₅₆₇₈₉√πΔλ·−′″≈§&€$'’]+")


def stem(word: str) -> str:
    """A word without its ending, roughly; numbers, symbols and short words whole."""
    return word if len(word) <= 3 or not word[-1].isalpha() else word[: max(3, len(word) - 2)]


def test_there_is_enough_of_it():
    assert len(ARTICLES) >= 250 and sum(map(len, ARTICLES)) >= 250_000
    assert all(600 <= len(article) <= 1600 and len(split_sentences(article)) >= 4 for article in ARTICLES)
    assert all(set(json.loads(line)) == {"sample"} for line in LINES)


def test_it_is_not_stamped_from_templates():
    assert len(set(ARTICLES)) == len(ARTICLES)
    assert len(set(SENTENCES)) >= 0.98 * len(SENTENCES)
    assert len(set(re.findall("[а-яё]+", " ".join(ARTICLES).lower()))) >= 12_000
    openings = Counter(tuple(sentence.split()[:4]) for sentence in SENTENCES)
    assert openings.most_common(1)[0][1] <= 0.02 * len(SENTENCES)
    file = BUNDLED_FILE.read_bytes()
    assert len(file) / len(lzma.compress(file, preset=9)) <= 4.6


def test_its_alphabet_and_marks():
    for article in ARTICLES:
        assert CHARACTERS.fullmatch(article), set(CHARACTERS.sub("", article))
        for word in re.findall(r"\w+", article):
            assert not (re.search("[A-Za-z]", word) and re.search("[А-Яа-яЁё]", word)), word
        depth = 0
        for mark in re.findall("[«»]", article):
            depth += 1 if mark == "«" else -1
            assert 0 <= depth <= 2, article
        assert depth == 0 and article.count("(") == article.count(")"), article
        for paragraph in article.split("\n"):
            assert re.search(r"[.!?…][»)]?$", paragraph), paragraph[-40:]
    assert all(re.search(r"[.!?…][»)]*$", sentence) for sentence in SENTENCES)


def test_its_facts():
    sizes = Counter(fact["relation"] for fact in FACTS)
    assert len(FACTS) >= 400 and len(sizes) >= 10 and sum(size >= 25 for size in sizes.values()) >= 10
    assert len({fact["prompt"] for fact in FACTS}) == len(FACTS)
    for relation in sizes:  # the answers of a relation compete, so there must be some
        assert len({fact["answer"] for fact in FACTS if fact["relation"] == relation}) >= 4
    lower = [sentence.lower() for sentence in SENTENCES]
    for fact in FACTS:
        assert set(fact) == {"relation", "prompt", "answer"}
        assert fact["prompt"] == fact["prompt"].strip() and fact["answer"] == fact["answer"].strip()
        stems = [stem(word.lower()) for word in fact["answer"].split()]
        perhaps = [sentence for sentence in lower if all(part in sentence for part in stems)]
        stated = sum(all(re.search(r"(?<!\w)" + re.escape(part), sentence) for part in stems) for sentence in perhaps)
        assert stated >= 2, fact


def test_every_fact_is_stated_where_the_model_trains():
    num_train = len(ARTICLES) - max(1, round(len(ARTICLES) * params.val_fraction))
    trained_on = "\n".join(sentence for article in ARTICLES[:num_train] for sentence in split_sentences("\n" + article))
    for fact in FACTS:
        assert f"\n{fact['prompt']} {fact['answer']}" in trained_on, fact
