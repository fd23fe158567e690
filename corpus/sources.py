"""The articles of a text: a data set of the Hugging Face hub, a local file or folder, or the bundled ones.

Files are read as UTF-8: .txt with an article a line; .jsonl, .json, .csv and .parquet with a column of texts.
Local files are read here, not by `datasets`: it takes file names for patterns and copies every file.
"""

import contextlib
import csv
import gzip
import io
import json
import lzma
import os
import re
import shlex
import threading
import unicodedata
from collections.abc import Callable, Iterator
from itertools import chain, groupby, islice
from pathlib import Path
from types import ModuleType
from typing import BinaryIO, TextIO

from support.cli import UserError

BUNDLED = "bundled"  # the name of the encyclopedia that comes with this repository
BUNDLED_FILE = Path(__file__).parent.parent / "data" / "articles.jsonl"
STANDS_IN_FOR = "Den4ikAI/russian_cleared_wikipedia"  # the data set of the hub, if the hub cannot be reached
FORMATS = (".jsonl", ".json", ".txt", ".csv", ".parquet")
# What train.py and the other scripts write into out_dir, which may also hold the text
OUTPUT_FILES = {"training_log.csv", "training_samples.jsonl", "evaluation.json", "bench.json"}
OUTPUT_FILES |= {"bpe_tokenizer.json", "emergence.json", "case_circuit.json", "case_circuit_pair.json"}
OUTPUT_FILES |= {"ablations.json", "scaling.json"}
OUTPUT_FOLDERS = {"cache", "huggingface", "previous", "previous.moving", "previous.old", "snapshots"}
OUTPUT_FOLDERS |= {"ablations", "scaling", "recipes"}
HUB_PATIENCE = 5  # seconds within which the hub must answer


class Articles:
    """The articles of a text. They are read anew each time they are iterated; empty ones are left out."""

    def __init__(self, read: Callable[[], Iterator[str | None]]):
        self.read = read

    def __iter__(self) -> Iterator[str]:
        for text in self.read():
            text = clean(text or "")
            if text and not text.isspace():
                yield text


DROPPED = dict.fromkeys(map(ord, "\u00ad\u200b\ufeff"))  # soft hyphen, zero-width space, byte order mark


def clean(text: str) -> str:
    """A text as the tokenizer sees it: NFC (й and ё one character), no soft hyphens or zero-width spaces."""
    text = text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair, as in JSON, becomes "?"
    return unicodedata.normalize("NFC", text.translate(DROPPED))


def load_articles(name: str, column: str) -> Articles:
    """The articles of a local file or folder, the bundled encyclopedia, or a hub data set (split train).

    Raises ConnectionError if the hub cannot be reached and no copy is cached, UserError for everything else.
    """
    if name == BUNDLED:  # ./bundled is a folder of that name
        return load_files(BUNDLED_FILE, "sample")
    path = Path(name).expanduser()
    if path.exists():
        return load_files(path, column)
    if is_hub_name(name):
        return load_from_hub(name, column)
    raise UserError(f"{name}: no such file or folder (and a data set of the hub is called owner/name)")


def is_hub_name(name: str) -> bool:
    """Whether the name is that of a data set of the hub, and not of a file or folder."""
    path = Path(name)
    return bool(re.fullmatch(r"\w[\w.-]*/[\w.-]+", name)) and not format_of(path) and not path.exists()


def load_articles_or_bundled(name: str, column: str) -> tuple[Articles, str]:
    """load_articles(), and the name of the text: the bundled one stands in for its data set of the hub.

    A folder called like a data set of the hub, texts/books, is named ./texts/books, so that the two can be
    told apart where the folder is not. Raises UserError for everything that is wrong.
    """
    try:
        articles = load_articles(name, column)
        is_local = Path(name).exists() and re.match(r"\w[\w.-]*/", name)
        return articles, f"./{name}" if is_local else name
    except ConnectionError as error:
        if name != STANDS_IN_FOR:
            raise UserError(
                f"{name}: there is no such file or folder here, and the Hugging Face hub cannot be reached "
                "to look for a data set of that name (--dataset)"
            ) from error
    stand_in = "the bundled encyclopedia stands in (data/articles.jsonl)"
    print(f"  the Hugging Face hub cannot be reached, so {stand_in}")
    return load_articles(BUNDLED, column), BUNDLED


# Files


def load_files(path: Path, column: str) -> Articles:
    """The articles of a file, or of all text files in a folder and its subfolders, in order of name."""
    files = list(text_files(path)) if path.is_dir() else [path]
    formats = {format_of(file) for file in files}
    if len(formats) != 1 or None in formats:
        readable = ", ".join(FORMATS)
        several = len(formats) > 1
        what = f"files of several formats: {', '.join(sorted(formats))}" if several else "no text file"
        raise UserError(f"{path}: {what}; what can be read is {readable}, also with .xz or .gz behind")
    if formats == {".txt"}:
        wrapped = {file for file in files if is_hard_wrapped(file)}
        what = "most lines end in mid-sentence, so articles end at blank lines, not at every line"
        for file in sorted(wrapped):
            print(f"  {file}: {what}")
        return Articles(lambda: chain.from_iterable(read_txt(file, file in wrapped) for file in files))
    return Articles(lambda: chain.from_iterable(read_column(file, column) for file in files))


def text_files(folder: Path) -> Iterator[Path]:
    """The text files below a folder: no hidden files and folders, nor what train.py writes beside them."""
    def fail(error: OSError) -> None:
        raise error  # os.walk would leave out a folder that cannot be read

    visited = set()
    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(place)
        is_run = "parameters.pt2" in names or "checkpoint.pt.lock" in names
        left_out = OUTPUT_FOLDERS if is_run else set()
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in left_out)
        if real in visited:  # a link back to a folder above
            folders.clear()
            continue
        visited.add(real)
        for name in sorted(names):
            if format_of(Path(name)) and not name.startswith(".") and not (is_run and name in OUTPUT_FILES):
                yield Path(place) / name


def format_of(path: Path) -> str | None:
    """The format of a file by its name, .xz and .gz aside; None if it is not one that can be read."""
    suffix = Path(path.name.lower().removesuffix(".xz").removesuffix(".gz")).suffix
    return suffix if suffix in FORMATS else None


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """The file, unpacked. Raises UserError, naming it, however a reader fails on a broken file."""
    opener = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix.lower(), open)
    try:
        with opener(path, "rb") as file:
            yield file
    except UserError:
        raise
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not in UTF-8{likely_encoding(path, opener)}") from error
    except Exception as error:
        if isinstance(error, OSError) and error.filename:
            raise
        raise UserError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """The file as UTF-8 text, without a byte order mark. Errors as in open_bytes()."""
    with open_bytes(path) as file:
        start = file.read(4096)
        file.seek(0)
        if start.startswith((b"\xff\xfe", b"\xfe\xff")) or start.count(b"\x04") > len(start) / 5:
            raise UserError(f"{path} is not in UTF-8{conversion(path, 'UTF-16')}")
        yield io.TextIOWrapper(file, encoding="utf-8-sig", newline="")


def likely_encoding(path: Path, opener: Callable) -> str:
    """The likely encoding of a Russian file: the one in which it has more of the most frequent letters."""
    with opener(path, "rb") as file:
        data = file.read(100_000)
    frequent = {code: sum(map(data.decode(code, "replace").count, "оеаинт")) for code in ("cp1251", "koi8-r")}
    code = max(frequent, key=frequent.get)
    return conversion(path, code.upper()) if frequent[code] > len(data) / 10 else ""


def conversion(path: Path, encoding: str) -> str:
    """The end of the error for a file in another encoding: how to convert it."""
    unpack = {".gz": "gzip -dc", ".xz": "xz -dc"}.get(path.suffix.lower(), "cat")
    new = path.with_name("utf8_" + (path.name if unpack == "cat" else path.stem))
    command = f"{unpack} {shlex.quote(str(path))} | iconv -f {encoding} -t UTF-8 > {shlex.quote(str(new))}"
    return f", but probably in {encoding}; convert it, then move it away:  {command}"


def read_column(path: Path, column: str) -> Iterator[str | None]:
    """The texts in a column of a .jsonl, .json, .csv or .parquet file."""
    readers = {".jsonl": read_jsonl, ".json": read_json, ".csv": read_csv, ".parquet": read_parquet}
    found = False
    for record in readers[format_of(path)](path):
        if not isinstance(record, dict):
            raise UserError(f"{path}: every record must be an object with a column {column!r}")
        found = found or column in record
        if not found:
            names = ", ".join(map(str, record)) or "an empty record"
            raise UserError(f"{path} has no column {column!r}, only {names} (--text_column)")
        text = record.get(column)
        if text is not None and not isinstance(text, str):
            kind = {"dict": "objects", "list": "lists"}.get(type(text).__name__, type(text).__name__)
            raise UserError(f"{path}: the column {column!r} holds {kind}, not text (--text_column)")
        yield text


def read_jsonl(path: Path) -> Iterator[object]:
    """A JSON value a line. Lines end with a line feed; other separators, such as U+2028, may be in a text."""
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if not line.isspace():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise UserError(f"{path}, line {number} cannot be read: {error}") from error


def read_json(path: Path) -> Iterator[object]:
    """A list of records, or a record, or a record a line."""
    with open_text(path) as file:
        try:
            content = json.load(file)
        except json.JSONDecodeError as error:
            if not error.msg.startswith("Extra data"):
                raise
            content = None
    if content is None:
        yield from read_jsonl(path)
    elif isinstance(content, list):
        yield from content
    else:
        yield content


def read_csv(path: Path) -> Iterator[dict[str, str]]:
    """Rows as dictionaries. Raises UserError if a row has more fields than the header (commas in a text)."""
    old_limit = csv.field_size_limit(2**31 - 1)  # characters in a field; Python's own limit is 131,072
    try:
        with open_text(path) as file:
            rows = csv.reader(file, strict=True)
            header = next(rows, [])
            if len(header) == 1 and re.search("[;\t|]", header[0]):
                mark = re.search("[;\t|]", header[0])[0].replace("\t", "a tab")
                raise UserError(f"{path}: its columns seem to be separated by {mark}; save it with commas")
            for row in rows:
                if len(row) > len(header):
                    raise UserError(
                        f"{path}, line {rows.line_num}: {len(row)} fields, but the header has {len(header)}; "
                        "a text with commas in it must stand in quotes"
                    )
                if row:
                    yield dict(zip(header, row))
    finally:
        csv.field_size_limit(old_limit)


def read_parquet(path: Path) -> Iterator[dict]:
    import pyarrow.parquet  # here, because it takes time; `datasets` brings it along

    with open_bytes(path) as file:
        source = path if path.suffix.lower() == ".parquet" else io.BytesIO(file.read())
        for batch in pyarrow.parquet.ParquetFile(source).iter_batches(batch_size=100):
            yield from batch.to_pylist()


def read_txt(path: Path, hard_wrapped: bool) -> Iterator[str]:
    """The lines of a file, or, if its lines are wrapped, its paragraphs with their lines joined."""
    with open_text(path) as file:
        if not hard_wrapped:
            yield from (line.rstrip("\r\n") for line in file)
            return
        for blank, group in groupby(file, str.isspace):
            if not blank:
                lines = [line.rstrip("\r\n") for line in group]
                cut_anywhere = len(lines) > 2 and len(set(map(len, lines[:-1]))) == 1  # even inside words
                yield "".join(lines) if cut_anywhere else " ".join(line.strip() for line in lines)


def is_hard_wrapped(path: Path) -> bool:
    """Whether most lines end in mid-sentence: no full stop, and a small letter begins the next line."""
    with open_text(path) as file:
        lines = [line.strip() for line in islice(file, 2000)]
    pairs = [(a, b) for a, b in zip(lines, lines[1:]) if a and b]
    cut = sum(a[-1] not in ".!?…:" and b[0].islower() for a, b in pairs)
    return len(pairs) >= 5 and cut > len(pairs) / 2


# The hub


def load_from_hub(name: str, column: str) -> Articles:
    """The articles of a hub data set. Raises ConnectionError if there is neither hub nor cached copy."""
    datasets = datasets_package(name)
    try:
        table = datasets.load_dataset(name, split="train")
    except ConnectionError:
        raise
    except datasets.exceptions.DatasetNotFoundError as error:
        what = "no such file or folder, and the hub has no such data set, or not for you"
        raise UserError(f"{name}: {what}") from error
    except Exception as error:  # a broken data set fails in many ways
        cause = error.__cause__ or error
        raise UserError(f"{name}: cannot be read: {type(cause).__name__}: {cause}") from error
    columns = table.column_names
    if column not in columns:
        raise UserError(f"{name} has no column {column!r}, only {', '.join(columns)} (--text_column)")
    kind = getattr(table.features[column], "dtype", "lists or objects")
    if kind not in ("string", "large_string", "string_view", "null"):
        raise UserError(f"{name}: the column {column!r} holds {kind}, not text (--text_column)")

    def read() -> Iterator[str | None]:
        for batch in table.select_columns(column).iter(batch_size=100):
            yield from batch[column]

    return Articles(read)


def datasets_package(name: str) -> ModuleType:
    """The package `datasets`, ready to load from the hub, or from its cache if the hub does not answer."""
    import datasets  # here, because it takes a second

    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # else it reports every file to the hub, and waits
    if not datasets.config.HF_HUB_OFFLINE and not hub_answers(name):
        datasets.config.HF_HUB_OFFLINE = True  # look for a cached copy only, and at once
    return datasets


def hub_answers(name: str) -> bool:
    """Whether the hub answers within HUB_PATIENCE. In a thread: an unreachable name server takes longer."""
    from huggingface_hub import constants, utils

    answered = []

    def ask() -> None:
        try:
            url = f"{constants.ENDPOINT}/datasets/{name}/resolve/main/README.md"
            answered.append(utils.get_session().head(url, timeout=HUB_PATIENCE).status_code < 500)
        except Exception:  # no route, no name, no answer in time, a proxy's refusal
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_PATIENCE + 1)
    return any(answered)
