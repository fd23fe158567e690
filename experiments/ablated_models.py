"""The model of llm.py without one of its parts: what experiments/ablations.py trains.

Each function changes a new LLM. write_model() writes it to a file that  python train.py --model FILE  trains.
"""

import inspect
from pathlib import Path

from torch import Tensor, nn

from llm import LLM, Block
from support.cli import atomic_write


class Nothing(nn.Module):
    """In place of a part that adds to the residual stream: it adds 0."""

    def forward(self, x: Tensor, *_) -> Tensor:
        return x.new_zeros(x.shape)


def no_attention(model: LLM) -> None:
    """Only MLPs: a position knows its own token and no other."""
    for block in model.blocks:
        block.attention_norm, block.attention = nn.Identity(), Nothing()


def no_mlp(model: LLM) -> None:
    for block in model.blocks:
        block.mlp_norm, block.mlp = nn.Identity(), Nothing()


class ReplacingBlock(Block):
    """Its parts replace the stream instead of adding to it."""

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cached: Tensor | None = None) -> Tensor:
        x = self.dropout(self.attention(self.attention_norm(x), cos, sin, cached))
        return self.dropout(self.mlp(self.mlp_norm(x)))


def no_residual(model: LLM) -> None:
    """The last product of a part must not begin at zero, as it does in llm.py: nothing would come through."""
    for block in model.blocks:
        block.__class__ = ReplacingBlock  # the same weights, another forward()
        for layer in (block.attention.o_proj, block.mlp.down_proj):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)  # outputs as large as inputs


def no_norm(model: LLM) -> None:
    """No RMSNorm before a part or before the output. Queries and keys keep theirs."""
    model.norm = nn.Identity()
    for block in model.blocks:
        block.attention_norm = block.mlp_norm = nn.Identity()


def no_qk_norm(model: LLM) -> None:
    for block in model.blocks:
        block.attention.q_norm = block.attention.k_norm = nn.Identity()


def no_rotary(model: LLM) -> None:
    """No feature turns. Of the order, the mask is left: a position does not see what comes after it."""
    model.cos.fill_(1)
    model.sin.zero_()


def untied_output(model: LLM) -> None:
    """Tokens come in by a matrix of their own. embedding.weight is left to the output layer."""
    model.input_embedding = nn.Embedding(model.vocab_size, model.d_model)
    nn.init.normal_(model.input_embedding.weight, std=0.1)  # like the other
    model.embedding.forward = model.input_embedding.forward


WHOLE = "the whole model"
ABLATIONS = {  # hyperparameters that differ; "model": the function that changes it, and what that needs
    WHOLE: {},
    "no attention": {"model": (no_attention, Nothing)},
    "no MLP": {"model": (no_mlp, Nothing)},
    "no residual path": {"model": (no_residual, ReplacingBlock)},
    "no norm (but QK-norm)": {"model": (no_norm,)},
    "no QK-norm": {"model": (no_qk_norm,)},
    "no rotary positions": {"model": (no_rotary,)},
    "one head": {"num_heads": 1},
    "untied output": {"model": (untied_output,)},
}
MODEL_FILE = '''"""The model of llm.py, changed by {0}(). Written by experiments/ablated_models.py."""

import llm
from llm import *


{1}

class LLM(llm.LLM):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        {0}(self)
'''


def write_model(change: dict, folder: Path) -> dict:
    """An ablation's hyperparameters. Its model becomes a file of its code alone: other code may change."""
    if "model" not in change:
        return change
    function, *needed = change["model"]
    path = folder.resolve() / f"{function.__name__}.py"
    with atomic_write(path) as temporary:
        code = "\n\n".join(map(inspect.getsource, (*needed, function)))
        temporary.write_text(MODEL_FILE.format(function.__name__, code), encoding="utf-8")
    return change | {"model": str(path)}
