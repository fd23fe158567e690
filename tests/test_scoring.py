"""Scorer against one sentence at a time and one window per token; the interval against its definition."""

import math

import numpy as np
import pytest
import torch
from table_models import TableModel, random_model, word_tokenizer

from corpus.tokenizer import EOS, train_tokenizer
from evaluation.scoring import WORD_END, Scorer, continues_word, share, shares, wilson


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


def test_log_probabilities_are_those_of_one_sentence_at_a_time(tokenizer):
    model = random_model(12, tokenizer.get_vocab_size())
    sentences = ["Кот спит.", "Столица Франции Париж.", "Он жил без кота.", "Кот.", "Коты спят и спят."]
    expected = []
    for sentence in sentences:
        ids = torch.tensor([[0, *tokenizer.encode(sentence + " ").ids, 0]])  # <EOS> is token 0
        assert ids.shape[1] <= 13
        log_p = model(ids[:, :-1])[0].log_softmax(-1)
        expected.append(sum(log_p[i, token].item() for i, token in enumerate(ids[0, 1:])))
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-3)):
        losses = Scorer(model.to(dtype), tokenizer).sentence_losses(sentences, "")
        assert [-each.sum() for each in losses] == pytest.approx(expected, abs=tolerance)


def test_what_is_longer_than_the_window_is_scored_once_and_with_context(tokenizer):
    model = random_model(6, tokenizer.get_vocab_size())
    ids = torch.randint(tokenizer.get_vocab_size(), (29,), generator=torch.Generator().manual_seed(1))

    def loss(token: int, begin: int) -> float:
        return -model(ids[None, begin:token])[0, -1].log_softmax(-1)[ids[token]].item()

    every = [loss(t, max(0, t - 6)) for t in range(1, 29)]  # a window of its own for each token
    fixed = [loss(t, (t - 1) // 6 * 6) for t in range(1, 29)]
    halves = [loss(t, 0 if t <= 6 else (t - 7) // 3 * 3 + 3) for t in range(1, 29)]
    scorer = Scorer(model, tokenizer)
    for stride, expected in ((1, every), (6, fixed), (3, halves), (0, halves)):
        assert scorer.token_losses([ids.tolist()], [1], "", stride)[0] == pytest.approx(expected, abs=1e-9)
    late, short = scorer.token_losses([ids.tolist(), ids[:4].tolist()], [20, 2], "", 1)
    assert late == pytest.approx(every[19:], abs=1e-9) and short == pytest.approx(every[1:3], abs=1e-9)


def test_the_end_of_a_word_is_scored_as_one_token(tokenizer):
    """Also behind a sequence that fills the window, and in a batch with longer sequences."""
    model = random_model(6, tokenizer.get_vocab_size())
    scorer = Scorer(model, tokenizer)
    ends = scorer.word_end_ids
    ids = torch.randint(tokenizer.get_vocab_size(), (9,), generator=torch.Generator().manual_seed(2)).tolist()

    def expected(length: int) -> float:
        p = model(torch.tensor([ids[max(0, length - 6) : length]]))[0, -1].softmax(-1)
        return -math.log(p[ends].sum().item())

    sequences = [[*ids[:length], WORD_END] for length in range(1, 10)]
    losses = scorer.token_losses(sequences, [len(each) - 1 for each in sequences], "", stride=1)
    assert np.concatenate(losses) == pytest.approx([expected(length) for length in range(1, 10)], abs=1e-9)
    plain = scorer.token_losses([ids], [1], "", stride=1)[0]
    with_end = scorer.token_losses([[*ids, WORD_END]], [1], "", stride=1)[0]
    assert with_end[:-1] == pytest.approx(plain, abs=1e-9)


def test_tokens_that_continue_a_word():
    tokenizer = train_tokenizer(["(котам (1234 (ёж — «« - -я -- ... в доме"] * 9, 400)
    found = {}
    for token in range(tokenizer.get_vocab_size()):
        text = tokenizer.decode([token], skip_special_tokens=False)
        if not text.startswith("\ufffd"):
            found[text] = continues_word(tokenizer, token)
    expected = {"котам": True, "1234": True, "ёж": True, "-": True, " доме": False, " —": False, " ": False}
    expected |= {".": False, EOS: False, " --": False, " -": False, " ...": False, " в": False, "(": False}
    assert {text: found[text] for text in expected} == expected
    assert all(value == (text[0].isalnum() or text == "-") for text, value in found.items() if text != EOS)
    # Single bytes: the first of к, ё, the accent and é, that of «, — and 🙂, and one within a character
    in_words = (0xD0, 0xD1, 0xCC, 0xC3)
    for byte in (*in_words, 0xC2, 0xE2, 0xF0, 0x80):
        token = tokenizer.token_to_id(byte_as_character(byte))
        assert continues_word(tokenizer, token) == (byte in in_words), hex(byte)


def byte_as_character(byte: int) -> str:
    """The character that stands for a byte in a byte-level vocabulary (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [each for each in range(256) if each not in printable]
    return chr(byte) if byte in printable else chr(256 + others.index(byte))


def test_a_word_ends_with_certainty_if_no_token_continues_it(tokenizer):
    size = tokenizer.get_vocab_size()
    table = torch.zeros(size, size)
    scorer = Scorer(TableModel(table), tokenizer)
    share_of_ends = len(scorer.word_end_ids) / size
    assert scorer.token_losses([[5, WORD_END]], [1], "")[0] == pytest.approx([-math.log(share_of_ends)])
    table[5, scorer.word_end_ids] = 200.0
    assert scorer.token_losses([[5, WORD_END]], [1], "")[0] == pytest.approx([0])


@pytest.mark.parametrize("right, count", [(8, 10), (0, 7), (7, 7), (17000, 22578)])
def test_the_interval_is_where_the_share_is_1_96_standard_errors_off(right, count):
    low, high = wilson(right, count)
    assert 0 <= low <= right / count <= high <= 1
    for end in (low, high):
        distance = 1.959964 * math.sqrt(end * (1 - end) / count)
        assert abs(right / count - end) == pytest.approx(distance, abs=1e-9)


def test_shares():
    low, high = wilson(1, 2)
    assert share([True, False]) == {"count": 2, "accuracy": 0.5, "low": low, "high": high}
    assert share([]) == {"count": 0}
    found = {key: (each["count"], each["accuracy"]) for key, each in shares("бабв", [1, 0, 1, 0]).items()}
    assert list(found.items()) == [("а", (1, 0)), ("б", (2, 1)), ("в", (1, 0))]
