"""What a language model knows, asked by log-probabilities: facts, minimal pairs, case endings.

No answer is generated and read: of several texts that differ in one place the model is to find the right one likelier.
evaluate.py runs these probes and prints what they come to.
"""

import csv
import functools
import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from corpus.sources import clean, hub_answers, open_text
from corpus.tokenizer import EOS, encode, encode_prompt
from support.cli import UserError
from support.numpy_decoder import fastest_step

BATCH_TOKENS = 4096  # that the model is given at a time, padding included
WORD = re.compile(r"\w+(?:-\w+)*")


@functools.cache
def morphology():
    """The analyzer with pymorphy3's dictionary, loaded on first use: it takes half a second and 15 MB."""
    import pymorphy3

    return pymorphy3.MorphAnalyzer()


# Log-probabilities


def spans(length: int, start: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """How to scorer the tokens start to length - 1 of a sequence, each once: (begin, first, last) of each reading.

    A reading gives the model the tokens begin to last - 1, at most `window`, and judges the tokens first to last. Each
    has window - stride tokens or more before it, or all that there are; with stride = window the windows do not overlap.
    """
    first = max(1, start)  # there is nothing before token 0 to predict it from
    while first < length:
        begin = max(0, first - 1 - (window - stride))
        last = min(begin + window, length - 1)
        yield begin, first, last
        first = last + 1


class Scorer:
    """Log-probabilities of tokens and sentences under a model, many at once."""

    def __init__(self, model, tokenizer, device=torch.device("cpu"), dtype=torch.float32):
        """The model is on the device, in evaluation mode; matrix products are computed in dtype."""
        self.model, self.tokenizer, self.device, self.dtype = model, tokenizer, device, dtype
        self.eos = tokenizer.token_to_id(EOS)

    @torch.no_grad()
    def token_losses(self, sequences: Sequence, starts: Sequence[int], title: str, stride: int = 0) -> list[np.ndarray]:
        """-log p in nats of the tokens of each sequence of ids, from number starts[i] (1 or above) to its end.

        What is longer than the model's window is read as spans() says, in strides of half a window if none is given.
        """
        window = self.model.max_seq_len
        stride = stride or max(1, window // 2)
        losses = [np.zeros(max(0, len(ids) - start)) for ids, start in zip(sequences, starts)]
        lengths = map(len, sequences)
        readings = [(i, *span) for i, pair in enumerate(zip(lengths, starts)) for span in spans(*pair, window, stride)]
        readings.sort(key=lambda reading: reading[3] - reading[1])  # those of a length together: little padding
        total = sum(last - begin for _, begin, _, last in readings)
        with tqdm(total=total, desc=title, unit=" tokens", unit_scale=True) as bar:
            while readings:
                longest = readings[-1][3] - readings[-1][1]  # the longest first, so that memory never runs out late
                batch = [readings.pop() for _ in range(min(len(readings), max(1, BATCH_TOKENS // longest)))]
                ids = np.zeros((len(batch), longest + 1), np.int64)  # what stands behind a sequence changes nothing in it
                judged = np.zeros((len(batch), longest), bool)
                for row, (i, begin, first, last) in enumerate(batch):
                    ids[row, : last - begin + 1] = sequences[i][begin : last + 1]
                    judged[row, first - begin - 1 : last - begin] = True
                ids, judged = torch.from_numpy(ids).to(self.device), torch.from_numpy(judged).to(self.device)
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                    logits = self.model(ids[:, :-1])
                logits, targets = logits[judged], ids[:, 1:][judged]
                logits = logits if logits.dtype == torch.float64 else logits.float()
                values = F.cross_entropy(logits, targets, reduction="none").cpu().numpy()
                at = 0
                for i, begin, first, last in batch:
                    losses[i][first - starts[i] : last + 1 - starts[i]] = values[at : at + last + 1 - first]
                    at += last + 1 - first
                    bar.update(last - begin)
        return losses

    def sentence_logprobs(self, sentences: Iterable[str], title: str) -> np.ndarray:
        """log p of each sentence from its first token to the <EOS> behind it, given an <EOS>: float64 (N,).

        A sentence is judged with a space at its end, as it stands within an article.
        """
        sequences = [[self.eos, *encode(self.tokenizer, sentence.strip() + " ")] for sentence in sentences]
        return np.array([-losses.sum() for losses in self.token_losses(sequences, [1] * len(sequences), title)])

    def greedy(self, prompts: list[list[int]], length: int) -> list[str]:
        """The likeliest continuation of each prompt, token by token, to the end of the sentence or for `length` tokens."""
        texts = [""] * len(prompts)
        for size in set(map(len, prompts)):
            rows = [row for row, ids in enumerate(prompts) if len(ids) == size]
            prompt_ids = torch.tensor([prompts[row] for row in rows], device=self.device)
            step = fastest_step(self.model, len(rows)) if hasattr(self.model, 'blocks') else None
            tokens = self.model.generate(prompt_ids, temperature=0, step=step)
            tokens = torch.stack(list(itertools.islice(tokens, length)), dim=1)
            for row, ids in zip(rows, tokens.tolist()):
                texts[row] = self.tokenizer.decode(list(itertools.takewhile(lambda token: token != self.eos, ids)))
        return texts


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95% interval of a share, `right` of `count`  (Wilson 1927)."""
    z, share = 1.959964, right / count
    centre, spread = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, (centre - spread) / (1 + z * z / count)), min(1.0, (centre + spread) / (1 + z * z / count))


def share(right: Iterable[bool]) -> dict:
    """How many there are, the share of the right ones, and its 95% interval; only the first where there are none."""
    right = [bool(each) for each in right]
    if not right:
        return {"count": 0}
    low, high = wilson(sum(right), len(right))
    return {"count": len(right), "accuracy": sum(right) / len(right), "low": low, "high": high}


def shares(keys: Iterable, right: Iterable[bool]) -> dict:
    """share() of those with the same key, by key, in the keys' order."""
    groups = defaultdict(list)
    for key, each in zip(keys, right):
        groups[key].append(each)
    return {key: share(groups[key]) for key in sorted(groups)}


# Facts


def evaluate_facts(scorer: Scorer, facts: list[dict], train_words: Iterable[list[str]] = ()) -> dict:
    """Facts (relation, prompt, answer): all answers of a relation compete as the continuation of each of its prompts.

    They are ranked by log p(answer | prompt), and "corrected" for how likely the answer is whatever is asked: by what
    that is above the log of the answer's mean probability behind all prompts of the relation (pointwise mutual
    information, as in Holtzman et al. 2021, arXiv:2104.08315; behind a bare <EOS> no answer ever stood, so its
    probability there says nothing). "exact": the greedy continuation begins with the answer. Ties count as wrong.
    """
    answers = defaultdict(list)
    for fact in facts:
        if fact["answer"] not in answers[fact["relation"]]:
            answers[fact["relation"]].append(fact["answer"])
    ids = {answer: scorer.tokenizer.encode(" " + answer).ids for each in answers.values() for answer in each}
    prompts = [encode_prompt(scorer.tokenizer, fact["prompt"])[1] for fact in facts]
    pairs = [(i, answer) for i, fact in enumerate(facts) for answer in answers[fact["relation"]]]
    sequences, starts = [prompts[i] + ids[answer] for i, answer in pairs], [len(prompts[i]) for i, _ in pairs]
    plain, anyway = [{} for _ in facts], defaultdict(list)
    for (i, answer), losses in zip(pairs, scorer.token_losses(sequences, starts, "facts")):
        plain[i][answer] = -float(losses.sum())
        anyway[facts[i]["relation"], answer].append(plain[i][answer])
    anyway = {key: np.logaddexp.reduce(scores) - math.log(len(scores)) for key, scores in anyway.items()}
    written = scorer.greedy(prompts, max(map(len, ids.values())) + 2)
    together = cooccurrences(facts, train_words)

    rows = []
    for i, fact in enumerate(facts):
        corrected = {answer: score - float(anyway[fact["relation"], answer]) for answer, score in plain[i].items()}
        ranks = [sum(score >= scores[fact["answer"]] for score in scores.values()) for scores in (plain[i], corrected)]
        exact = re.match(re.escape(fact["answer"]) + r"(?!\w)", written[i].strip()) is not None
        row = {"candidates": len(plain[i]), "rank": ranks[0], "rank_corrected": ranks[1], "exact": exact}
        rows.append({**fact, **row, "written": written[i].strip(), "sentences": together[i]})
    by_relation = {relation: summary([row for row in rows if row["relation"] == relation]) for relation in answers}
    buckets = {"0": (0, 0), "1": (1, 1), "2": (2, 2), "3": (3, 3), "4 and more": (4, math.inf)}
    by_count = {
        name: summary(chosen)
        for name, (low, high) in buckets.items()
        if (chosen := [row for row in rows if low <= row["sentences"] <= high])
    }
    return {"overall": summary(rows), "by_relation": by_relation, "by_sentences": by_count, "facts": rows}


def summary(rows: list[dict]) -> dict:
    """Top-1 accuracy and mean reciprocal rank of some facts, exact matches and chance."""
    mean = lambda values: sum(values) / len(rows)
    return {
        "count": len(rows),
        "top1": mean(row["rank"] == 1 for row in rows),
        "top1_corrected": mean(row["rank_corrected"] == 1 for row in rows),
        "mrr": mean(1 / row["rank"] for row in rows),
        "mrr_corrected": mean(1 / row["rank_corrected"] for row in rows),
        "exact": mean(row["exact"] for row in rows),
        "chance": mean(1 / row["candidates"] for row in rows),
    }


@functools.cache
def lemma(word: str) -> str:
    return morphology().parse(word)[0].normal_form


def cooccurrences(facts: list[dict], train_words: Iterable[list[str]]) -> list[int]:
    """For each fact, how many training sentences (lists of words in lower case) hold both its subject and its answer.

    The subject is that noun of the prompt which the fewest prompts of the relation have, the longest of several; words
    are compared by their lemmas.
    """
    prompts = [{word: lemma(word) for word in WORD.findall(fact["prompt"].lower())} for fact in facts]
    common = Counter((fact["relation"], each) for fact, words in zip(facts, prompts) for each in set(words.values()))
    wanted = []
    for fact, words in zip(facts, prompts):
        nouns = [word for word in words if "NOUN" in morphology().parse(word)[0].tag] or list(words)
        subject = min(nouns, key=lambda word: (common[fact["relation"], words[word]], -len(word)), default="")
        wanted.append({lemma(word) for word in [subject, *WORD.findall(fact["answer"].lower())]})
    where = {each: set() for lemmas in wanted for each in lemmas}
    for number, words in enumerate(train_words):
        for word in words:
            if (each := lemma(word)) in where:
                where[each].add(number)
    return [len(set.intersection(*(where[each] for each in lemmas))) for lemmas in wanted]


# Minimal pairs


def load_pairs(name: str) -> list[dict]:
    """The minimal pairs of a CSV file, or of a data set of the hub (all its configurations and splits).

    Each has source_sentence (grammatical), target_sentence (not), phenomenon and paradigm ("" and the configuration's
    name where there is no such column). Raises UserError if they cannot be read.
    """
    if Path(name).is_file():
        try:
            with open_text(Path(name)) as file:
                tables = [("", list(csv.DictReader(file)))]
        except csv.Error as error:
            raise UserError(f"{name} is not a CSV file in UTF-8: {error}") from error
    elif re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        import datasets  # here, because it takes a second

        if not datasets.config.HF_HUB_OFFLINE and not hub_answers(name):
            datasets.config.HF_HUB_OFFLINE = True  # look for a cached copy only, and at once
        try:
            names = datasets.get_dataset_config_names(name)
            tables = [(each, itertools.chain(*datasets.load_dataset(name, each).values())) for each in names]
        except Exception as error:  # no hub, no such data set, a broken one
            raise UserError(f"{name}: the hub does not give these pairs: {type(error).__name__}: {error}") from error
    else:
        raise UserError(f"{name}: no such file (and a data set of the hub is called owner/name)")
    pairs = []
    for config, rows in tables:
        for row in rows:
            if not row.get("source_sentence") or not row.get("target_sentence"):
                raise UserError(f"{name}: each pair must have a source_sentence and a target_sentence (--pairs)")
            extra = {"phenomenon": row.get("phenomenon") or "", "paradigm": row.get("paradigm") or config}
            sentences = {side: clean(row[side]) for side in ("source_sentence", "target_sentence")}
            pairs.append(sentences | extra)
    if not pairs:
        raise UserError(f"{name} holds no pairs (--pairs)")
    return pairs


def evaluate_pairs(scorer: Scorer, pairs: list[dict]) -> dict:
    """The share of pairs whose grammatical sentence is the likelier one, over all, by phenomenon and by paradigm."""
    sentences = [pair[side] for pair in pairs for side in ("source_sentence", "target_sentence")]
    source, target = scorer.sentence_logprobs(sentences, "minimal pairs").reshape(-1, 2).T
    right = source > target
    by = {f"by_{key}": shares([pair[key] for pair in pairs], right) for key in ("phenomenon", "paradigm")}
    return {"overall": share(right), **by}
