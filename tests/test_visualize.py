"""visualize.py as a person starts it."""

import json
import re
import shutil
from pathlib import Path

import pytest
from helpers import ARTICLES, call, write_articles
from matplotlib.image import imread


@pytest.fixture
def folder(trained, tmp_path) -> Path:
    """A copy of the folder of a trained model, to write into."""
    return shutil.copytree(trained, tmp_path / "trained")


def test_the_page_is_written(folder):
    done = call("visualize.py", "Волга впадает в", "--out_dir", folder)
    assert done.code == 0 and str(folder / "visualization.html") in done.out, done.err
    html = (folder / "visualization.html").read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>") and '"prompt": "Волга впадает в"' in html
    assert len(list(folder.glob("*.tmp"))) == 0


def test_the_page_has_the_snapshots_of_the_run(folder):
    """The first of them, of the untrained model, and at most eight in all."""
    done = call("visualize.py", "Волга", "--out_dir", folder)
    assert done.code == 0, done.err
    html = (folder / "visualization.html").read_text(encoding="utf-8")
    assert '"snapshots": [0, ' in html and 2 <= html.count('class="snapshot"') <= 8
    assert len(html.encode()) <= 32_000_000
    measured = json.loads(re.search(r'<script [^>]*id="data">(.*?)</script>', html, re.DOTALL)[1])["measured"]
    in_log = measured["training"]["log"]["val_loss"][-1]
    in_page = measured["snapshots"]["val_loss"][-1]
    assert in_page == pytest.approx(in_log, abs=0.01)  # the same windows; training may compute in bf16


def test_without_snapshots_the_page_is_written_all_the_same(folder):
    shutil.rmtree(folder / "snapshots")
    done = call("visualize.py", "Волга", "--out_dir", folder)
    assert done.code == 0, done.err
    assert '"snapshots": [], ' in (folder / "visualization.html").read_text(encoding="utf-8")


def test_a_damaged_snapshot_is_named(folder):
    path = next((folder / "snapshots").glob("*.pt2"))
    path.write_bytes(path.read_bytes()[:-100])
    done = call("visualize.py", "--out_dir", folder)
    assert done.code == 2 and path.name in done.err and done.err.count("\n") == 1, done.err


def test_another_text_is_refused(folder, tmp_path):
    """Its held-out articles may be among those that the model was trained on."""
    other = write_articles(tmp_path / "other.jsonl", ARTICLES[50:150])
    for flags in (["--dataset", other], ["--val_fraction", 0.3]):
        done = call("visualize.py", "--out_dir", folder, *flags)
        assert done.code == 2 and "was not trained on this text" in done.err
    assert not (folder / "visualization.html").exists()


def test_a_damaged_log_is_named(folder):
    (folder / "training_log.csv").write_text("step,val_loss\n10,five\n")
    done = call("visualize.py", "--out_dir", folder)
    assert done.code == 2 and "training_log.csv" in done.err and done.err.count("\n") == 1, done.err


def test_png_draws_the_attention_instead(folder, tmp_path):
    done = call("visualize.py", "Волга", "--out_dir", folder, "--png", tmp_path / "heads.png")
    assert done.code == 0, done.err
    assert imread(tmp_path / "heads.png").ndim == 3 and not (folder / "visualization.html").exists()
    done = call("visualize.py", "слово " * 500, "--out_dir", folder, "--png", tmp_path / "long.png")
    assert done.code == 2 and "at once" in done.err and not (tmp_path / "long.png").exists()
