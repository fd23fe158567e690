"""README.ru.md says what README.md says: the same headings, commands, files, links and numbers."""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENGLISH, RUSSIAN = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.ru.md"))
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def headings(readme: str) -> list[str]:
    """The levels of the headings, in their order."""
    return re.findall(r"^#+(?= )", FENCED.sub("", readme), re.MULTILINE)


def commands(readme: str) -> list[str]:
    """The shell commands of the code blocks, without comments, and those inside a sentence."""
    blocks = "\n".join(FENCED.findall(readme))
    lines = re.findall(r"^(?:\$ )?((?:python3?|torchrun|pip|git|\.) .*?)(?: +#.*)?$", blocks, re.MULTILINE)
    return lines + re.findall(r"`((?:python3?|torchrun|pip|git) [^`]+)`", FENCED.sub("", readme))


def files(readme: str) -> list[str]:
    """The files that the code blocks name."""
    return re.findall(r"[\w/]+\.(?:py|md|jsonl)\b", "\n".join(FENCED.findall(readme)))


def links(readme: str) -> list[str]:
    """The targets of links and pictures, except those from one README to the other."""
    targets = re.findall(r"\]\(([^)\s]+)", readme)
    return [target for target in targets if target not in ("README.md", "README.ru.md")]


def numbers(readme: str) -> list[str]:
    """All numbers, but not the digits of names (bf16). 9,060 and 9 060 count as 9060, and 1,8 as 1.8."""
    thousands = "[,\u00a0\u2009\u202f]" if readme is ENGLISH else "[\u00a0\u2009\u202f]"
    text = re.sub(rf"(?<=\d){thousands}(?=\d{{3}}(?!\d))", "", readme)
    return [number.replace(",", ".") for number in re.findall(r"(?<![\w.])\d+(?:[.,]\d+)*", text)]


@pytest.mark.parametrize("part", [headings, commands, files, links, numbers])
def test_both_have_the_same(part):
    english, russian = (part(readme) for readme in (ENGLISH, RUSSIAN))
    assert len(english) > 5
    ours, theirs = Counter(english), Counter(russian)
    assert ours == theirs, f"only in README.md: {ours - theirs}; only in README.ru.md: {theirs - ours}"


def test_they_link_to_each_other():
    assert "](README.ru.md)" in ENGLISH.splitlines()[0]
    assert "](README.md)" in RUSSIAN.splitlines()[0]
