"""How well the model predicts a text, beside count models and xz."""

import lzma
import math

import numpy as np

from evaluation.scoring import Scorer

BIGRAM_PRIOR = 500  # tokens; the weight of the unigrams in the bigram model


def evaluate_text(scorer: Scorer, ids: list[int], text: str, train: np.ndarray) -> dict:
    """How well the model, count models and xz predict the token ids of a text, <EOS> included.

    Per token it is the perplexity, exp of the mean loss; per character and per byte of the text it is in
    bits. The window slides by half its length, so that every token has at least half a window before it, or
    all that there is. "fixed windows" do not overlap, and the loss by position is theirs. An <EOS> stands
    before the text. xz (preset 9) compresses the text alone.
    """
    num_chars, num_bytes, window = len(text), len(text.encode()), scorer.model.max_seq_len
    sequence = np.array([scorer.eos, *ids])
    sliding = scorer.token_losses([sequence], [1], "perplexity, sliding")[0]
    fixed = scorer.token_losses([sequence], [1], "perplexity, fixed", stride=window)[0]
    unigram, bigram = count_model_losses(train, sequence, scorer.model.vocab_size)

    def per_unit(total_bits: float) -> dict[str, float]:
        return {"bits_per_char": total_bits / num_chars, "bits_per_byte": total_bits / num_bytes}

    bits = {}
    all_losses = {"model": sliding, "model, fixed windows": fixed}
    all_losses |= {"bigram counts": bigram, "unigram counts": unigram}
    for name, losses in all_losses.items():
        total = float(losses.sum()) / math.log(2)
        perplexity = math.exp(min(losses.mean(), 700))  # e^710 is no number any more
        bits[name] = {"perplexity": perplexity, **per_unit(total)}
    compressed = 8 * len(lzma.compress(text.encode(), preset=9))
    bits["xz"] = per_unit(compressed)

    positions = np.arange(len(fixed)) % window
    mean_losses = np.bincount(positions, weights=fixed) / np.bincount(positions)
    return {
        "tokens": len(ids),
        "characters": num_chars,
        "bytes": num_bytes,
        "bits": bits,
        "loss_by_position": mean_losses.tolist(),
    }


def count_model_losses(train: np.ndarray, ids: np.ndarray, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """-log p in nats of ids[1:] by the counts n of tokens and of token pairs in N tokens of training text.

    Unigrams, one added to each of the V counts: p(t) = (n(t) + 1) / (N + V). Bigrams, the unigrams as a prior
    of B = BIGRAM_PRIOR tokens: p(t | s) = (n(s, t) + B p(t)) / (n(s) + B)  (MacKay & Peto 1995).
    """
    train, ids = np.asarray(train, np.int64), np.asarray(ids, np.int64)
    unigram = (np.bincount(train, minlength=vocab_size) + 1) / (len(train) + vocab_size)
    p = unigram[ids[1:]]

    # A pair of tokens is one number. The training pairs are sorted, so that bisection finds those of ids.
    pairs, counts = np.unique(train[:-1] * vocab_size + train[1:], return_counts=True)
    wanted = ids[:-1] * vocab_size + ids[1:]
    place = np.searchsorted(pairs, wanted).clip(max=len(pairs) - 1)
    pair_count = np.where(pairs[place] == wanted, counts[place], 0)
    first_count = np.bincount(train[:-1], minlength=vocab_size)[ids[:-1]]
    bigram = (pair_count + BIGRAM_PRIOR * p) / (first_count + BIGRAM_PRIOR)
    return -np.log(p), -np.log(bigram)
