"""Linear probes: can the case, number and gender of a noun be read from the residual stream, and after which
layer?

A probe is a linear map (ridge regression to one output a class; the largest names the class). It reads the
stream at two tokens of a word: at the token before the word's last one, where the ending is still to be
predicted, and at the last token, where it was read. Each lemma is judged by a probe trained on other lemmas,
so that the probe has to find the property and not the word (Hewitt & Liang 2019, arXiv:1909.03368).

Shapes in the comments: N words, D = d_model, L layers, C classes.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from tqdm import tqdm

from corpus.tokenizer import EOS
from evaluation.case_endings import Target, case_of, parses_as
from interpretability.case_pairs import MAX_TOKENS
from interpretability.patching import in_batches, padded, ratio, record, streams
from llm import LLM

PROPERTIES = ("case", "number", "gender")
POSITIONS = ("before the ending", "last token")
FOLDS = 5
# Of ridge, for features of mean 0 and variance 1. For the case of 3,379 words and a model of width 128,
# strengths from 1 to 100 give the same to half a point; 1000 loses up to four points.
STRENGTH = 100.0


class Word(NamedTuple):
    """A noun at the end of the beginning of a sentence."""

    ids: list[int]  # from <EOS> to the last token of the word
    lemma: str
    case: str
    number: str
    gender: str  # "" in the plural, which has none, and where the dictionary is not sure


# Words


def find_words(targets: list[list[Target]], tokenizer: Tokenizer) -> list[Word]:
    """The nouns among the targets of each sentence that have two tokens at least.

    The tokens before the last one also begin a form of the word in another case. So they do not give the
    case away.
    """
    eos = tokenizer.token_to_id(EOS)
    words = {}  # (sentence, begin) -> word: a sentence that the text repeats counts once
    for target in (target for of_sentence in targets for target in of_sentence):
        nouns = parses_as("NOUN", target.sentence[target.begin : target.end])
        fitting = [noun for noun in nouns if case_of(noun.tag) == target.case]
        ids = [eos, *tokenizer.encode(target.sentence[: target.end]).ids]
        if fitting and len(ids) <= MAX_TOKENS and ending_is_open(tokenizer, target):
            genders = {noun.tag.gender for noun in fitting}
            is_sure = target.number == "sing" and len(genders) == 1
            gender = str(genders.pop() or "") if is_sure else ""
            place = (target.sentence, target.begin)
            words[place] = Word(ids, fitting[0].normal_form, target.case, target.number, gender)
    return list(words.values())


def ending_is_open(tokenizer: Tokenizer, target: Target) -> bool:
    """Whether the word has two tokens at least and all but the last also begin a form in another case."""
    # The forms are in lower case; the word may have a capital, which gives it other tokens
    is_capital = target.sentence[target.begin].isupper()
    forms = [form.capitalize() if is_capital else form for form in target.forms]
    own, *others = (tokenizer.encode(" " + form).ids for form in forms)
    return len(own) > 1 and any(other[: len(own) - 1] == own[:-1] for other in others)


def word_streams(model: LLM, words: list[Word]) -> np.ndarray:
    """The streams at the two POSITIONS of each word, the embedding and after each layer: (2, L + 1, N, D)."""
    found = []
    for batch in in_batches(words, [len(word.ids) for word in words], "streams of words"):
        recorded = record(model, padded([word.ids for word in batch]), streams(model))
        stream = torch.stack([recorded[part] for part in streams(model)])  # (L + 1, B, T, D)
        rows, last = torch.arange(len(batch)), torch.tensor([len(word.ids) - 1 for word in batch])
        found.append(torch.stack((stream[:, rows, last - 1], stream[:, rows, last])))  # (2, L + 1, B, D)
    return torch.cat(found, dim=2).numpy()


# Ridge regression


def ridge(x: np.ndarray, y: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """The W (D, C) and b (C,) that minimise |x W + b - y|^2 + strength |W|^2, for x (N, D) and y (N, C).

    W = (X'X + strength I)^-1 X'Y with the means taken off x and y  (Hoerl & Kennard 1970, Technometrics
    12:55-67, eq. 2.1).
    """
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    X, Y = x - x_mean, y - y_mean
    W = np.linalg.solve(X.T @ X + strength * np.eye(x.shape[1]), X.T @ Y)
    return W, y_mean - x_mean @ W


def predict_unseen(
    x: np.ndarray, labels: np.ndarray, lemmas: np.ndarray, shuffled: bool = False
) -> np.ndarray:
    """The class of each word, named by a probe that was trained on other lemmas: labels (N,) for x (N, D).

    The lemmas are dealt to FOLDS groups; each group is judged by a probe trained on all others. shuffled: the
    labels that it is trained on are put in random order, so nothing can be learned but how frequent they are.
    """
    generator = np.random.default_rng(0)
    classes = np.unique(labels)
    unique_lemmas, number = np.unique(lemmas, return_inverse=True)
    fold = generator.permutation(len(unique_lemmas))[number] % FOLDS  # (N,)
    predicted = np.empty_like(labels)
    for k in range(FOLDS):
        train, test = fold != k, fold == k
        mean, deviation = x[train].mean(axis=0), x[train].std(axis=0) + 1e-8
        train_labels = generator.permutation(labels[train]) if shuffled else labels[train]
        one_hot = (train_labels[:, None] == classes).astype(np.float64)  # (N, C)
        W, b = ridge((x[train] - mean) / deviation, one_hot, STRENGTH)
        predicted[test] = classes[((x[test] - mean) / deviation @ W + b).argmax(axis=1)]
    return predicted


# What is measured


def probe(model: LLM, words: list[Word]) -> dict:
    """How often each property is named right.

    Returns property -> {"words", "lemmas", "chance", position -> {"real", "shuffled"}}. "real" and "shuffled"
    hold one ratio() for each layer, the embedding first; its intervals are over lemmas. Chance is the share
    of the most frequent class.
    """
    words = sorted(words, key=lambda word: len(word.ids))
    all_streams = word_streams(model, words)
    results = {}
    for name in tqdm(PROPERTIES, "probes", dynamic_ncols=True, leave=False):
        known = [i for i, word in enumerate(words) if getattr(word, name)]
        labels = np.array([getattr(words[i], name) for i in known])
        lemmas = np.array([words[i].lemma for i in known])
        most_frequent = Counter(labels.tolist()).most_common(1)[0][1]
        result = {"words": len(known), "lemmas": len(set(lemmas)), "chance": most_frequent / len(known)}
        for position, streams_of_layers in zip(POSITIONS, all_streams):
            result[position] = {"real": [], "shuffled": []}
            for stream in streams_of_layers:  # (N, D)
                x = stream[known].astype(np.float64)
                for labelled in ("real", "shuffled"):
                    predicted = predict_unseen(x, labels, lemmas, shuffled=labelled == "shuffled")
                    result[position][labelled].append(ratio_by_lemma(predicted == labels, lemmas))
        results[name] = result
    return results


def ratio_by_lemma(right: np.ndarray, lemmas: np.ndarray) -> dict[str, float]:
    """The share of words named right (N,), with its interval over lemmas: words of one lemma are alike."""
    unique_lemmas, number = np.unique(lemmas, return_inverse=True)
    return ratio(np.bincount(number, weights=right), np.bincount(number))
