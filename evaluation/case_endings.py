"""Case endings: does the model know that it is  без дома  and  к дому?

In real sentences a noun or an adjective whose case its neighbours decide is set into its other case forms, and the
model is to find the right form the likeliest. And in any text: how often what must agree does.
"""

import functools
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from evaluation.scoring import Scorer, morphology, share, shares

CASES = ("nomn", "gent", "datv", "accs", "ablt", "loct")  # nominative, genitive, dative, accusative, instrumental, locative
SPECIAL = {"gen1": "gent", "gen2": "gent", "acc2": "accs", "loc1": "loct", "loc2": "loct"}  # чаю, в лесу
PREPOSITIONS = {  # and the cases after them, rare ones left out: a form that fits none of these is not asked for
    **dict.fromkeys("без безо из изо из-за из-под от ото до для у около после кроме против вокруг".split(), ["gent"]),
    **dict.fromkeys("среди ради возле мимо вместо вдоль внутри".split(), ["gent"]),
    **dict.fromkeys("к ко по благодаря вопреки навстречу".split(), ["datv"]),
    **dict.fromkeys("через про сквозь".split(), ["accs"]),
    **dict.fromkeys("над надо перед передо между".split(), ["ablt"]),
    **dict.fromkeys("о об обо при".split(), ["loct"]),
    **dict.fromkeys("в во на".split(), ["accs", "loct"]),  # after these and the next two the whole sentence decides
    **dict.fromkeys("за под".split(), ["accs", "ablt"]),
    **dict.fromkeys("с со".split(), ["gent", "ablt"]),
}
ALSO = {"по": ["accs", "loct"], "о": ["accs"], "об": ["accs"], "между": ["gent"], "с": ["accs"], "со": ["accs"]}  # rare
RARE = {*"V-oy V-ey V-ie V-bi V-be V-en V-ej V-sh Arch Infr Slng Dist Erro Supr".split()}  # forms like землёю
RUSSIAN = re.compile(r"[а-яё]+(?:-[а-яё]+)*", re.IGNORECASE)
MOST = 2000  # words that are asked for, an even sample of a longer text's


class Target(NamedTuple):
    """A word of a sentence whose case is known, and the forms that it could have been set in."""

    sentence: str
    begin: int
    end: int  # sentence[begin:end] is the word
    case: str
    number: str  # sing or plur
    rule: str  # what decides the case: a preposition before the word, or the agreement of adjective and noun
    preposition: str  # "" unless that is the rule
    forms: dict[str, list[str]]  # form -> its cases; the right one is the first


def case_of(tag) -> str:
    """One of CASES, or what else pymorphy3 calls a case ("voct", "None")."""
    return SPECIAL.get(str(tag.case), str(tag.case))


@functools.lru_cache(50_000)
def readings(word: str, part: str) -> list:
    """What pymorphy3 reads the word as, if a noun ("NOUN") or an adjective ("ADJF") is its likeliest reading."""
    parses = morphology().parse(word.lower())
    if parses[0].tag.POS != part or not parses[0].is_known or "Supr" in parses[0].tag:
        return []
    return [parse for parse in parses if parse.tag.POS == part and case_of(parse.tag) in CASES]


def agree(adjective, noun) -> bool:
    """Whether the readings of an adjective and a noun have the same case and number, and gender in the singular."""
    a, n = adjective.tag, noun.tag
    if case_of(a) != case_of(n) or a.number != n.number:
        return False
    gender = a.number == "plur" or n.gender is None or a.gender == n.gender
    living = a.animacy is None or n.animacy is None or a.animacy == n.animacy  # вижу большого кота, большой дом
    return gender and living


def other_forms(reading, word: str, without_yo: bool) -> dict[str, list[str]]:
    """The word as it stands, then its forms in the other cases of the same number (and gender), each with its cases."""
    tag, right = reading.tag, case_of(reading.tag)
    forms = defaultdict(set)
    for each in reading.lexeme:
        t = each.tag
        same = t.POS == tag.POS and t.number == tag.number and not RARE & t.grammemes
        if tag.POS == "ADJF":
            living = t.animacy is None or tag.animacy is None or t.animacy == tag.animacy
            same = same and t.gender == tag.gender and living
        if same and case_of(t) in CASES:
            forms[each.word.replace("ё", "е") if without_yo else each.word].add(case_of(t))
    if right not in forms.get(word, ()):
        return {}
    others = {form: sorted(cases, key=CASES.index) for form, cases in forms.items() if right not in cases}
    return {word: [right]} | others


def neighbours(sentence: str) -> Iterator[tuple[re.Match | None, re.Match, re.Match | None]]:
    """Each word with the words before and behind it, where a single space is all that stands between."""
    words = list(RUSSIAN.finditer(sentence))
    joined = [sentence[a.end() : b.start()] == " " for a, b in zip(words, words[1:])]
    for i, word in enumerate(words):
        yield (
            words[i - 1] if i and joined[i - 1] else None,
            word,
            words[i + 1] if i + 1 < len(words) and joined[i] else None,
        )


def find_targets(sentence: str, without_yo: bool = False) -> Iterator[Target]:
    """The nouns and adjectives of a sentence whose case can be only one.

    That is a noun behind a preposition; an adjective behind a preposition and before its noun; and an adjective and a
    noun side by side that agree in one way only. without_yo: the text is one that writes е for ё.
    """

    def target(word, found, preposition):
        if len({(case_of(reading.tag), str(reading.tag.number)) for reading in found}) == 1:
            text, tag = word[0].lower(), found[0].tag
            forms = other_forms(found[0], text, without_yo)
            if len(forms) > 1 and word[0] in (text, text.capitalize()):
                rule = "preposition" if preposition else "agreement"
                yield Target(sentence, *word.span(), case_of(tag), str(tag.number), rule, preposition, forms)

    for before, word, behind in neighbours(sentence):
        preposition = before[0].lower() if before and before[0].lower() in PREPOSITIONS else ""
        allowed = PREPOSITIONS.get(preposition, CASES)
        nouns = readings(word[0], "NOUN")
        if preposition and nouns:
            yield from target(word, [noun for noun in nouns if case_of(noun.tag) in allowed], preposition)
        adjectives = readings(word[0], "ADJF")
        if adjectives and behind:
            pairs = [
                (adjective, noun)
                for adjective in adjectives
                for noun in readings(behind[0], "NOUN")
                if agree(adjective, noun) and case_of(noun.tag) in allowed
            ]
            yield from target(word, [adjective for adjective, _ in pairs], preposition)
            yield from target(behind, [noun for _, noun in pairs], "")


def evaluate_cases(scorer: Scorer, sentences: list[str]) -> dict:
    """Among the case forms of a word in its sentence, is the right one the likeliest? The whole sentence is judged.

    Chance is one over the number of forms. Row i, column j of "confusion": how often the case was i and the model would
    have j; a form that stands for several wrong cases counts for each in equal parts. Ties count as wrong.
    """
    without_yo = sum(text.count("ё") for text in sentences) * 50 < sum(text.count("е") for text in sentences)
    targets = [target for sentence in sentences for target in find_targets(sentence, without_yo)]
    targets = targets[:: math.ceil(len(targets) / MOST) or 1]
    texts = [fill(target, form) for target in targets for form in target.forms]
    scores = scorer.sentence_logprobs(texts, "case endings")
    confusion, right = np.zeros((len(CASES), len(CASES))), []
    first = 0
    for target in targets:
        forms = list(target.forms)  # the right one is the first
        own, *others = scores[first : first + len(forms)]
        first += len(forms)
        right.append(own > max(others))
        best_wrong_form = forms[1 + int(np.argmax(others))]
        chosen = [target.case] if right[-1] else target.forms[best_wrong_form]
        for case in chosen:
            confusion[CASES.index(target.case), CASES.index(case)] += 1 / len(chosen)
    behind = [(target.preposition, each) for target, each in zip(targets, right) if target.preposition]
    return {
        "overall": share(right),
        "chance": sum(1 / len(target.forms) for target in targets) / max(1, len(targets)),
        "by_rule": shares([target.rule for target in targets], right),
        "by_case": shares([target.case for target in targets], right),
        "by_number": shares([target.number for target in targets], right),
        "by_preposition": shares(*zip(*behind)) if behind else {},
        "confusion": confusion.tolist(),
    }


def fill(target: Target, form: str) -> str:
    """The sentence with the form in the word's place, with a capital if the word has one."""
    capital = target.sentence[target.begin].isupper()
    return target.sentence[: target.begin] + (form.capitalize() if capital else form) + target.sentence[target.end :]


def agreement(sentences: Iterable[str]) -> dict:
    """Of the nouns behind a preposition, the share in a case that can stand there; of adjective and noun, that agree.

    Not every adjective belongs to the noun behind it, so real text has less than 1, too, and is what to compare with.
    """
    found = {"preposition and noun": [], "adjective and noun": []}
    for sentence in sentences:
        for _, word, behind in neighbours(sentence):
            nouns = readings(behind[0], "NOUN") if behind else []
            first = word[0].lower()
            if nouns and first in PREPOSITIONS:
                allowed = [*PREPOSITIONS[first], *ALSO.get(first, [])]
                found["preposition and noun"].append(any(case_of(noun.tag) in allowed for noun in nouns))
            elif nouns and (adjectives := readings(first, "ADJF")):
                found["adjective and noun"].append(any(agree(a, n) for a in adjectives for n in nouns))
    return {name: share(right) for name, right in found.items()}
