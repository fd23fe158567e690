"""The models that bench.py measures beside ours: GPT-2 of transformers, and nanoGPT.

A function that ends in _steps returns a function that makes `count` training steps as the peer's own code makes them.
"""

import contextlib
import io
import sys
from argparse import Namespace
from collections.abc import Callable

import torch

from support.device import choose_device


def gpt2_model(args: Namespace) -> torch.nn.Module:
    """Raises ImportError if transformers is not installed."""
    from transformers import GPT2Config, GPT2LMHeadModel, logging

    logging.set_verbosity_error()
    sizes = dict(n_layer=args.num_layers, n_head=args.num_heads, n_embd=args.d_model, n_positions=args.max_seq_len)
    config = GPT2Config(vocab_size=args.vocab_size, bos_token_id=0, eos_token_id=0, **sizes)
    return GPT2LMHeadModel(config).to(choose_device()[0])


def gpt2_steps(args: Namespace, count: int) -> Callable[[], None]:
    """The loop that the documentation of transformers shows: AdamW, a linear schedule, float32."""
    from transformers import get_scheduler

    model = gpt2_model(args).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=10**6)
    ids = torch.randint(args.vocab_size, (args.batch_size, args.max_seq_len), device=model.device)

    def steps():
        for _ in range(count):
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

    return steps


def nanogpt_model(folder: str, args: Namespace) -> torch.nn.Module:
    sys.path.insert(0, folder)
    from model import GPT, GPTConfig

    sizes = dict(n_layer=args.num_layers, n_head=args.num_heads, n_embd=args.d_model, block_size=args.max_seq_len)
    with contextlib.redirect_stdout(io.StringIO()):
        return GPT(GPTConfig(vocab_size=args.vocab_size, dropout=0.0, bias=False, **sizes)).to(choose_device()[0])


def nanogpt_steps(folder: str, args: Namespace, precision: str, count: int) -> Callable[[], None]:
    """nanoGPT's training step as its train.py makes it, compiled, in autocast where the precision is not float32."""
    model = nanogpt_model(folder, args)
    device, dtype = choose_device(precision)
    with contextlib.redirect_stdout(io.StringIO()):
        optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), device.type)
    compiled = torch.compile(model)
    ids = torch.randint(args.vocab_size, (args.batch_size, args.max_seq_len + 1), device=device)

    def steps():
        for _ in range(count):
            with torch.amp.autocast(device.type, dtype, enabled=dtype != torch.float32):
                _, loss = compiled(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return steps
