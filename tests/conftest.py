"""Fixtures for all tests. No test reaches the network."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the scripts, wherever pytest is started
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # no hub; read when `datasets` is imported

from helpers import ARTICLES, SMALL, call, run_training, write_articles  # noqa: E402


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A folder with a small text (text.jsonl) and the small model that train.py made of it."""
    folder = tmp_path_factory.mktemp("trained")
    write_articles(folder / "text.jsonl", ARTICLES[:100])
    done = call("train.py", "--dataset", folder / "text.jsonl", "--out_dir", folder, "--epochs", 4, *SMALL)
    assert done.code == 0, done.err
    (folder / "printed.txt").write_text(done.out, encoding="utf-8")
    (folder / "progress.txt").write_text(done.err, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory) -> Path:
    """The folder of a tiny run that nothing happened to, beside its text."""
    home = tmp_path_factory.mktemp("runs")
    write_articles(home / "text.jsonl", ARTICLES[:60])
    done = run_training(home / "unbroken")
    assert done.code == 0, done.err
    return home / "unbroken"
