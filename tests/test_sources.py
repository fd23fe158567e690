"""Files, folders and hub data sets as articles."""

import gzip
import json
import lzma
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import datasets
import pandas
import pytest
from helpers import ROOT, damaged, write_articles
from hub import hub

from corpus.sources import is_hub_name, load_articles, load_articles_or_bundled
from corpus.token_files import prepare_corpus
from support.cli import UserError

TEXT = ["Волга — река в Европе. Она впадает в море.", "Один, два 🙂.", "שלום. Три \u202e и четыре."] * 5


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
    lines = '{"sample": "Раз."}\n{"sample": null}\n{"sample": " "}\n'
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "deeper" / "b.jsonl").write_text('{"sample": "Два."}\n', encoding="utf-8")
    assert articles_of(tmp_path) == ["Раз.", "Два."]
    (tmp_path / "c.txt").write_text("Три.")
    with pytest.raises(UserError, match="several formats: .jsonl, .txt"):
        articles_of(tmp_path)


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"title": "Раз", "body": "Два.", "n": 1}\n', encoding="utf-8")
    (tmp_path / "broken.jsonl").write_text('{"sample": "Раз"')
    (tmp_path / "a.docx").write_text("")
    for name, column, message in [
        ("a.jsonl", "sample", "no column 'sample', only title, body, n"),
        ("a.jsonl", "n", "column 'n' holds int, not text"),
        ("broken.jsonl", "sample", "broken.jsonl, line 1 cannot be read"),
        ("a.docx", "sample", "no text file"),
        ("missing.jsonl", "sample", "no such file or folder"),
        ("missing", "sample", "no such file or folder"),
    ]:
        with pytest.raises(UserError, match=message):
            articles_of(tmp_path / name, column)


def texts(path: Path, name: str) -> Path | None:
    """TEXT as a file of that format."""
    table = pandas.DataFrame({"sample": TEXT})
    match name.split(".")[1]:
        case "jsonl":
            write_articles(path, TEXT)
        case "json":
            records = [{"sample": text} for text in TEXT]
            path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
        case "txt":
            path.write_text("\n".join(TEXT), encoding="utf-8")
        case "csv":
            table.to_csv(path, index=False)
        case "parquet":
            table.to_parquet(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt", "a.csv", "a.parquet"])
def test_a_damaged_text_works_or_is_one_line(tmp_path, name):
    """Through the reader of each format."""
    texts(tmp_path / name, name)
    assert list(load_articles(str(tmp_path / name), "sample")) == TEXT
    good = (tmp_path / name).read_bytes()
    refused = 0
    for data in damaged(good, 300, seed=1):
        (tmp_path / name).write_bytes(data)
        try:
            for article in load_articles(str(tmp_path / name), "sample"):
                assert isinstance(article, str)
                article.encode()
        except UserError:
            refused += 1
    assert refused > 10


def ready(path: Path, column="sample"):
    return prepare_corpus(load_articles(str(path), column), path.parent / "cache", 300, 0.1, 1000)


def test_text_as_it_comes(tmp_path):
    path = tmp_path / "a.jsonl"

    def write(*records):
        write_articles(path, records)

    write(*[None] * 20, "Раз. Два.", "", "Три. Четыре.", " \n", "\0\0 Ноль\0. Да.")
    text = ready(path)
    ids = [*text.train.tolist(), *text.val.tolist()]
    assert text.tokenizer.decode(ids) == "Раз. Два.Три. Четыре.\0\0 Ноль\0. Да."
    write("שלום עולם. 🙂👍🏽. \u202eабв. العربية.", "Один. Два.")
    assert ready(path).tokenizer.decode(ready(path).train.tolist()) == "שלום עולם. 🙂👍🏽. \u202eабв. العربية."
    write("Одна запись. В ней два предложения.")
    assert len(ready(path).val)
    for records, message in (
        (["Одно предложение."], "single sentence"),
        ([None, None], "empty"),
        ([""] * 1_000_000, "empty"),
        ([5, 6], "not text"),
    ):
        write(*records)
        with pytest.raises(UserError, match=message):
            ready(path)
    (tmp_path / "b.txt").write_bytes("Волга. ".encode("cp1251") * 10)
    message = "b.txt is not in UTF-8, but probably in CP1251; convert it, then move it away:  cat "
    with pytest.raises(UserError, match=message):
        ready(tmp_path / "b.txt")


READ = """
import sys, corpus.sources, support.cli
try:
    for article in corpus.sources.load_articles(sys.argv[1], sys.argv[2]): print(article)
except ConnectionError: print("unreachable")
except support.cli.UserError as error: print("error:", error)
"""


def read_from_hub(endpoint: str, home, name="Den4ikAI/russian_cleared_wikipedia", column="sample") -> str:
    """What load_articles gives in a process of its own, for which the hub is at endpoint."""
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", READ, name, column]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_hub_is_asked_for_the_data_set_and_its_copy_kept(tmp_path):
    records = [{"sample": "Статья раз."}, {"sample": "Статья два."}]
    with hub("Den4ikAI/russian_cleared_wikipedia", records) as (endpoint, asked):
        assert read_from_hub(endpoint, tmp_path) == "Статья раз.\nСтатья два."
        assert any(path.startswith("/datasets/Den4ikAI/russian_cleared_wikipedia/resolve/") for path in asked)
        assert "no column 'text', only sample" in read_from_hub(endpoint, tmp_path, column="text")
        assert "no such data set" in read_from_hub(endpoint, tmp_path, name="Den4ikAI/no_such")
    assert read_from_hub(endpoint, tmp_path) == "Статья раз.\nСтатья два."  # the hub is gone, not its copy


def test_a_hub_that_cannot_be_reached_is_told_from_one_without_the_data_set(tmp_path):
    assert read_from_hub("http://127.0.0.1:9", tmp_path) == "unreachable"


def test_a_hub_that_never_answers_is_given_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections, and says nothing
        assert read_from_hub(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path) == "unreachable"


# What other people's files are like


def test_file_names_are_not_patterns(tmp_path):
    folder = tmp_path / "[lib]*?"
    folder.mkdir()
    (folder / "book1.txt").write_text("Первая книга.", encoding="utf-8")
    (folder / "book[1].txt").write_text("Вторая книга.", encoding="utf-8")
    assert articles_of(folder / "book[1].txt") == ["Вторая книга."]
    assert articles_of(folder) == ["Первая книга.", "Вторая книга."]


def test_commas_without_quotes_and_other_separators_are_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,sample\n1,Первое предложение, длинное. И второе.\n", encoding="utf-8")
    message = "line 2: 3 fields, but the header has 2; a text with commas in it must stand in quotes"
    with pytest.raises(UserError, match=message):
        articles_of(path)
    path.write_text("id;sample\n1;Раз, два.\n", encoding="utf-8")
    with pytest.raises(UserError, match="its columns seem to be separated by ;"):
        articles_of(path)


@pytest.mark.parametrize("value, kind", [(["Раз."], "lists"), ({"ru": "Раз."}, "objects"), (5, "int")])
def test_a_column_that_holds_no_text_is_named(tmp_path, value, kind):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"sample": each}) + "\n" for each in ("Раз.", value)]
    path.write_text("".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match=f"the column 'sample' holds {kind}, not text"):
        articles_of(path)


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "texts" / "locked").mkdir(parents=True)
    (tmp_path / "texts" / "a.txt").write_text("Мама мыла раму.\n")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="locked"):
        list(load_articles(str(tmp_path / "texts"), "sample"))


def test_hidden_files_and_the_files_of_a_run_are_not_read(tmp_path):
    for name in ("a.txt", "._a.txt", ".git/b.txt", "linked/c.txt", "cache/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    (tmp_path / "linked" / "back").symlink_to(tmp_path)  # a circle
    for name in ("training_log.csv", "evaluation.json", "parameters.pt2"):
        (tmp_path / name).write_text("")
    other = tmp_path.with_name(tmp_path.name + "_other")
    other.mkdir()
    (other / "e.txt").write_text("e.txt", encoding="utf-8")
    (tmp_path / "zlink").symlink_to(other)
    assert articles_of(tmp_path) == ["a.txt", "linked/c.txt", "e.txt"]


@pytest.mark.skipif(not shutil.which("iconv"), reason="needs iconv")
@pytest.mark.parametrize("opener, suffix", [(open, ""), (gzip.open, ".gz"), (lzma.open, ".xz")])
def test_other_encodings_are_named_with_the_command_that_converts_them(tmp_path, opener, suffix):
    text = "Волга впадает в Каспийское море, а Ока в Волгу. " * 5
    names = {"cp1251": "CP1251", "koi8-r": "KOI8-R", "utf-16": "UTF-16", "utf-16-le": "UTF-16"}
    for encoding, name in names.items():
        path = tmp_path / f"it's a.txt{suffix}"
        with opener(path, "wb") as file:
            file.write(text.encode(encoding))
        message = f"is not in UTF-8, but probably in {name}; convert it, then move it away:  "
        with pytest.raises(UserError, match=message) as error:
            articles_of(path)
        subprocess.run(str(error.value).partition(":  ")[2], shell=True, check=True)
        assert articles_of(tmp_path / "utf8_it's a.txt") == [text]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffДа.", encoding="utf-8")
    assert articles_of(tmp_path / "a.txt") == ["Да."]


def test_a_book_with_wrapped_lines_has_paragraphs_for_articles(tmp_path, capsys):
    lines = ["Шёл дождь, и в саду", "было тихо. Мальчик сидел", "у окна и смотрел, как"]
    lines += ["капли бегут по стеклу", "одна за другой."]
    (tmp_path / "a.txt").write_text("\n".join(lines) + "\n\n" + "\n".join(lines[:3]) + "\n", encoding="utf-8")
    assert articles_of(tmp_path / "a.txt") == [" ".join(lines), " ".join(lines[:3])]
    assert "articles end at blank lines" in capsys.readouterr().out


def test_characters_in_two_parts_and_invisible_ones(tmp_path):
    (tmp_path / "a.txt").write_text("и\u0306 е\u0308лка сло\u00adво\u200b, за\u0301мок", encoding="utf-8")
    assert articles_of(tmp_path / "a.txt") == ["й ёлка слово, за\u0301мок"]  # a stress mark stays


def test_half_a_surrogate_pair_is_no_reason_to_stop(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"sample": "Да\\ud800 нет."}\n', encoding="utf-8")
    assert articles_of(tmp_path / "a.jsonl") == ["Да? нет."]


def test_a_folder_and_a_data_set_of_one_name_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("bundled", "texts/books"):
        Path(folder).mkdir(parents=True)
        (Path(folder) / "a.txt").write_text("Своя статья.\n", encoding="utf-8")
    assert len(articles_of("bundled")) > 1000 and articles_of("./bundled") == ["Своя статья."]
    articles, name = load_articles_or_bundled("texts/books", "sample")
    assert list(articles) == ["Своя статья."] and name == "./texts/books" and not is_hub_name(name)
    assert list(load_articles_or_bundled(name, "sample")[0]) == ["Своя статья."]


def test_what_the_scripts_write_beside_the_text_is_not_read(tmp_path):
    (tmp_path / "a.txt").write_text("Статья.\n", encoding="utf-8")
    names = ["parameters.pt2", "emergence.json", "ablations.json", "case_circuit_pair.json"]
    for name in [*names, "ablations/cache/about.json"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}", encoding="utf-8")
    assert articles_of(tmp_path) == ["Статья."]
