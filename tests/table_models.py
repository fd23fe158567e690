"""Models whose answers are known, and a tokenizer with whole words, for the tests of evaluation/."""

import torch
from tokenizers import Tokenizer

from corpus.tokenizer import train_tokenizer
from llm import LLM

TEXT = (
    "Кот спит. Коты спят. Столица Франции Париж. Столица Италии Рим. Столица Египта Каир. "
    "Он жил без кота и котов."
)


def word_tokenizer(text: str = TEXT) -> Tokenizer:
    """One in which every word of the text, with the space before it, is a token."""
    return train_tokenizer([text] * 3, 2000)


class TableModel(LLM):
    """A model whose next token depends on the last one only: its logits are table[last]."""

    def __init__(self, table: torch.Tensor, max_seq_len: int = 16):
        super().__init__(len(table), 8, 1, 1, max_seq_len)
        self.double()  # else generate() would read its weights in numpy and not ask it
        self.table = table

    def residual(self, input_ids, cache=None):
        if cache:
            cache.length += input_ids.shape[1]
        return input_ids[..., None]  # (B, T, 1)

    def logits(self, x):
        return self.table[x[..., 0]]


def table_model(tokenizer: Tokenizer, *following: tuple[str, str, float], max_seq_len=16) -> TableModel:
    """A TableModel in which a logit is 0, or the number that stands here with two words."""
    logits = torch.zeros(tokenizer.get_vocab_size(), tokenizer.get_vocab_size())
    for before, after, value in following:
        ids = [tokenizer.encode(word).ids for word in (before, after)]
        assert [len(each) for each in ids] == [1, 1], (before, after)
        logits[ids[0][0], ids[1][0]] = value
    return TableModel(logits, max_seq_len)


def random_model(window: int, vocab_size: int) -> LLM:
    torch.manual_seed(0)
    model = LLM(vocab_size, 16, 2, 2, window)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.double().eval()
