"""What the model writes, beside real text: words that exist, phrases copied from training, agreement."""

import itertools
import re
from collections.abc import Iterator

import torch

from corpus.tokenizer import decode_sentences, encode_prompt
from evaluation.case_endings import agreement
from evaluation.scoring import Scorer
from evaluation.words import RUSSIAN_WORD, morphology, words_of
from support.continuation import PROMPTS

TEMPERATURES = (0.5, 1.0)
NUM_SAMPLES, SAMPLE_TOKENS = 96, 128  # generated at each temperature, and the length of each
CONTINUATION_TOKENS = 40  # after each of PROMPTS; these texts are printed, not measured


def evaluate_samples(scorer: Scorer, held_out: list[str], train_words: list[list[str]], seed: int) -> dict:
    """Samples from <EOS> on, at each of TEMPERATURES, beside the held-out sentences ("real").

    "known": the share of Russian words that pymorphy3's dictionary has. "recited": the share of sequences of
    four words in a sentence that the training text has. "agreement": see case_endings.agreement().
    """
    generator = torch.Generator(scorer.device).manual_seed(seed)
    length = min(SAMPLE_TOKENS, scorer.model.max_seq_len)
    texts, continuations = {"real": held_out}, {}
    for temperature in TEMPERATURES:
        name = str(temperature)
        texts[name] = []
        for ids in scorer.generate([[scorer.eos]] * NUM_SAMPLES, length, temperature, generator):
            texts[name] += without_last_word(decode_sentences(scorer.tokenizer, ids))
        continuations[name] = [continuation(scorer, prompt, temperature, generator) for prompt in PROMPTS]

    recited = recited_shares(train_words, texts)
    result = {"continuations": continuations}
    for name, sentences in texts.items():
        words = [word for sentence in sentences for word in RUSSIAN_WORD.findall(sentence.lower())]
        num_known = sum(morphology().word_is_known(word) for word in words)
        result[name] = {
            "words": len(words),
            "known": num_known / max(1, len(words)),
            "recited": recited[name],
            "agreement": agreement(sentences),
        }
    return result


def without_last_word(sentences: list[str]) -> list[str]:
    """Drop the last word of a sample, which may be cut off."""
    *whole, last = sentences
    return [*whole, re.sub(r"\S+\s*\Z", "", last)]


def continuation(scorer: Scorer, prompt: str, temperature: float, generator: torch.Generator) -> str:
    """The prompt and how the model continues it, to the end of the sentence, on one line."""
    prompt, prompt_ids = encode_prompt(scorer.tokenizer, prompt)
    ids = scorer.generate([prompt_ids], CONTINUATION_TOKENS, temperature, generator)[0]
    text = prompt + decode_sentences(scorer.tokenizer, ids)[0]
    return " ".join(text.split())


def four_grams(words: list[str]) -> Iterator[tuple[str, ...]]:
    return zip(words, words[1:], words[2:], words[3:])


def recited_shares(train_words: list[list[str]], texts: dict[str, list[str]]) -> dict[str, float]:
    """For each list of sentences, the share of its sequences of four words that training sentences have."""
    wanted = {}
    for name, sentences in texts.items():
        wanted[name] = [gram for words in words_of(sentences) for gram in four_grams(words)]
    any_wanted = set(itertools.chain.from_iterable(wanted.values()))
    found = {gram for words in train_words for gram in four_grams(words) if gram in any_wanted}
    return {name: sum(gram in found for gram in grams) / max(1, len(grams)) for name, grams in wanted.items()}
