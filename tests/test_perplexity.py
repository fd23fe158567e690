"""Perplexity of models whose predictions are known, and count models worked by hand."""

import math

import numpy as np
import pytest
import torch
from table_models import TEXT, TableModel, word_tokenizer

import evaluation.perplexity as perplexity
from corpus.tokenizer import encode
from evaluation.perplexity import count_model_losses, evaluate_text
from evaluation.scoring import Scorer


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


def test_the_perplexity_of_a_uniform_model_is_the_size_of_its_vocabulary(tokenizer):
    size = tokenizer.get_vocab_size()
    ids = encode(tokenizer, TEXT)
    result = evaluate_text(Scorer(TableModel(torch.zeros(size, size)), tokenizer), ids, TEXT, np.array(ids))
    for name in ("model", "model, fixed windows"):
        each = result["bits"][name]
        assert each["perplexity"] == pytest.approx(size)
        assert each["bits_per_char"] == pytest.approx(len(ids) * math.log2(size) / len(TEXT))
        assert each["bits_per_byte"] == pytest.approx(len(ids) * math.log2(size) / len(TEXT.encode()))
    assert result["loss_by_position"] == pytest.approx([math.log(size)] * 16)
    sizes = (result["tokens"], result["characters"], result["bytes"])
    assert sizes == (len(ids), len(TEXT), len(TEXT.encode()))


def test_a_model_that_learned_nonsense_has_a_perplexity_too(tokenizer):
    size = tokenizer.get_vocab_size()
    table = torch.zeros(size, size)
    table[:, 3] = 1e6
    result = evaluate_text(Scorer(TableModel(table), tokenizer), [5, 7], "аб", np.array([1, 2]))
    assert 1e300 < result["bits"]["model"]["perplexity"] < math.inf


def test_loss_by_position(tokenizer):
    size = tokenizer.get_vocab_size()
    model = TableModel(torch.zeros(size, size), max_seq_len=2)
    model.table[0, 5] = math.log(3.0)  # after token 0, token 5 is three times as likely
    result = evaluate_text(Scorer(model, tokenizer), [5, 7, 7, 7], "абвг", np.array([1, 2]))
    first, other = math.log(size + 2) - math.log(3), math.log(size)  # windows <EOS> 5, 7 7
    assert result["loss_by_position"] == pytest.approx([(first + other) / 2, other])


def test_count_models_worked_by_hand(tokenizer, monkeypatch):
    monkeypatch.setattr(perplexity, "BIGRAM_PRIOR", 13)
    # Five 0, four 1, one 2; pairs 01 3x, 10 3x, 02, 20, 11
    train = np.array([0, 1, 0, 1, 0, 2, 0, 1, 1, 0], np.uint16)
    unigram, bigram = count_model_losses(train, np.array([0, 1, 2, 0, 0]), 3)
    assert np.exp(-unigram) == pytest.approx([5 / 13, 2 / 13, 6 / 13, 6 / 13])  # one more each, of 10 + 3
    expected = [(3 + 5) / (4 + 13), (0 + 2) / (4 + 13), (1 + 6) / (1 + 13), (0 + 6) / (4 + 13)]
    assert np.exp(-bigram) == pytest.approx(expected)

    model = TableModel(torch.zeros(3, 3))
    bits = evaluate_text(Scorer(model, tokenizer), [1, 2, 0, 0], "четыре", train)["bits"]
    assert bits["unigram counts"]["perplexity"] == pytest.approx((13**4 / (5 * 2 * 6 * 6)) ** 0.25)
    assert bits["unigram counts"]["bits_per_char"] == pytest.approx(math.log2(13**4 / (5 * 2 * 6 * 6)) / 6)
    assert bits["bigram counts"]["perplexity"] == pytest.approx((17 * 17 * 14 * 17 / (8 * 2 * 7 * 6)) ** 0.25)
