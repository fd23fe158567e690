"""Pairs of sentences in which one word decides the case of a later word: «без старого дома» and «к старому
дому».

Only the deciding word and the ending differ. All tokens between them are shared, and there is at least one,
so the model has to carry the case from the deciding word to the ending; counts of token pairs cannot do it.
find_pairs() makes such pairs from real sentences, pair_of_texts() from two texts of a person's own.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tokenizers import Tokenizer
from tqdm import tqdm

from corpus.tokenizer import EOS, encode_prompt
from evaluation.case_endings import CASES, Target, find_targets, parses_as, with_form, writes_without_yo
from evaluation.scoring import even_sample
from evaluation.words import lemma, morphology
from support.cli import UserError

# Contrast -> two prepositions, each with the case that it takes here
PREPOSITIONS = {
    "в / к": {"в": "loct", "к": "datv"},
    "о / к": {"о": "loct", "к": "datv"},
    "без / к": {"без": "gent", "к": "datv"},
}
# Preposition -> case -> verbs after which it takes this case
VERBS = {
    "на": {
        "accs": "смотреть глядеть взглянуть упасть сесть бросить положить выйти указать подняться".split(),
        "loct": "стоять лежать сидеть висеть жить остаться спать работать держаться находиться".split(),
    },
    "с": {
        "gent": "упасть встать слезть сойти снять спуститься вскочить соскочить свалиться начать".split(),
        "ablt": "говорить разговаривать встретиться познакомиться жить спорить согласиться играть".split(),
    },
}
# Preposition -> before which forms it becomes «об», «во», «ко»
OTHER_FORM_BEFORE = {
    "о": re.compile("[аиоуэ]"),
    "в": re.compile("[вф][^аеёиоуыэюя]"),
    "к": re.compile("вс|вт|мн|дн"),
}
VERB_BEFORE = re.compile(r"(?<![\w-])([а-яё]+) (на|с) $")  # a whole word, not the end of «Упал»
AGREEMENT = "adjective / its noun"
MAX_PAIRS = 120  # of one contrast; of more an even sample
MAX_TOKENS = 64  # longer beginnings of sentences are left out, which saves time


class Pair(NamedTuple):
    """Two sequences of equally many token ids, from <EOS> to the last token before the endings differ."""

    clean: list[int]
    corrupt: list[int]
    clean_token: int  # the first token of the ending that follows clean
    corrupt_token: int  # the first token of the ending that follows corrupt
    decider: int  # position of the first token that differs: the deciding word begins there
    contrast: str = ""
    clean_case: str = ""
    corrupt_case: str = ""
    lemma: str = ""  # of the word whose ending differs

    def deciding_positions(self) -> list[int]:
        """The positions at which clean and corrupt differ."""
        return [i for i, (a, b) in enumerate(zip(self.clean, self.corrupt)) if a != b]


# Alignment


def align(clean: list[int], corrupt: list[int]) -> Pair:
    """The pair that two sequences of token ids make, up to the first token in which their endings differ.

    The deciding word is the first difference, and the ending is the first difference behind the shared tokens
    that follow. Raises ValueError if there is no such ending, as where one ending's tokens begin the other's.
    """
    differs = [a != b for a, b in zip(clean, corrupt)]
    if True not in differs:
        raise ValueError("no token differs before one of the texts ends")
    decider = differs.index(True)
    if False not in differs[decider:]:
        raise ValueError("no shared token follows the first token that differs")
    shared = differs.index(False, decider)
    if True not in differs[shared:]:
        raise ValueError("no token differs behind the shared tokens: the endings must differ, too")
    ending = differs.index(True, shared)
    return Pair(clean[:ending], corrupt[:ending], clean[ending], corrupt[ending], decider)


def pair_of_texts(tokenizer: Tokenizer, clean: str, corrupt: str) -> Pair:
    """The pair that two texts make, each with its ending. Raises UserError if their tokens do not align."""
    both = [encode_prompt(tokenizer, text)[1] for text in (clean, corrupt)]
    try:
        return align(*both)._replace(contrast="your own")
    except ValueError as error:
        tokens = [" | ".join(tokenizer.decode([token]) for token in ids[1:]) for ids in both]
        raise UserError(
            f"{error}. The tokens are  {tokens[0]}  and  {tokens[1]}  (--clean, --corrupt: a deciding word "
            "of as many tokens in both, at least one shared token, an ending that differs)"
        ) from error


# Pairs from real sentences


def find_pairs(targets: list[list[Target]], tokenizer: Tokenizer) -> list[Pair]:
    """Pairs made from the targets of each sentence, at most MAX_PAIRS of each contrast.

    The clean sequence is the beginning of a real sentence.
    """
    found = defaultdict(dict)  # contrast -> place in the text -> pair: one pair of each contrast for a word
    for of_sentence in targets:
        candidates = [each for target in of_sentence for each in changed_preposition(target)]
        candidates += [each for target in of_sentence for each in changed_verb(target)]
        candidates += changed_adjectives(of_sentence)
        for contrast, target, text, form, case in candidates:
            place = (target.sentence, target.begin)
            pair = None if place in found[contrast] else pair_of_target(tokenizer, target, text, form)
            if pair:
                found[contrast][place] = pair._replace(contrast=contrast, corrupt_case=case)
    pairs = []
    for contrast in sorted(found):
        of_contrast = list(found[contrast].values())
        pairs += even_sample(of_contrast, MAX_PAIRS)
    return pairs


def targets_of(sentences: list[str]) -> list[list[Target]]:
    """The nouns and adjectives of each sentence whose case is known, with a progress bar."""
    without_yo = writes_without_yo(sentences)
    bar = tqdm(sentences, "words whose case is known", dynamic_ncols=True, leave=False)
    return [list(find_targets(sentence, without_yo)) for sentence in bar]


# What changed_...() yield: the contrast, the word whose ending differs, the text before it with another
# deciding word, the word's form after that, and its case
Candidate = tuple[str, Target, str, str, str]


def form_in(target: Target, case: str) -> str | None:
    """The form of the target's word in a case, of the same number."""
    return next((form for form, cases in target.forms.items() if case in cases), None)


def rotated(items: Sequence, by: int) -> list:
    """The items in turn, from number `by` on, so that the first is not always the same."""
    return [items[(by + i) % len(items)] for i in range(len(items))]


def changed_preposition(target: Target) -> Iterator[Candidate]:
    """The target behind the other preposition of each contrast that has its own."""
    before, own = target.sentence[: target.begin], target.preposition
    for contrast, cases in PREPOSITIONS.items():
        for other, case in cases.items():
            form = form_in(target, case)
            is_contrast = other != own and cases.get(own) == target.case and before.endswith(f"{own} ")
            if not (form and is_contrast):
                continue
            if other in OTHER_FORM_BEFORE and OTHER_FORM_BEFORE[other].match(form):
                continue
            is_adjective = bool(parses_as("ADJF", target.sentence[target.begin : target.end]))
            name = f"{contrast}, adjective" if is_adjective else contrast
            yield name, target, f"{before.removesuffix(f'{own} ')}{other} ", form, case


def changed_verb(target: Target) -> Iterator[Candidate]:
    """The target behind «на» or «с», with a verb before the preposition that takes it with the other case."""
    before = target.sentence[: target.begin]
    match = VERB_BEFORE.search(before)
    if not match or target.case not in VERBS[match[2]]:
        return
    tag = morphology().parse(match[1])[0].tag
    if tag.POS not in ("VERB", "INFN"):
        return
    # The involvement tells «сядь» from «сядем»: both are imperatives in the singular
    grammemes = {tag.POS, tag.mood, tag.involvement, tag.tense, tag.person, tag.number, tag.gender} - {None}
    for case, verbs in VERBS[match[2]].items():
        form = form_in(target, case)
        if case != target.case and form:
            for other in rotated(verbs, len(before)):
                inflected = morphology().parse(other)[0].inflect(grammemes)
                if inflected:
                    other_text = f"{before[: match.start()]}{inflected.word} {match[2]} "
                    yield f"{match[2]}, by the verb", target, other_text, form, case


def changed_adjectives(targets: list[Target]) -> Iterator[Candidate]:
    """The nouns behind an adjective that no preposition precedes, with the adjective in another case."""
    for adjective, noun in zip(targets, targets[1:]):
        side_by_side = noun.begin == adjective.end + 1 and adjective.case == noun.case
        if adjective.rule != "agreement" or noun.rule != "agreement" or not side_by_side:
            continue
        for case in rotated(CASES, noun.begin):
            adjective_form, noun_form = form_in(adjective, case), form_in(noun, case)
            if case != noun.case and adjective_form and noun_form:
                changed = with_form(adjective, adjective_form)
                before = changed[: adjective.begin + len(adjective_form)] + " "
                yield AGREEMENT, noun, before, noun_form, case


def pair_of_target(tokenizer: Tokenizer, target: Target, other_text: str, form: str) -> Pair | None:
    """The pair of a target and of its form behind another text, or None if the tokens do not align."""
    eos = tokenizer.token_to_id(EOS)
    word = target.sentence[target.begin : target.end]
    before = target.sentence[: target.begin - 1]
    if word[0].isupper():
        form = form.capitalize()
    clean = [eos, *tokenizer.encode(f"{before} {word}").ids]
    corrupt = [eos, *tokenizer.encode(other_text + form).ids]
    try:
        pair = align(clean, corrupt)
    except ValueError:
        return None
    word_begins = 1 + len(tokenizer.encode(before).ids)
    aligned = word_begins == 1 + len(tokenizer.encode(other_text[:-1]).ids)
    if not aligned or len(pair.clean) <= word_begins or len(pair.clean) > MAX_TOKENS:
        return None
    return pair._replace(clean_case=target.case, lemma=lemma(word))
