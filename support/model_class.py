"""The model that train.py trains: the LLM of llm.py, or the one that a reader has written in a file of their own."""

import runpy
import traceback
from argparse import Namespace

import torch

from llm import LLM
from support.cli import UserError


def model_class(args: Namespace) -> type[LLM]:
    """The LLM of llm.py, or that of the Python file which --model names. Raises UserError if that one does not work."""
    if "model" not in args:
        return LLM
    try:
        module = runpy.run_path(args.model)
        if "LLM" not in module:
            raise UserError(f"{args.model} has no class LLM")
        theirs = module["LLM"]
        theirs(vocab_size=2, d_model=2, num_heads=1, num_layers=1, max_seq_len=1)(torch.tensor([[0]])).argmax()
        return theirs
    except (OSError, UserError):
        raise
    except Exception as error:  # whatever the code in that file does
        lines = [f", line {at.lineno}" for at in traceback.extract_tb(error.__traceback__) if at.filename == args.model]
        where = "".join(lines[-1:])
        raise UserError(f"the class LLM of {args.model} does not work{where}: {type(error).__name__}: {error}") from error
