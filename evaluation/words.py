"""The words of a text, and what pymorphy3's dictionary knows of them."""

import functools
import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pymorphy3 import MorphAnalyzer

WORD = re.compile(r"\w+(?:-\w+)*")
RUSSIAN_WORD = re.compile(r"[а-яё]+(?:-[а-яё]+)*", re.IGNORECASE)


@functools.cache
def morphology() -> "MorphAnalyzer":
    """pymorphy3 with its dictionary, loaded at the first call: it takes half a second and 15 MB."""
    import pymorphy3

    return pymorphy3.MorphAnalyzer()


@functools.cache
def lemma(word: str) -> str:
    """The dictionary form of a word in lower case: котов -> кот."""
    return morphology().parse(word)[0].normal_form


def words_of(sentences: Iterable[str]) -> list[list[str]]:
    """The words of each sentence in lower case. Equal words are one string, to save memory."""
    return [[sys.intern(word) for word in WORD.findall(sentence.lower())] for sentence in sentences]
