"""The way from a data set to its tokens; windows of tokens."""

import os
import subprocess
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch
from helpers import ARTICLES, ROOT, write_articles
from hub import hub
from torch.utils.data import DataLoader

from dataset import TextDataset, load_text

HUB_NAME = "Den4ikAI/russian_cleared_wikipedia"
LOAD = """
import sys
from argparse import Namespace
from dataset import load_text
settings = dict(text_column="sample", vocab_size=400, val_fraction=0.1, tokenizer_chars=10**9)
corpus, name = load_text(Namespace(dataset=sys.argv[1], out_dir=sys.argv[2], **settings))
print(name, corpus.key, len(corpus.train), "datasets" in sys.modules)
"""


def test_a_data_set_of_the_hub_is_prepared_without_loading_its_package_here(tmp_path):
    articles = ARTICLES[:40]
    with hub(HUB_NAME, [{"sample": article} for article in articles]) as (endpoint, _):
        settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hub"), "PYTHONPATH": str(ROOT)}
        env = {**os.environ, **settings}
        command = [sys.executable, "-c", LOAD, HUB_NAME, str(tmp_path)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    path = write_articles(tmp_path / "text.jsonl", articles)
    settings = {"text_column": "sample", "vocab_size": 400, "val_fraction": 0.1, "tokenizer_chars": 10**9}
    corpus, _ = load_text(Namespace(dataset=str(path), out_dir=str(tmp_path / "local"), **settings))
    assert done.stdout.splitlines()[-1] == f"{HUB_NAME} {corpus.key} {len(corpus.train)} False"


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
