"""Facts: does the model find the right answer the likeliest of all answers to the same kind of question?

Each fact is asked by its prompt, and by its paraphrase if it has one. Where the prompt stands in the training
text word for word, a right answer may be recited; the paraphrase asks what the model knows.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean as mean
from typing import NamedTuple

import numpy as np

from corpus.sources import clean, read_jsonl
from corpus.tokenizer import encode_prompt
from evaluation.scoring import WORD_END, Scorer
from evaluation.words import WORD, lemma, morphology
from support.cli import UserError

BUNDLED_FACTS = Path(__file__).parent.parent / "data" / "facts.jsonl"
# Groups of facts: the fewest and most training sentences that hold subject and answer
SENTENCE_GROUPS = {"0": (0, 0), "1": (1, 1), "2": (2, 2), "3": (3, 3), "4 and more": (4, math.inf)}
LEAST_SHARE = 1e-9  # of an answer's probability: rounding could leave less than nothing to it


class Fact(NamedTuple):
    relation: str
    prompt: str
    answer: str
    paraphrase: str = ""  # asks for the same in other words
    subject: str = ""  # what the fact is about


def load_facts(path: Path) -> list[Fact]:
    """The facts of a .jsonl file. Raises UserError if it cannot be read, or a line is not a fact."""
    facts = [parse_fact(record, f"{path}, fact {i}") for i, record in enumerate(read_jsonl(path), 1)]
    if not facts:
        raise UserError(f"{path} holds no facts (--facts)")
    return facts


def parse_fact(record: object, place: str) -> Fact:
    """The record as a fact. Raises UserError, naming the place, if it is none."""
    values = {}
    for name in Fact._fields:
        value = record.get(name) if isinstance(record, dict) else None
        if value is None:
            values[name] = ""
        elif isinstance(value, (str, int, float)):  # an answer may be a number
            values[name] = clean(str(value)).strip()
    if len(values) < len(Fact._fields) or not (values["relation"] and values["prompt"] and values["answer"]):
        raise UserError(
            f"{place}: no JSON object with relation, prompt and answer, all texts, "
            "as paraphrase and subject may be"
        )
    return Fact(**values)


def evaluate_facts(scorer: Scorer, facts: list[Fact], train_words: Iterable[list[str]] = ()) -> dict:
    """Top-1 accuracy, mean reciprocal rank and exact matches of the facts, asked by their prompts.

    "paraphrase" has the same for their paraphrases. "by_sentences" groups the facts by how many training
    sentences (lists of words in lower case) hold both their subject and their answer.
    """
    candidates = defaultdict(list)  # relation -> its different answers
    for fact in facts:
        if fact.answer not in candidates[fact.relation]:
            candidates[fact.relation].append(fact.answer)
    paraphrased = [fact for fact in facts if fact.paraphrase]
    by_prompt = rank_answers(scorer, facts, [fact.prompt for fact in facts], candidates, "facts")
    by_paraphrase = rank_answers(
        scorer, paraphrased, [fact.paraphrase for fact in paraphrased], candidates, "facts, paraphrased"
    )

    num_sentences = count_sentences(facts, train_words)
    by_sentences = {}
    for name, (low, high) in SENTENCE_GROUPS.items():
        chosen = [row for row, number in zip(by_prompt, num_sentences) if low <= number <= high]
        if chosen:
            by_sentences[name] = summary(chosen)

    rows = []
    rows_of_paraphrases = iter(by_paraphrase)
    for fact, row, number in zip(facts, by_prompt, num_sentences):
        rows.append({**fact._asdict(), **row, "sentences": number})
        if fact.paraphrase:
            rows[-1]["by_paraphrase"] = next(rows_of_paraphrases)
    return {
        **summaries(facts, by_prompt),
        "paraphrase": summaries(paraphrased, by_paraphrase),
        "by_sentences": by_sentences,
        "facts": rows,
    }


def summaries(facts: list[Fact], rows: list[dict]) -> dict[str, dict]:
    """The summary of all rows, and by relation; rows[i] is of facts[i]."""
    by_relation = defaultdict(list)
    for fact, row in zip(facts, rows):
        by_relation[fact.relation].append(row)
    summary_of = {relation: summary(each) for relation, each in by_relation.items()}
    return {"overall": summary(rows), "by_relation": summary_of}


def summary(rows: list[dict]) -> dict[str, int | float]:
    """Top-1 accuracy, mean reciprocal rank, exact matches and chance. Without any rows: the count alone.

    The corrected figures are those of the rows that have a corrected rank, and are left out if none has.
    """
    if not rows:
        return {"count": 0}

    figures = {
        "count": len(rows),
        "top1": mean([row["rank"] == 1 for row in rows]),
        "mrr": mean([1 / row["rank"] for row in rows]),
        "exact": mean([row["exact"] for row in rows]),
        "chance": mean([1 / row["candidates"] for row in rows]),
    }
    corrected = [row["rank_corrected"] for row in rows if "rank_corrected" in row]
    if corrected:
        figures["top1_corrected"] = mean([each == 1 for each in corrected])
        figures["mrr_corrected"] = mean([1 / each for each in corrected])
    return figures


# Ranks


def rank_answers(
    scorer: Scorer, facts: list[Fact], prompts: list[str], candidates: dict[str, list[str]], title: str
) -> list[dict]:
    """For each fact, its answer's rank among its relation's candidates, and what the model writes itself.

    "rank" is by log p, see answer_logprobs(). "rank_corrected" is by log p minus the log of the answer's mean
    probability after all prompts of the relation: an answer that is likely whatever is asked gains nothing
    from that (pointwise mutual information, as in Holtzman et al. 2021, arXiv:2104.08315, who have a neutral
    prompt in place of the mean). A relation with one prompt alone has no "rank_corrected": the mean would be
    that prompt's own, and all answers would tie. Ties count as wrong. "exact": the likeliest continuation
    begins with the answer, not with a longer one.
    """
    if not facts:
        return []
    logprobs = answer_logprobs(scorer, facts, prompts, candidates, title)
    everywhere = defaultdict(list)  # (relation, answer) -> log p after each prompt
    prompts_of = defaultdict(set)  # relation -> its different prompts
    for fact, prompt, scores in zip(facts, prompts, logprobs):
        prompts_of[fact.relation].add(prompt)
        for answer, score in scores.items():
            everywhere[fact.relation, answer].append(score)
    mean_logprobs = {}  # (relation, answer) -> log of the mean of p
    for key, each in everywhere.items():
        mean_logprobs[key] = float(np.logaddexp.reduce(each)) - math.log(len(each))

    prompt_ids = [encode_prompt(scorer.tokenizer, prompt)[1] for prompt in prompts]
    answers = [answer for each in candidates.values() for answer in each]
    longest_answer = max(len(scorer.tokenizer.encode(answer).ids) for answer in answers)
    written = scorer.greedy_continuations(prompt_ids, longest_answer + 2)

    rows = []
    for fact, scores, text in zip(facts, logprobs, written):
        row = {
            "candidates": len(scores),
            "rank": rank(scores, fact.answer),
            "exact": first_answer(text.strip(), candidates[fact.relation]) == fact.answer,
            "written": text.strip(),
        }
        if len(prompts_of[fact.relation]) > 1:
            corrected = {each: score - mean_logprobs[fact.relation, each] for each, score in scores.items()}
            row["rank_corrected"] = rank(corrected, fact.answer)
        rows.append(row)
    return rows


def rank(scores: dict[str, float], answer: str) -> int:
    """1 if the answer has the highest score alone. An equal score counts as a higher one."""
    return sum(score >= scores[answer] for score in scores.values())


def first_answer(text: str, candidates: list[str]) -> str | None:
    """The longest candidate that the text begins with, if its word ends there."""
    found = [answer for answer in candidates if re.match(re.escape(answer) + r"(?!-?\w)", text)]
    return max(found, key=len, default=None)


def answer_logprobs(
    scorer: Scorer, facts: list[Fact], prompts: list[str], candidates: dict[str, list[str]], title: str
) -> list[dict[str, float]]:
    """For each fact, log p of the candidates of its relation as what comes after its prompt.

    That is log p of an answer's tokens, plus log p that the last word ends there: the probability of all
    tokens that do not continue a word. So "рус" does not beat "русский". If another candidate continues an
    answer with a new word ("фунт стерлингов"), its p is part of that of "фунт", and is subtracted from it.
    """
    ids_of, sequences, starts = {}, [], []
    for fact, prompt in zip(facts, prompts):
        shown, prompt_ids = encode_prompt(scorer.tokenizer, prompt)
        space = "" if shown.endswith(" ") else " "  # after a finished sentence the space is there already
        for answer in candidates[fact.relation]:
            if (space, answer) not in ids_of:
                ids_of[space, answer] = scorer.tokenizer.encode(space + answer).ids
            sequences.append(prompt_ids + ids_of[space, answer] + [WORD_END])
            starts.append(len(prompt_ids))
    # In strides of 1, so that every token has the whole prompt before it, or as much of it as a window holds
    losses = iter(scorer.token_losses(sequences, starts, title, stride=1))

    longer = {relation: longer_answers(scorer, answers) for relation, answers in candidates.items()}
    result = []
    for fact in facts:
        logprobs = {answer: -float(next(losses).sum()) for answer in candidates[fact.relation]}
        result.append(without_longer_answers(logprobs, longer[fact.relation]))
    return result


def longer_answers(scorer: Scorer, answers: list[str]) -> dict[str, list[str]]:
    """For each answer, the other answers that continue it with a new word."""
    ids_of = {answer: scorer.tokenizer.encode(" " + answer).ids for answer in answers}
    word_ends = set(scorer.word_end_ids.tolist())

    def continues(longer: str, answer: str) -> bool:
        size = len(ids_of[answer])
        begins_alike = len(ids_of[longer]) > size and ids_of[longer][:size] == ids_of[answer]
        return begins_alike and ids_of[longer][size] in word_ends

    return {answer: [longer for longer in answers if continues(longer, answer)] for answer in answers}


def without_longer_answers(logprobs: dict[str, float], longer: dict[str, list[str]]) -> dict[str, float]:
    """log p of each answer alone, the answers that continue it subtracted: log(p - the sum of theirs)."""
    alone = {}
    for answer in sorted(logprobs, key=len, reverse=True):  # the longer ones first
        share_of_longer = sum(math.exp(alone[each] - logprobs[answer]) for each in longer[answer])
        alone[answer] = logprobs[answer] + math.log(max(1 - share_of_longer, LEAST_SHARE))
    return {answer: alone[answer] for answer in logprobs}


# Training sentences


def count_sentences(facts: list[Fact], train_words: Iterable[list[str]]) -> list[int]:
    """For each fact, how many training sentences (lists of words in lower case) hold subject and answer.

    Words are compared by their lemmas.
    """
    wanted = []
    for fact, subject in zip(facts, subjects(facts)):
        words = WORD.findall(f"{subject} {fact.answer}".lower())
        wanted.append({lemma(word) for word in words})
    found_in = {each: set() for lemmas in wanted for each in lemmas}  # lemma -> numbers of sentences
    for number, words in enumerate(train_words):
        for word in words:
            if lemma(word) in found_in:
                found_in[lemma(word)].add(number)
    return [len(set.intersection(*(found_in[each] for each in lemmas))) if lemmas else 0 for lemmas in wanted]


def subjects(facts: list[Fact]) -> list[str]:
    """The subject of each fact, else the noun of its prompt that the fewest prompts of the relation have."""
    prompts = [{word: lemma(word) for word in WORD.findall(fact.prompt.lower())} for fact in facts]
    num_prompts = Counter()  # (relation, lemma) -> in how many prompts it is
    for fact, words in zip(facts, prompts):
        num_prompts.update((fact.relation, each) for each in set(words.values()))
    result = []
    for fact, words in zip(facts, prompts):
        nouns = [word for word in words if "NOUN" in morphology().parse(word)[0].tag]
        rarity = {word: (num_prompts[fact.relation, words[word]], -len(word)) for word in nouns or words}
        result.append(fact.subject or min(rarity, key=rarity.get, default=""))
    return result
