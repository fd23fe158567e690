"""The peers of bench.py: GPT-2 of transformers, nanoGPT, our model in llama.cpp, the matrix products alone.

A function that ends in _steps returns a function that makes `count` training steps as the peer's own code
makes them. What a peer computes, and what bench.py generates with ours, is decorated with default_products().
Peers that are not installed raise ImportError.
"""

import contextlib
import io
import itertools
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from corpus.tokenizer import EOS
from llm import LLM
from publishing.gguf_file import BLOCK, gguf_file
from publishing.qwen3 import qwen3_config, qwen3_tensors
from support.device import choose_device, keep_freed_memory


class GenerationPeer(NamedTuple):
    """generate(ids, count) continues each row of ids (B, T) by its likeliest tokens, or at the same cost."""

    name: str
    generate: Callable[[Tensor, int], object]
    has_cache: bool = True  # of keys and values, up to the window; else each token computes the whole window
    streams: tuple[int, ...] = (1, 16)  # how many rows it can take


@contextlib.contextmanager
def default_products():
    """Decorates timed code: float32 products as in PyTorch by default, whatever choose_device() chose."""
    chosen = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(chosen)


def product_steps(args: Namespace, precision: str, count: int) -> Callable[[], None]:
    """The matrix products of our training steps alone: each forward, and backward for both its factors."""
    device, dtype = choose_device(precision)
    keep_freed_memory()
    model = LLM(args.vocab_size, args.d_model, args.num_heads, args.num_layers, args.max_seq_len)
    rows, T = args.batch_size * args.max_seq_len, args.max_seq_len
    weights = [torch.randn(p.shape, device=device, dtype=dtype) for p in model.parameters() if p.dim() == 2]
    inputs = {size: torch.randn(rows, size, device=device, dtype=dtype) for p in weights for size in p.shape}
    heads, head_size = args.batch_size * args.num_heads, args.d_model // args.num_heads
    q = torch.randn(heads, T, head_size, device=device, dtype=dtype)
    scores = q @ q.transpose(-2, -1)

    def steps():
        for _ in range(count):
            for w in weights:
                x, y = inputs[w.shape[1]], inputs[w.shape[0]]
                F.linear(x, w), y @ w, y.T @ x
            # Queries with keys, and its two backward products; as many to mix the values
            for _ in range(3 * args.num_layers):
                q @ q.transpose(-2, -1), scores @ q

    return steps


def gpt2_model(args: Namespace) -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel, logging

    logging.set_verbosity_error()
    sizes = dict(vocab_size=args.vocab_size, n_positions=args.max_seq_len, n_embd=args.d_model)
    sizes |= dict(n_layer=args.num_layers, n_head=args.num_heads)
    config = GPT2Config(bos_token_id=0, eos_token_id=0, **sizes)
    return GPT2LMHeadModel(config).to(choose_device()[0])


def gpt2_steps(args: Namespace, count: int) -> Callable[[], None]:
    """The loop that the documentation of transformers shows: AdamW, a linear schedule, float32."""
    from transformers import get_scheduler

    model = gpt2_model(args).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=10**6)
    ids = torch.randint(args.vocab_size, (args.batch_size, args.max_seq_len), device=model.device)

    @default_products()
    def steps():
        for _ in range(count):
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

    return steps


def gpt2_generation(args: Namespace) -> GenerationPeer:
    model = gpt2_model(args).eval()
    greedy = dict(do_sample=False, use_cache=True, pad_token_id=0)

    @default_products()
    def generate(ids: Tensor, count: int):
        return model.generate(ids, min_new_tokens=count, max_new_tokens=count, **greedy)

    return GenerationPeer("transformers GPT-2 with cache", generate)


def nanogpt_model(folder: str, args: Namespace) -> torch.nn.Module:
    sys.path.insert(0, folder)
    from model import GPT, GPTConfig

    sizes = dict(vocab_size=args.vocab_size, block_size=args.max_seq_len, n_embd=args.d_model)
    sizes |= dict(n_layer=args.num_layers, n_head=args.num_heads)
    with contextlib.redirect_stdout(io.StringIO()):
        return GPT(GPTConfig(dropout=0.0, bias=False, **sizes)).to(choose_device()[0])


def nanogpt_steps(folder: str, args: Namespace, precision: str, count: int) -> Callable[[], None]:
    """nanoGPT's training step as its train.py makes it: compiled, in autocast unless in float32."""
    model = nanogpt_model(folder, args)
    device, dtype = choose_device(precision)
    with contextlib.redirect_stdout(io.StringIO()):
        optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), device.type)
    compiled = torch.compile(model)
    ids = torch.randint(args.vocab_size, (args.batch_size, args.max_seq_len + 1), device=device)

    @default_products()
    def steps():
        for _ in range(count):
            with torch.amp.autocast(device.type, dtype, enabled=dtype != torch.float32):
                _, loss = compiled(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return steps


def nanogpt_generation(folder: str, args: Namespace) -> GenerationPeer:
    generate = default_products()(nanogpt_model(folder, args).eval().generate)
    return GenerationPeer("nanoGPT's sampling loop", generate, has_cache=False)


def llama_cpp_generation(model: LLM, tokenizer: Tokenizer) -> GenerationPeer:
    """Our model as export.py --gguf --quantize q8_0 writes it, with the settings of llama-cpp-python.

    In float32 if q8_0 does not fit the width.
    """
    import gguf  # noqa: F401, gguf_file() needs it
    import llama_cpp

    quantize = None if model.d_model % BLOCK else "q8_0"
    config = qwen3_config(model, tokenizer.token_to_id(EOS))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        tensors = {name: tensor.cpu() for name, tensor in qwen3_tensors(model).items()}
        path.write_bytes(gguf_file(config, tensors, tokenizer, "unknown", quantize))
        llama = llama_cpp.Llama(str(path), n_ctx=model.max_seq_len, verbose=False)

    def generate(ids: Tensor, count: int):
        llama.reset()  # else it would keep the prompt's keys and values of the last time
        return list(itertools.islice(llama.generate(ids[0].tolist(), temp=0), count))

    return GenerationPeer(f"llama.cpp, {quantize or 'float32'}", generate, streams=(1,))
