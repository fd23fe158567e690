"""experiments/case_circuit.py on a text that does not suffice. tests/test_patching.py starts it on a pair."""

from argparse import Namespace

import numpy as np
import pytest

from experiments import case_circuit
from interpretability.probes import Word
from support.cli import UserError


def test_words_without_a_gender_are_too_few(monkeypatch):
    """In the plural no noun has one, so there is nothing that a probe could find."""
    words = [Word([0, 5, 6], lemma, "gent", "plur", "") for lemma in ("дом", "река")]
    pairs = [Namespace(clean=[0, 5, 6])] * 2
    monkeypatch.setattr(case_circuit, "load_text_of", lambda *_: (Namespace(val=np.array([])), ""))
    monkeypatch.setattr(case_circuit, "decode_sentences", lambda *_: [])
    monkeypatch.setattr(case_circuit, "find_pairs", lambda *_: pairs)
    monkeypatch.setattr(case_circuit, "find_words", lambda *_: words)
    with pytest.raises(UserError, match="2 pairs and 0 lemmas with a known gender: train on a longer text"):
        case_circuit.find_circuit(Namespace(max_seq_len=8), None, Namespace())
