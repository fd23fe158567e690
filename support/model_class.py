"""The model that train.py trains: the LLM of llm.py, or one that a reader wrote."""

import runpy
import traceback
from argparse import Namespace

import torch

from llm import LLM
from support.cli import UserError


def model_class(args: Namespace) -> type[LLM]:
    """The LLM of llm.py, or of the file that --model names. Raises UserError if that one does not work."""
    if "model" not in args:
        return LLM
    try:
        module = runpy.run_path(args.model)
        if "LLM" not in module:
            raise UserError(f"{args.model} has no class LLM")
        theirs = module["LLM"]
        model = theirs(vocab_size=2, d_model=2, num_heads=1, num_layers=1, max_seq_len=1)
        model(torch.tensor([[0]])).argmax()
        return theirs
    except (OSError, UserError):
        raise
    except Exception as error:  # whatever the code in that file does
        lines = [at.lineno for at in traceback.extract_tb(error.__traceback__) if at.filename == args.model]
        where = f", line {lines[-1]}" if lines else ""
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"the class LLM of {args.model} does not work{where}: {what}") from error


def print_parameters(model: LLM) -> None:
    """Print how many parameters the model has, and where."""
    parts = {
        "embedding (also the output layer)": [model.embedding],
        f"{model.num_layers} layers x attention": [block.attention for block in model.blocks],
        f"{model.num_layers} layers x MLP": [block.mlp for block in model.blocks],
    }
    total = sum(parameter.numel() for parameter in model.parameters())
    sizes = {}
    for name, modules in parts.items():
        sizes[name] = sum(parameter.numel() for module in modules for parameter in module.parameters())
    sizes["norms"] = total - sum(sizes.values())
    print(f"model: {total:,} parameters")
    for name, size in sizes.items():
        print(f"  {name:<36}{size:>12,}  {size / total:4.0%}")
