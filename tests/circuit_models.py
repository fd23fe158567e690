"""A model made by hand whose one head carries a feature from the preposition to the ending, for the tests of
patching.
"""

import torch

from interpretability.case_pairs import Pair
from llm import LLM

EOS, WITHOUT, TO, ENDING_WITHOUT, ENDING_TO, FIRST_STEM = 0, 1, 2, 3, 4, 5  # token ids
STEMS = 45
CARRIER = "head 2.2"  # the head that does all of it


def carrying_model() -> LLM:
    """The second head of the second of three layers adds to feature 1 what it sees of feature 0 at earlier
    positions.

    Feature 0 is 3 for one preposition and -3 for the other, and feature 1 tells the two endings apart in the
    same way. No other head and no MLP adds anything.
    """
    torch.manual_seed(0)
    model = LLM(FIRST_STEM + STEMS, d_model=12, num_heads=2, num_layers=3, max_seq_len=12).double()
    head_size, attention = 6, model.blocks[1].attention
    with torch.no_grad():
        embedding = torch.randn(model.vocab_size, 12).double()
        embedding[:, :2] = 0
        embedding[TO] = embedding[WITHOUT]
        embedding[WITHOUT, 0], embedding[TO, 0] = 3, -3
        embedding[ENDING_WITHOUT, 1], embedding[ENDING_TO, 1] = 1, -1
        model.embedding.weight.copy_(embedding)
        attention.qkv_proj.weight.zero_()  # queries and keys are 0: equal weights for all positions
        attention.qkv_proj.weight[2 * 12 + head_size, 0] = 1  # the head's first value is feature 0
        attention.o_proj.weight[1, head_size] = 20  # and goes to feature 1
    return model.eval()


def carried_pairs() -> list[Pair]:
    """Sentences of 4 or 5 tokens: perhaps a stem, the preposition, and one or two tokens of the word before
    its ending.
    """
    pairs = []
    for stem in range(FIRST_STEM, FIRST_STEM + STEMS):
        before = [EOS, FIRST_STEM + stem % 7] if stem % 2 else [EOS]
        word = [stem, FIRST_STEM] if stem % 3 else [stem]
        clean, corrupt = [*before, WITHOUT, *word], [*before, TO, *word]
        pairs.append(
            Pair(
                clean,
                corrupt,
                ENDING_WITHOUT,
                ENDING_TO,
                len(before),
                "без / к",
                "gent",
                "datv",
                lemma=str(stem),
            )
        )
    return pairs
