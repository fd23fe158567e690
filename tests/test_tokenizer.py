"""From text to token ids and back."""

import unicodedata

import pytest
from helpers import ARTICLES
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from corpus.sentences import split_sentences
from corpus.tokenizer import EOS, encode, encode_prompt, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(ARTICLES[:40], 600)


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_any_text_comes_back(tokenizer, text):
    text = text.encode("utf-8", "replace").decode()
    assert tokenizer.decode(encode(tokenizer, text)) == text


@pytest.mark.parametrize(
    "text", [*ARTICLES[40:50], "", " ", "\n", "<EOS>", "a<EOS>b. <EOS> C", "🙂 שלום\0\r\n\t é è́ \u2028"]
)
def test_special_texts_come_back(tokenizer, text):
    ids = encode(tokenizer, text)
    assert tokenizer.decode(ids) == text
    assert ids.count(tokenizer.token_to_id(EOS)) == len(split_sentences(text))


def test_eos_stands_after_every_sentence(tokenizer):
    ids = encode(tokenizer, "Волга — река. Она длинная! А Ока")
    eos = tokenizer.token_to_id(EOS)
    ends = [i for i, token in enumerate(ids) if token == eos]
    parts = [tokenizer.decode(ids[a:b]) for a, b in zip([0, *ends], ends)]
    assert parts == ["Волга — река. ", "Она длинная! ", "А Ока"] and ends[-1] == len(ids) - 1


def test_a_prompt_goes_on_where_it_stops(tokenizer):
    eos = tokenizer.token_to_id(EOS)
    text, ids = encode_prompt(tokenizer, "Столица Франции ")
    assert text == "Столица Франции" and ids[0] == eos and eos not in ids[1:]
    text, ids = encode_prompt(tokenizer, "Он ушёл.")
    assert text == "Он ушёл. " and ids[-1] == eos
    for begun in ("Он родился в 1799 г. В", "Он пришёл. «"):  # the last sentence has only begun
        assert encode_prompt(tokenizer, begun)[0] == begun and encode_prompt(tokenizer, begun)[1][-1] != eos
    assert encode_prompt(tokenizer, "") == ("", [eos])
    assert encode_prompt(tokenizer, "Да\udcff да")[0] == "Да? да"
    decomposed = unicodedata.normalize("NFD", "Чёрный чай")  # й in two characters
    hyphenated = decomposed[:4] + "\u00ad" + decomposed[4:]  # with a soft hyphen
    assert encode_prompt(tokenizer, hyphenated) == encode_prompt(tokenizer, "Чёрный чай")
