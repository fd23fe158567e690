"""Files as they come: damaged, foreign or hostile ones are named in one line, and no code in them is run."""

import io
import json
import os
import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas
import pytest
import torch

import articles
import checkpoint
import cli
import dataset
from generate import load_model
from llm import LLM

ROOT = Path(__file__).parent.parent
SIZES = {"vocab_size": 300, "d_model": 16, "num_heads": 2, "num_layers": 1, "max_seq_len": 16}
TEXT = ["Волга — река в Европе. Она впадает в море.", "Один, два 🙂.", "שלום. Три \u202e и четыре."] * 5


class Bomb:
    """Pickled, it is code that makes a file when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def damaged(good: bytes, count: int, seed: int):
    """Variants of a file: cut short, bits turned, stretches overwritten, removed or doubled, noise alone."""
    generator = random.Random(seed)
    yield from (
        b"",
        b"\0" * 1000,
        good[:-1],
        good + good,
        b"\xff\xfe" + good,
        generator.randbytes(5000),
        b"PK\x03\x04" + good[4:200],
    )
    for i in range(count - 7):
        data = bytearray(good)
        at, length = generator.randrange(len(data)), generator.randrange(1, 400)
        match i % 6:
            case 0:
                del data[at:]
            case 1 | 2:
                for _ in range(generator.choice((1, 1, 20))):
                    data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
            case 3:
                data[at : at + length] = generator.randbytes(length)
            case 4:
                del data[at : at + length]
            case 5:
                data[at:at] = data[at : at + length]
        yield bytes(data)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a small model, its tokenizer, and a checkpoint of it in training."""
    folder = tmp_path_factory.mktemp("home")
    tokenizer = dataset.train_tokenizer(TEXT, 300)
    tokenizer.save(str(folder / "bpe_tokenizer.json"))
    model = LLM(**SIZES)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    model(torch.arange(5)[None]).sum().backward()
    optimizer.step()
    state = checkpoint.on_cpu(model)
    state["_extra_state"]["tokenizer"] = dataset.tokenizer_key(tokenizer)
    checkpoint.write(folder / "parameters.pt2", state)
    row = [7, 700, 1.0, 2.0, 3.0, 4.0, 0.1, 50.0]
    progress = checkpoint.Progress(7, 1.0, 0.5, [torch.tensor(2.0)], [row], [{"step": 7, "text": "а"}])
    checkpoint.save(folder, model, optimizer, progress, {"d_model": 16})
    return folder


def open_checkpoint(folder: Path):
    model = LLM(**SIZES)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    progress = checkpoint.restore(checkpoint.find(folder, {"d_model": 16}), folder, model, optimizer)
    return progress.step, model.state_dict(), [v for s in optimizer.state.values() for v in s.values()]


def same(a, b) -> bool:
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, (list, tuple)) else a == b


@pytest.mark.parametrize("name", ["parameters.pt2", "checkpoint.pt", "bpe_tokenizer.json"])
def test_a_damaged_file_is_refused_or_gives_what_was_saved(home, tmp_path, name):
    """What can be opened after the damage must hold the same numbers: no bit of the weights changes unnoticed."""

    def read(folder):
        if name == "checkpoint.pt":
            return open_checkpoint(folder)
        model = load_model(folder if name == "parameters.pt2" else home)
        tokenizer = dataset.load_tokenizer((folder if name == "bpe_tokenizer.json" else home) / "bpe_tokenizer.json", model)
        return model.state_dict(), sorted(tokenizer.get_vocab().items())

    good = read(home)
    refused, total = 0, 330
    for data in damaged((home / name).read_bytes(), total, seed=len(name)):
        (tmp_path / name).write_bytes(data)
        try:
            assert same(read(tmp_path), good)
        except cli.UserError as error:
            refused += 1
            assert name in str(error)
    assert refused > total * 0.6


@pytest.mark.parametrize("name", ["parameters.pt2", "checkpoint.pt"])
def test_no_code_in_a_file_is_run(home, tmp_path, name):
    trap = tmp_path / "trap"
    with zipfile.ZipFile(home / name) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    pickled = next(entry for entry in entries if entry.endswith("data.pkl"))
    inside, compressed = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(inside, "w") as archive:
        for entry, data in entries.items():
            archive.writestr(entry, pickle.dumps({"weights": Bomb(trap)}, 2) if entry == pickled else data)
    with zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, data in entries.items():
            archive.writestr(entry, data)
    for data in (pickle.dumps(Bomb(trap)), inside.getvalue(), compressed.getvalue()):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(cli.UserError):
            load_model(tmp_path) if name == "parameters.pt2" else open_checkpoint(tmp_path)
    assert not trap.exists()


def test_weights_that_are_no_numbers_or_of_another_make(home, tmp_path):
    state = torch.load(home / "parameters.pt2", weights_only=True)
    first = "embedding.weight"
    huge = torch.zeros(1).expand(10**9, 16)  # 64 GB that take 4 bytes in the file
    for change in (
        {first: torch.full_like(state[first], float("nan"))},
        {first: huge, "_extra_state": {**state["_extra_state"], "vocab_size": 10**9}},
        {"_extra_state": {**state["_extra_state"], "max_seq_len": 2**40}},
        {"_extra_state": {**state["_extra_state"], "num_heads": 0}},
        {"_extra_state": "text"},
        {first: "text"},
        {"more": state[first]},
    ):
        torch.save({**state, **change}, tmp_path / "parameters.pt2")
        with pytest.raises(cli.UserError, match="parameters.pt2"):
            load_model(tmp_path)
    for whole in ([1, 2], {}, torch.zeros(3), LLM(**{**SIZES, "num_layers": 2}).state_dict()):
        torch.save(whole, tmp_path / "checkpoint.pt")
        with pytest.raises(cli.UserError, match="checkpoint.pt"):
            open_checkpoint(tmp_path)
    saved = torch.load(home / "checkpoint.pt", weights_only=True)
    saved["weights"] = LLM(**{**SIZES, "num_layers": 2}).state_dict()
    torch.save(saved, tmp_path / "checkpoint.pt")
    with pytest.raises(cli.UserError, match="num_layers=2 and not 1"):
        open_checkpoint(tmp_path)


def test_a_tokenizer_of_the_same_size_that_is_not_the_model_s(home, tmp_path):
    other = dataset.train_tokenizer(["Совсем другие слова о совершенно других вещах."] * 5, 300)
    assert other.get_vocab_size() == 300
    other.save(str(tmp_path / "bpe_tokenizer.json"))
    with pytest.raises(cli.UserError, match="do not belong together"):
        dataset.load_tokenizer(tmp_path / "bpe_tokenizer.json", load_model(home))
    dataset.load_tokenizer(home / "bpe_tokenizer.json", load_model(home))


def texts(path: Path, name: str) -> Path | None:
    """TEXT as a file of that format."""
    table = pandas.DataFrame({"sample": TEXT})
    match name.split(".")[1]:
        case "jsonl":
            path.write_text("".join(json.dumps({"sample": text}, ensure_ascii=False) + "\n" for text in TEXT), encoding="utf-8")
        case "json":
            path.write_text(json.dumps([{"sample": text} for text in TEXT], ensure_ascii=False), encoding="utf-8")
        case "txt":
            path.write_text("\n".join(TEXT), encoding="utf-8")
        case "csv":
            table.to_csv(path, index=False)
        case "parquet":
            table.to_parquet(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt", "a.csv", "a.parquet"])
def test_a_damaged_text_works_or_is_one_line(tmp_path, name, monkeypatch):
    """Through the reader of each format, without the copy that `datasets` keeps of each file it reads."""
    import datasets

    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    texts(tmp_path / name, name)
    assert list(articles.load_articles(str(tmp_path / name), "sample")) == TEXT
    good = (tmp_path / name).read_bytes()
    refused = 0
    for data in damaged(good, 300, seed=1):
        (tmp_path / name).write_bytes(data)
        try:
            for article in articles.load_articles(str(tmp_path / name), "sample"):
                assert isinstance(article, str)
                article.encode()
        except cli.UserError:
            refused += 1
    assert refused > 10


def ready(path: Path, column="sample"):
    return dataset.prepare(articles.load_articles(str(path), column), path.parent / "cache", 300, 0.1, 1000)


def test_text_as_it_comes(tmp_path):
    path = tmp_path / "a.jsonl"

    def write(*records):
        path.write_text("".join(json.dumps({"sample": r}, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")

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
        with pytest.raises(cli.UserError, match=message):
            ready(path)
    (tmp_path / "b.txt").write_bytes("Волга. ".encode("cp1251") * 10)
    with pytest.raises(cli.UserError, match="cannot be read"):
        ready(tmp_path / "b.txt")


@pytest.mark.parametrize("line", ["Волга течёт. ", "а", "слово да ", "1", ".", " ", "»", "🙂", "а.\n", "\n"])
def test_a_long_line_takes_time_in_proportion(tmp_path, line):
    """Two million characters; anything quadratic in their number would run for hours."""
    article = "А. " + line * (2_000_000 // len(line)) + " Б. Конец."
    text = dataset.prepare([article, "Да. Нет."], tmp_path, 300, 0.1, 1000)
    assert text.tokenizer.decode(text.train.tolist()) == article


def test_a_damaged_cache_is_made_again(tmp_path):
    good = dataset.prepare(TEXT, tmp_path, 300, 0.1, 1000)
    folder = tmp_path / good.key
    tokens = good.train.tolist()
    for name in ("train.bin", "val.bin", "about.json", "bpe_tokenizer.json"):
        data = (folder / name).read_bytes()
        for broken in (b"", data[: len(data) // 2], b"\xff" * len(data), None):
            (folder / name).unlink()
            if broken is not None:
                (folder / name).write_bytes(broken)
            assert dataset.prepare(TEXT, tmp_path, 300, 0.1, 1000).train.tolist() == tokens


def test_the_command_line_says_it_in_one_line(home, tmp_path):
    for name in ("parameters.pt2", "bpe_tokenizer.json", "checkpoint.pt"):
        for other in home.iterdir():
            (tmp_path / other.name).write_bytes(other.read_bytes())
        (tmp_path / "text.txt").write_text("\n".join(TEXT * 20), encoding="utf-8")
        (tmp_path / name).write_bytes((home / name).read_bytes()[:-100])
        script = (
            ["generate.py", "да"]
            if name != "checkpoint.pt"
            else ["train.py", "--dataset", tmp_path / "text.txt", "--batch_size", "2"]
        )
        small = "--max_seq_len 16 --d_model 16 --num_heads 2 --num_layers 1 --vocab_size 300".split()
        command = [sys.executable, *script, "--out_dir", tmp_path, *small]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 2 and name in last and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("line", [
    "--d_model 30 --num_heads 4", "--num_heads 0", "--num_layers 0", "--learning_rate -1", "--vocab_size 256", "--max_seq_len 0",
    "--epochs nan", "--epochs 1e300", "--d_model 99999999999", "--checkpoint_minutes -1", "--dropout 1", "--out_dir ",
    "--batch_size 1.5", "--seed -1", "--val_fraction 0", "--eval_every 0", "--grad_clip 0", "--warmup 2",
])  # fmt: skip
def test_values_that_cannot_be(line, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", *line.split(" ")])
    with pytest.raises(cli.UserError, match=line.split()[0]):
        cli.parse(cli.parser(""))


@pytest.mark.parametrize(
    "name, value, message",
    [("epochs", 2, None), ("epochs", "two", "--epochs"), ("d_model", 64.0, "--d_model"), ("out_dir", 5, "--out_dir")],
)
def test_wrong_types_in_params_py(monkeypatch, name, value, message):
    monkeypatch.setattr("params." + name, value)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    if message is None:
        assert getattr(cli.parse(cli.parser("")), name) == value
        return
    with pytest.raises(cli.UserError, match=message):
        cli.parse(cli.parser(""))
