"""Windows of tokens."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dataset import TextDataset


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
