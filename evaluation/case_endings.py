"""Case endings: does the model know that it is  без дома  and  к дому?

evaluate_cases() takes nouns and adjectives of real sentences whose case their neighbours decide, sets them
into their other case forms, and asks whether the model finds the right form the likeliest. agreement() needs
no model: it counts how often the words of a text agree that must.
"""

import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from evaluation.scoring import Scorer, even_sample, share, shares
from evaluation.words import RUSSIAN_WORD, morphology

if TYPE_CHECKING:
    from pymorphy3.analyzer import Parse
    from pymorphy3.tagset import OpencorporaTag

# Nominative, genitive, dative, accusative, instrumental, locative
CASES = ("nomn", "gent", "datv", "accs", "ablt", "loct")
SECOND_CASES = {"gen1": "gent", "gen2": "gent", "acc2": "accs", "loc1": "loct", "loc2": "loct"}  # чаю, в лесу
# The cases after a preposition, rare ones left out: a word whose form fits none of these is not asked for
CASES_AFTER = {
    **dict.fromkeys("без безо из изо из-за из-под от ото до для у около после кроме".split(), ["gent"]),
    **dict.fromkeys("против вокруг среди ради возле мимо вместо вдоль внутри".split(), ["gent"]),
    **dict.fromkeys("к ко по благодаря вопреки навстречу".split(), ["datv"]),
    **dict.fromkeys("через про сквозь".split(), ["accs"]),
    **dict.fromkeys("над надо перед передо между".split(), ["ablt"]),
    **dict.fromkeys("о об обо при".split(), ["loct"]),
    **dict.fromkeys("в во на".split(), ["accs", "loct"]),  # here and below, the whole sentence decides
    **dict.fromkeys("за под".split(), ["accs", "ablt"]),
    **dict.fromkeys("с со".split(), ["gent", "ablt"]),
}
RARE_CASES_AFTER = {"по": ["accs", "loct"], "между": ["gent"], **dict.fromkeys("о об с со".split(), ["accs"])}
RARE_FORMS = set("V-oy V-ey V-ie V-bi V-be V-en V-ej V-sh Arch Infr Slng Dist Erro Supr".split())  # землёю
MAX_TARGETS = 2000  # words that are asked for; of a longer text an even sample


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


# What the dictionary says


def case_of(tag: "OpencorporaTag") -> str:
    """One of CASES, or what else pymorphy3 calls a case ("voct", "None")."""
    return SECOND_CASES.get(str(tag.case), str(tag.case))


@functools.lru_cache(50_000)
def parses_as(part_of_speech: str, word: str) -> "list[Parse]":
    """pymorphy3's parses of a word as a noun ("NOUN") or an adjective ("ADJF"), if the likeliest is one."""
    parses = morphology().parse(word.lower())
    if parses[0].tag.POS != part_of_speech or not parses[0].is_known or "Supr" in parses[0].tag:
        return []
    return [parse for parse in parses if parse.tag.POS == part_of_speech and case_of(parse.tag) in CASES]


def agree(adjective: "Parse", noun: "Parse") -> bool:
    """Whether an adjective and a noun have the same case and number, and the same gender in the singular."""
    a, n = adjective.tag, noun.tag
    if case_of(a) != case_of(n) or a.number != n.number:
        return False
    gender = a.number == "plur" or n.gender is None or a.gender == n.gender
    animacy = a.animacy is None or n.animacy is None or a.animacy == n.animacy  # вижу белого кота, белый дом
    return gender and animacy


def case_forms(parse: "Parse", word: str, without_yo: bool) -> dict[str, list[str]]:
    """The word, then its forms in the other cases of the same number (and gender), each with its cases."""
    tag, right_case = parse.tag, case_of(parse.tag)
    cases_of_form = defaultdict(set)
    for other in parse.lexeme:
        t = other.tag
        fits = t.POS == tag.POS and t.number == tag.number and not RARE_FORMS & t.grammemes
        if tag.POS == "ADJF":
            same_animacy = t.animacy is None or tag.animacy is None or t.animacy == tag.animacy
            fits = fits and t.gender == tag.gender and same_animacy
        if fits and case_of(t) in CASES:
            form = other.word.replace("ё", "е") if without_yo else other.word
            cases_of_form[form].add(case_of(t))
    if right_case not in cases_of_form.get(word, ()):
        return {}
    forms = {word: [right_case]}
    for form, cases in cases_of_form.items():
        if right_case not in cases:
            forms[form] = sorted(cases, key=CASES.index)
    return forms


# Words whose case is known


def neighbours(sentence: str) -> Iterator[tuple[re.Match | None, re.Match, re.Match | None]]:
    """Each word with the words before and behind it, where a single space is all that stands between."""
    words = list(RUSSIAN_WORD.finditer(sentence))
    joined = [sentence[a.end() : b.start()] == " " for a, b in zip(words, words[1:])]
    for i, word in enumerate(words):
        before = words[i - 1] if i > 0 and joined[i - 1] else None
        behind = words[i + 1] if i + 1 < len(words) and joined[i] else None
        yield before, word, behind


def find_targets(sentence: str, without_yo: bool = False) -> Iterator[Target]:
    """The nouns and adjectives of a sentence whose case can be only one.

    That is a noun behind a preposition; an adjective behind a preposition and before its noun; and an
    adjective and a noun side by side that agree in one way only. without_yo: the text writes е for ё.
    """
    for before, word, behind in neighbours(sentence):
        preposition = before[0].lower() if before and before[0].lower() in CASES_AFTER else ""
        allowed = CASES_AFTER.get(preposition, CASES)

        nouns = parses_as("NOUN", word[0])
        if preposition and nouns:
            fitting = [noun for noun in nouns if case_of(noun.tag) in allowed]
            yield from target_of(sentence, word, fitting, preposition, without_yo)

        adjectives = parses_as("ADJF", word[0])
        if adjectives and behind:
            agreeing = [
                (adjective, noun)
                for adjective in adjectives
                for noun in parses_as("NOUN", behind[0])
                if agree(adjective, noun) and case_of(noun.tag) in allowed
            ]
            agreeing_adjectives = [adjective for adjective, _ in agreeing]
            yield from target_of(sentence, word, agreeing_adjectives, preposition, without_yo)
            yield from target_of(sentence, behind, [noun for _, noun in agreeing], "", without_yo)


def target_of(
    sentence: str, word: re.Match, parses: "list[Parse]", preposition: str, without_yo: bool
) -> Iterator[Target]:  # one or none
    """The word as a Target, if all its possible parses have one case and number, and it has other forms."""
    if len({(case_of(parse.tag), str(parse.tag.number)) for parse in parses}) != 1:
        return
    text, tag = word[0].lower(), parses[0].tag
    forms = case_forms(parses[0], text, without_yo)
    if len(forms) > 1 and word[0] in (text, text.capitalize()):
        rule = "preposition" if preposition else "agreement"
        yield Target(sentence, *word.span(), case_of(tag), str(tag.number), rule, preposition, forms)


# What is counted


def evaluate_cases(scorer: Scorer, sentences: list[str]) -> dict:
    """How often the right form of a word is the likeliest of its case forms. The whole sentence is scored.

    Chance is one over the number of forms. Row i, column j of "confusion" counts words of case i where the
    model prefers case j; a wrong form of several cases counts for each in equal parts. Ties count as wrong.
    """
    without_yo = writes_without_yo(sentences)
    targets = [target for sentence in sentences for target in find_targets(sentence, without_yo)]
    targets = even_sample(targets, MAX_TARGETS)
    texts = [with_form(target, form) for target in targets for form in target.forms]
    scores = [-losses.sum() for losses in scorer.sentence_losses(texts, "case endings")]

    confusion, right = np.zeros((len(CASES), len(CASES))), []
    first = 0  # number of the target's first form in scores
    for target in targets:
        forms = list(target.forms)  # the right one is the first
        own_score, *other_scores = scores[first : first + len(forms)]
        first += len(forms)
        right.append(own_score > max(other_scores))
        best_wrong_form = forms[1 + int(np.argmax(other_scores))]
        chosen_cases = [target.case] if right[-1] else target.forms[best_wrong_form]
        for case in chosen_cases:
            confusion[CASES.index(target.case), CASES.index(case)] += 1 / len(chosen_cases)

    after_preposition = [(target.preposition, ok) for target, ok in zip(targets, right) if target.preposition]
    return {
        "overall": share(right),
        "chance": sum(1 / len(target.forms) for target in targets) / max(1, len(targets)),
        "by_rule": shares([target.rule for target in targets], right),
        "by_case": shares([target.case for target in targets], right),
        "by_number": shares([target.number for target in targets], right),
        "by_preposition": shares(*zip(*after_preposition)) if after_preposition else {},
        "confusion": confusion.tolist(),
    }


def writes_without_yo(sentences: list[str]) -> bool:
    """Whether a text writes е for ё. Texts that write ё have it once for every 13 е or so."""
    return sum(text.count("ё") for text in sentences) * 50 < sum(text.count("е") for text in sentences)


def with_form(target: Target, form: str) -> str:
    """The sentence with the form in the word's place, with a capital if the word has one."""
    if target.sentence[target.begin].isupper():
        form = form.capitalize()
    return target.sentence[: target.begin] + form + target.sentence[target.end :]


def agreement(sentences: Iterable[str]) -> dict[str, dict]:
    """How often a noun fits the preposition before it in case, and agrees with the adjective before it.

    Not every adjective belongs to the noun after it, so real text has less than 1, too: compare with that.
    """
    after_preposition, after_adjective = [], []
    for sentence in sentences:
        for _, word, behind in neighbours(sentence):
            nouns = parses_as("NOUN", behind[0]) if behind else []
            first = word[0].lower()
            adjectives = parses_as("ADJF", first)
            if nouns and first in CASES_AFTER:
                allowed = CASES_AFTER[first] + RARE_CASES_AFTER.get(first, [])
                after_preposition.append(any(case_of(noun.tag) in allowed for noun in nouns))
            elif nouns and adjectives:
                after_adjective.append(any(agree(a, n) for a in adjectives for n in nouns))
    return {"preposition and noun": share(after_preposition), "adjective and noun": share(after_adjective)}
