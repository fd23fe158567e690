"""From text to windows of tokens."""

import json
import lzma
import os
import socket
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from hub import hub
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from torch.utils.data import DataLoader

import dataset
from articles import SAMPLE, load_articles
from cli import UserError
from dataset import EOS, Encoder, TextDataset, encode, encode_prompt, prepare
from sentences import split_sentences

ARTICLES = [json.loads(line)["sample"] for line in SAMPLE.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return dataset.train_tokenizer(ARTICLES[:40], 600)


# Sentences

SENTENCES = """
А. С. Пушкин родился в 1799 г. в Москве.|Его отец служил.
Он жил на ул. Мира, д. 5, кв. 7.|Рядом была школа им. Н. И. Вавилова.
Население — 1,5 млн человек (на 1 янв. 2020 г.), т. е. немного.|Площадь — 12 тыс. кв. км.
В XIX в. и в начале XX в. город рос.|В 1905 г. Николай II подписал указ.
«Кто там?» — спросил он.|«Это я!» — ответила она.|Дверь открылась.
Он сказал: «Приду завтра».|И ушёл…|Больше его не видели?!|Нет.
Греки, римляне, финикийцы и т. д. жили у моря.|Они торговали.
Длина реки 3.5 км.|10 января 1920 года она замёрзла.
Первый абзац кончился.¶|второй начался¶¶|третий тоже
Город (лат. Roma, итал. Roma) стоит на Тибре.|Это столица.
В 476 г. н. э. империя пала.|Так кончилась древность.
"""


@pytest.mark.parametrize("line", SENTENCES.strip().splitlines())
def test_sentences_end_where_a_reader_would_say(line):
    expected = [part.replace("¶", "\n") if "¶" in part else part + " " for part in line.split("|")]
    assert split_sentences("".join(expected)) == expected


@given(st.text(alphabet=st.sampled_from("абвАБВ .!?…\n«»—г1,"), max_size=60))
def test_sentences_joined_are_the_text(text):
    assert "".join(split_sentences(text)) == text


# Tokens


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_any_text_comes_back(tokenizer, text):
    text = text.encode("utf-8", "replace").decode()
    assert tokenizer.decode(encode(tokenizer, text)) == text


@pytest.mark.parametrize("text", [*ARTICLES[40:50], "", " ", "\n", "<EOS>", "a<EOS>b. <EOS> C", "🙂 שלום\0\r\n\t é è́ \u2028"])
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


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from("абвГ .,!?…\n\t«»—(1_\u0301\xa0"), max_size=80))
def test_the_fast_encoder_gives_the_same_tokens(tokenizer, text):
    encoder = Encoder(tokenizer)
    for _ in range(2):  # without and with a memory of the words
        assert np.frombuffer(encoder(text), np.uint16).tolist() == encode(tokenizer, text)


def test_a_prompt_goes_on_where_it_stops(tokenizer):
    eos = tokenizer.token_to_id(EOS)
    text, ids = encode_prompt(tokenizer, "Столица Франции ")
    assert text == "Столица Франции" and ids[0] == eos and eos not in ids[1:]
    text, ids = encode_prompt(tokenizer, "Он ушёл.")
    assert text == "Он ушёл. " and ids[-1] == eos
    assert encode_prompt(tokenizer, "") == ("", [eos])
    assert encode_prompt(tokenizer, "Да\udcff да")[0] == "Да? да"


# Windows


def test_windows_do_not_overlap_and_targets_are_one_ahead():
    windows = TextDataset(np.arange(100, 123, dtype=np.uint16), 5)
    assert len(windows) == 4  # 20 of the 23 tokens, and one more as the last target
    for i in range(4):
        input_ids, target_ids = windows[i]
        assert input_ids.tolist() == list(range(100 + 5 * i, 105 + 5 * i)) and input_ids.dtype == torch.int64
        assert target_ids.tolist() == list(range(101 + 5 * i, 106 + 5 * i)) and target_ids.shape == (5,)
    assert len(TextDataset(np.arange(5), 5)) == 0 and len(TextDataset(np.arange(6), 5)) == 1
    with pytest.raises(IndexError):
        windows[4]


def test_a_loader_makes_batches_of_them():
    windows = TextDataset(np.arange(1000, dtype=np.uint32), 7)
    for input_ids, target_ids in DataLoader(windows, batch_size=4, sampler=[3, 0, 9, 1]):
        assert input_ids[:, 0].tolist() == [21, 0, 63, 7] and torch.equal(target_ids, input_ids + 1)


# Files


def articles_of(path, column="sample") -> list[str]:
    return list(load_articles(str(path), column))


def test_every_format_is_read(tmp_path):
    texts = ["Первая статья.\nВторой абзац.", "Вторая статья, «с запятой».", "Третья."]
    table = datasets.Dataset.from_dict({"id": [1, 2, 3], "sample": texts})
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_parquet(tmp_path / "a.parquet")
    table.to_json(tmp_path / "a.jsonl", force_ascii=True)
    (tmp_path / "a.json").write_text(json.dumps([{"sample": text} for text in texts]), encoding="utf-8")
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress((tmp_path / "a.jsonl").read_bytes()))
    for name in ("a.csv", "a.parquet", "a.jsonl", "a.json", "a.jsonl.xz"):
        assert articles_of(tmp_path / name) == texts
    (tmp_path / "a.txt").write_text("Строка раз.\n\nСтрока два.\n", encoding="utf-8")
    assert articles_of(tmp_path / "a.txt") == ["Строка раз.", "Строка два."]


def test_a_folder_is_read_file_by_file(tmp_path):
    (tmp_path / "deeper").mkdir()
    (tmp_path / "a.jsonl").write_text('{"sample": "Раз."}\n{"sample": null}\n{"sample": " "}\n', encoding="utf-8")
    (tmp_path / "deeper" / "b.jsonl").write_text('{"sample": "Два."}\n', encoding="utf-8")
    assert articles_of(tmp_path) == ["Раз.", "Два."]
    (tmp_path / "c.txt").write_text("Три.")
    with pytest.raises(UserError, match="several formats: json, text"):
        articles_of(tmp_path)


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"title": "Раз", "body": "Два.", "n": 1}\n', encoding="utf-8")
    (tmp_path / "broken.jsonl").write_text('{"sample": "Раз"')
    (tmp_path / "a.docx").write_text("")
    for name, column, message in [
        ("a.jsonl", "sample", "no column 'sample', only title, body, n"),
        ("a.jsonl", "n", "column 'n' holds int64, not text"),
        ("broken.jsonl", "sample", "broken.jsonl: cannot be read"),
        ("a.docx", "sample", "no text file"),
        ("missing.jsonl", "sample", "no such file or folder"),
        ("missing", "sample", "no such file or folder"),
    ]:
        with pytest.raises(UserError, match=message):
            articles_of(tmp_path / name, column)


def test_prepare_holds_the_last_articles_out_and_remembers(tmp_path, monkeypatch):
    made = prepare(ARTICLES[:50], tmp_path, 500, 0.1, 10**9)
    eos = made.tokenizer.token_to_id(EOS)
    for tokens, articles in ((made.train, ARTICLES[:45]), (made.val, ARTICLES[45:50])):
        assert tokens.dtype == np.uint16 and isinstance(tokens, np.memmap)
        assert made.tokenizer.decode(tokens) == "".join(articles)
        assert tokens.tolist() == [i for article in articles for i in encode(made.tokenizer, article)]
        assert tokens[-1] == eos
    assert made.chars_per_token == pytest.approx(sum(map(len, ARTICLES[45:50])) / len(made.val))
    assert made.tokenizer.get_vocab() == dataset.train_tokenizer(ARTICLES[:45], 500).get_vocab()

    monkeypatch.setattr(dataset, "train_tokenizer", None)  # from now on the cache must do
    again = prepare(ARTICLES[:50], tmp_path, 500, 0.1, 10**9)
    assert again.key == made.key and np.array_equal(again.train, made.train)
    for changed in ((ARTICLES[:49], 500, 0.1, 10**9), (ARTICLES[:50], 501, 0.1, 10**9), (ARTICLES[:50], 500, 0.2, 10**9)):
        with pytest.raises(TypeError):
            prepare(changed[0], tmp_path, *changed[1:])


def test_a_long_text_is_encoded_in_several_processes_all_the_same(tmp_path, monkeypatch):
    alone = prepare(ARTICLES[:60], tmp_path / "a", 500, 0.1, 10**9)
    monkeypatch.setattr(dataset, "POOL_FROM", 1)
    monkeypatch.setattr(dataset, "BATCH_CHARS", 5000)
    together = prepare(ARTICLES[:60], tmp_path / "b", 500, 0.1, 10**9)
    assert np.array_equal(alone.train, together.train) and np.array_equal(alone.val, together.val)


def test_a_text_in_one_piece_has_its_last_sentences_held_out(tmp_path):
    text = " ".join(ARTICLES[:20])
    made = prepare([text], tmp_path, 400, 0.1, 10**9)
    held_out = made.tokenizer.decode(made.val)
    assert made.tokenizer.decode(made.train) + held_out == text
    assert 0.05 < len(held_out) / len(text) < 0.15 and held_out[0].isupper()
    for nothing in ([], ["Одно предложение."]):
        with pytest.raises(UserError):
            prepare(nothing, tmp_path, 400, 0.1, 10**9)


def test_the_tokenizer_of_a_long_text_trains_on_an_even_sample(tmp_path):
    made = prepare(ARTICLES[:60], tmp_path, 400, 0.1, sum(map(len, ARTICLES[:60])) // 3)
    assert made.tokenizer.get_vocab() == dataset.train_tokenizer(ARTICLES[:54:4], 400).get_vocab()


# The hub

READ = """
import sys, articles, dataset
try:
    for article in articles.load_articles(sys.argv[1], sys.argv[2]): print(article)
except ConnectionError: print("unreachable")
except dataset.UserError as error: print("error:", error)
"""


def read_from_hub(endpoint: str, home, name="Den4ikAI/russian_cleared_wikipedia", column="sample") -> str:
    """What load_articles gives in a process of its own, for which the hub is at endpoint."""
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "PYTHONPATH": str(SAMPLE.parent.parent)}
    done = subprocess.run([sys.executable, "-c", READ, name, column], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_hub_is_asked_for_the_data_set_and_its_copy_kept(tmp_path):
    with hub("Den4ikAI/russian_cleared_wikipedia", [{"sample": "Статья раз."}, {"sample": "Статья два."}]) as (endpoint, asked):
        assert read_from_hub(endpoint, tmp_path) == "Статья раз.\nСтатья два."
        assert any(path.startswith("/datasets/Den4ikAI/russian_cleared_wikipedia/resolve/") for path in asked)
        assert "no column 'text', only sample" in read_from_hub(endpoint, tmp_path, column="text")
        assert "no such data set" in read_from_hub(endpoint, tmp_path, name="Den4ikAI/no_such")
    assert read_from_hub(endpoint, tmp_path) == "Статья раз.\nСтатья два."  # the hub is gone, its copy is here


def test_a_hub_that_cannot_be_reached_is_told_from_one_without_the_data_set(tmp_path):
    assert read_from_hub("http://127.0.0.1:9", tmp_path) == "unreachable"


def test_a_hub_that_never_answers_is_given_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections, and says nothing
        assert read_from_hub(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path) == "unreachable"
