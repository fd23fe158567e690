"""The encyclopedia in the making keeps its shape: what a slip of the pen would break."""

import json
import re

import pytest
from helpers import ROOT

FILES = sorted((ROOT / "data" / "encyclopedia").glob("*.jsonl"))
TOPICS = [json.loads(line) for file in FILES for line in file.read_text(encoding="utf-8").splitlines()]
PIECES = [piece for topic in TOPICS for piece in topic["pieces"]]


def words(text: str) -> str:
    return " ".join(re.findall(r"[\w-]+", text.lower()))


def test_every_topic_is_told_in_five_pieces():
    assert len(TOPICS) >= 200 and len({topic["topic"] for topic in TOPICS}) == len(TOPICS)
    assert all(len(topic["pieces"]) == 5 for topic in TOPICS)
    assert all(650 <= len(piece) <= 1200 for piece in PIECES)


def test_no_sentence_stands_twice():
    sentences = [words(s) for piece in PIECES for s in re.split(r"(?<=[.!?…])»?\s+", piece)]
    longer = [s for s in sentences if s.count(" ") >= 4]
    assert len(set(longer)) >= 0.999 * len(longer)


def test_its_alphabet_and_marks():
    for piece in PIECES:
        assert not re.search(r"[A-Za-z\"„“”\n]|\s[-–]\s|  ", piece), piece
        assert piece.count("«") == piece.count("»") and re.search(r"[.!?…]»?$", piece), piece


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic["topic"])
def test_its_facts(topic):
    text = " # ".join(map(words, topic["pieces"]))
    assert topic["facts"]
    for fact in topic["facts"]:
        assert set(fact) == {"relation", "prompt", "answer", "paraphrase", "subject"}
        assert words(fact["prompt"] + " " + fact["answer"]) in text, fact  # one piece states it so
        assert words(fact["paraphrase"]) not in text, fact
        assert fact["prompt"] == fact["prompt"].strip() and fact["answer"] == fact["answer"].strip()
