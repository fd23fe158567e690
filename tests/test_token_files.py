"""Articles as files of token ids."""

import contextlib
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import ARTICLES, start, wait_for, write_articles
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import corpus.token_files
from corpus.sources import load_articles
from corpus.token_files import PARALLEL_FROM, Encoder, prepare_corpus
from corpus.tokenizer import EOS, encode, train_tokenizer
from support.cli import UserError

TEXT = ["Волга — река в Европе. Она впадает в море.", "Один, два 🙂.", "שלום. Три \u202e и четыре."] * 5


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(ARTICLES[:40], 600)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from("абвГ .,!?…\n\t«»—(1_\u0301\xa0"), max_size=80))
def test_the_fast_encoder_gives_the_same_tokens(tokenizer, text):
    encoder = Encoder(tokenizer)
    for _ in range(2):  # without and with a memory of the words
        assert np.frombuffer(encoder(text), np.uint16).tolist() == encode(tokenizer, text)


def test_prepare_holds_the_last_articles_out_and_remembers(tmp_path, monkeypatch):
    made = prepare_corpus(ARTICLES[:50], tmp_path, 500, 0.1, 10**9)
    eos = made.tokenizer.token_to_id(EOS)
    for tokens, articles in ((made.train, ARTICLES[:45]), (made.val, ARTICLES[45:50])):
        assert tokens.dtype == np.uint16 and isinstance(tokens, np.memmap)
        assert made.tokenizer.decode(tokens) == "".join(articles)
        assert tokens.tolist() == [i for article in articles for i in encode(made.tokenizer, article)]
        assert tokens[-1] == eos
    assert made.chars_per_token == pytest.approx(sum(map(len, ARTICLES[45:50])) / len(made.val))
    assert made.tokenizer.get_vocab() == train_tokenizer(ARTICLES[:45], 500).get_vocab()

    monkeypatch.setattr(corpus.token_files, "train_tokenizer", None)  # from now on the cache must do
    again = prepare_corpus(ARTICLES[:50], tmp_path, 500, 0.1, 10**9)
    assert again.key == made.key and np.array_equal(again.train, made.train)
    changed = [(ARTICLES[:49], 500, 0.1), (ARTICLES[:50], 501, 0.1), (ARTICLES[:50], 500, 0.2)]
    for articles, vocab_size, val_fraction in changed:
        with pytest.raises(TypeError):
            prepare_corpus(articles, tmp_path, vocab_size, val_fraction, 10**9)


def test_a_long_text_is_encoded_in_several_processes_all_the_same(tmp_path, monkeypatch):
    alone = prepare_corpus(ARTICLES[:60], tmp_path / "a", 500, 0.1, 10**9)
    monkeypatch.setattr(corpus.token_files, "PARALLEL_FROM", 1)
    monkeypatch.setattr(corpus.token_files, "BATCH_CHARS", 5000)
    together = prepare_corpus(ARTICLES[:60], tmp_path / "b", 500, 0.1, 10**9)
    assert np.array_equal(alone.train, together.train) and np.array_equal(alone.val, together.val)


def test_a_text_in_one_piece_has_its_last_sentences_held_out(tmp_path):
    text = " ".join(ARTICLES[:20])
    made = prepare_corpus([text], tmp_path, 400, 0.1, 10**9)
    held_out = made.tokenizer.decode(made.val)
    assert made.tokenizer.decode(made.train) + held_out == text
    assert 0.05 < len(held_out) / len(text) < 0.15 and held_out[0].isupper()
    for nothing in ([], ["Одно предложение."]):
        with pytest.raises(UserError):
            prepare_corpus(nothing, tmp_path, 400, 0.1, 10**9)


def test_the_tokenizer_of_a_long_text_trains_on_an_even_sample(tmp_path):
    made = prepare_corpus(ARTICLES[:60], tmp_path, 400, 0.1, sum(map(len, ARTICLES[:60])) // 3)
    assert made.tokenizer.get_vocab() == train_tokenizer(ARTICLES[:54:4], 400).get_vocab()


@pytest.mark.parametrize("line", ["Волга течёт. ", "а", "слово да ", "1", ".", " ", "»", "🙂", "а.\n", "\n"])
def test_a_long_line_takes_time_in_proportion(tmp_path, line):
    """Two million characters; anything quadratic in their number would run for hours."""
    article = "А. " + line * (2_000_000 // len(line)) + " Б. Конец."
    text = prepare_corpus([article, "Да. Нет."], tmp_path, 300, 0.1, 1000)
    assert text.tokenizer.decode(text.train.tolist()) == article


def test_a_damaged_cache_is_made_again(tmp_path):
    good = prepare_corpus(TEXT, tmp_path, 300, 0.1, 1000)
    folder = tmp_path / good.key
    tokens = good.train.tolist()
    for name in ("train.bin", "val.bin", "about.json", "bpe_tokenizer.json"):
        data = (folder / name).read_bytes()
        for broken in (b"", data[: len(data) // 2], b"\xff" * len(data), None):
            (folder / name).unlink()
            if broken is not None:
                (folder / name).write_bytes(broken)
            assert prepare_corpus(TEXT, tmp_path, 300, 0.1, 1000).train.tolist() == tokens


def test_a_text_that_changed_within_a_second_is_read_again(tmp_path):
    path = write_articles(tmp_path / "text.jsonl", ARTICLES[:20])
    made, times = [], path.stat()
    for first in (ARTICLES[0], ARTICLES[0][::-1]):  # as long as before
        write_articles(path, [first, *ARTICLES[1:20]])
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        made.append(prepare_corpus(load_articles(str(path), "sample"), tmp_path / "cache", 400, 0.1, 10**9))
    assert made[0].key != made[1].key
    assert made[1].tokenizer.decode(made[1].train).startswith(ARTICLES[0][::-1][:20])


@pytest.mark.parametrize("seconds", [0.05, 1.0])
def test_ctrl_c_while_a_long_text_is_encoded_ends_at_once(tmp_path, seconds):
    articles = [f"{number} {article}" for number in range(20) for article in ARTICLES[:300]]
    assert sum(map(len, articles)) > PARALLEL_FROM
    path = write_articles(tmp_path / "text.jsonl", articles)
    flags = ["--out_dir", tmp_path, "--vocab_size", 300, "--tokenizer_chars", 10**5]
    process = start("train.py", "--dataset", path, *flags)
    wait_for(process, "tokens:")
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.splitlines()[-1] == "train.py: interrupted", err
    assert "Traceback" not in err, err
    deadline = time.monotonic() + 60
    while living_in_group(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not living_in_group(process.pid)


def living_in_group(group: int) -> list[str]:
    """Processes of the group, without those that have ended and wait to be reaped."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, rest = path.read_text().rsplit(")", 1)
            state, _, process_group = rest.split()[:3]
            if int(process_group) == group and state not in "ZX":
                found.append(name)
    return found
