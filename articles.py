"""Where the text comes from: the articles of a data set of the Hugging Face hub, or of a local file or folder."""

import re
import threading
from collections.abc import Iterator
from pathlib import Path

from cli import UserError

SAMPLE = Path(__file__).parent / "data" / "articles.jsonl"  # the bundled encyclopedia
FORMATS = {".jsonl": "json", ".json": "json", ".txt": "text", ".csv": "csv", ".parquet": "parquet"}
HUB_PATIENCE = 5  # seconds in which the hub must answer


class Articles:
    """The texts of one column of a table, an article each, as often as they are iterated; empty ones are left out."""

    def __init__(self, table, column: str):
        self.table, self.column = table, column

    def __iter__(self) -> Iterator[str]:
        batches = self.table.select_columns(self.column).iter(batch_size=100)
        while True:
            try:
                batch = next(batches, None)
            except Exception as error:  # bytes that are no UTF-8 in a .parquet file, a disk that is gone
                raise UserError(f"the text cannot be read: {error}") from error
            if batch is None:
                return
            yield from (text for text in batch[self.column] if text and not text.isspace())


def load_articles(name: str, column: str) -> Articles:
    """The articles of a data set of the hub (its split train) or of a local file or folder.

    Raises ConnectionError if the hub cannot be reached and no copy is cached, UserError for whatever else is wrong.
    """
    path = Path(name).expanduser()
    on_hub = False
    if path.exists():
        files = sorted(p for p in path.rglob("*") if format_of(p)) if path.is_dir() else [path]
        formats = {format_of(p) for p in files}
        if len(formats) != 1 or None in formats:
            what = f"files of several formats: {', '.join(sorted(formats))}" if len(formats) > 1 else "no text file"
            raise UserError(f"{name}: {what}; what can be read is {', '.join(FORMATS)}, also with .xz or .gz behind")
        source = {"path": formats.pop(), "data_files": [str(p) for p in files]}
        column = "text" if source["path"] == "text" else column  # what `datasets` calls the lines of a .txt file
    elif re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) and not format_of(path):
        source, on_hub = {"path": name}, True
    else:
        raise UserError(f"{name}: no such file or folder (and a data set of the hub is called owner/name)")

    import datasets  # here, because it takes a second

    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # or it tells the hub of every file that is read, and waits for it

    if on_hub and not datasets.config.HF_HUB_OFFLINE and not hub_answers(name):
        datasets.config.HF_HUB_OFFLINE = True  # look for a cached copy only, and at once
    try:
        table = datasets.load_dataset(**source, split="train")
    except ConnectionError:
        raise
    except datasets.exceptions.DatasetNotFoundError as error:
        raise UserError(f"{name}: the hub has no such data set, or not for you (--dataset)") from error
    except Exception as error:  # whatever a reader of five formats makes of a broken file
        cause = error.__cause__ or error
        raise UserError(f"{name}: cannot be read: {type(cause).__name__}: {cause}") from error
    if column not in table.column_names:
        raise UserError(f"{name} has no column {column!r}, only {', '.join(table.column_names)} (--text_column)")
    if table.features[column].dtype not in ("string", "large_string", "null"):
        raise UserError(f"{name}: the column {column!r} holds {table.features[column].dtype}, not text (--text_column)")
    return Articles(table, column)


def format_of(path: Path) -> str | None:
    """The reader for a file by its name, .xz and .gz aside; None if there is none."""
    name = path.name.lower().removesuffix(".xz").removesuffix(".gz")
    return FORMATS.get(Path(name).suffix)


def hub_answers(name: str) -> bool:
    """Whether the hub sends any answer at all within HUB_PATIENCE; in a thread, since a dead name server hangs longer."""
    from huggingface_hub import constants, utils

    answered = []

    def ask():
        try:
            url = f"{constants.ENDPOINT}/datasets/{name}/resolve/main/README.md"
            answered.append(utils.get_session().head(url, timeout=HUB_PATIENCE).status_code < 500)
        except Exception:  # no route, no name, no answer in time, a proxy's refusal: all the same to us
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_PATIENCE + 1)
    return any(answered)
