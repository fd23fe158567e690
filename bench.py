"""Benchmark speed against nanoGPT, transformers and the matmul limit:  python bench.py

Prints a table and writes bench.json. Training, growth and generation are medians of three rounds in which the
sides take turns, so that another process on the machine slows all of them down; memory, text and the first
step are measured once. It calls the steps of train.py and the generation of llm.py themselves. In training,
each side has a process of its own, since ours changes how its process keeps memory and computes products.
Peers, if they are installed: GPT-2 of `transformers` as its documentation trains and generates; our model
exported to llama.cpp (llama-cpp-python and gguf); and with --nanogpt FOLDER a clone of karpathy/nanoGPT, its
model compiled, and its own sampling loop. The text is that of --dataset.
"""

import contextlib
import functools
import importlib.util
import io
import itertools
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from corpus.sentences import split_sentences
from corpus.sources import load_articles, load_articles_or_bundled
from corpus.token_files import Encoder, prepare_corpus
from corpus.tokenizer import train_tokenizer
from llm import LLM
from support.cli import UserError, make_parser, parse_args, run_script, write_json
from support.device import choose_device, maybe_compile
from support.loss import TrainingLoss
from support.numpy_decoder import fastest_step
from support.own_process import function_in_own_process, in_own_process
from support.peers import (
    default_products, gpt2_generation, gpt2_steps, llama_cpp_generation,
    nanogpt_generation, nanogpt_steps, product_steps,
)  # fmt: skip
from train import make_optimizer, training_step

ROUNDS = 3
STEPS = 10  # training steps in a round

# Runs a job in a new Python, so that its memory is its own and what another job compiled is gone
alone = functools.partial(in_own_process, start_method="spawn")

synchronize = torch.accelerator.synchronize if torch.accelerator.is_available() else lambda: None


def median_of_turns(sides: dict) -> dict[str, float]:
    """Seconds of each side, a function without arguments: median of ROUNDS rounds of taking turns."""
    taken = {name: [] for name in sides}
    for side in sides.values():
        side()  # once to warm up
    for _ in range(ROUNDS):
        for name, side in sides.items():
            synchronize()
            start = time.perf_counter()
            side()
            synchronize()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def median_in_own_processes(jobs: dict[str, tuple]) -> dict[str, float]:
    """The same where each side is made by a job, a function and its arguments, in a process of its own."""
    with contextlib.ExitStack() as stack:
        sides = {}
        for name, job in jobs.items():
            sides[name] = stack.enter_context(function_in_own_process(synchronized, *job))
        return median_of_turns(sides)


def synchronized(make: Callable, *arguments) -> Callable[[], None]:
    """The function that make(*arguments) returns, but it waits until the GPU is done."""
    function = make(*arguments)

    def waiting():
        function()
        synchronize()

    return waiting


def row(figure: str, ours: float, unit: str, peer=None, beside="", limit=None, of="") -> dict:
    """A line of the table: ours and the peer's figure in units, their ratio, and the share of the limit."""
    given = dict(figure=figure, ours=ours, unit=unit, peer=peer, beside=beside, limit=limit, of=of)
    return given | dict(ratio=ours / peer if peer else None, share=ours / limit if limit else None)


def new_model(args, **changed) -> LLM:
    """An LLM of the sizes in args, on the device, with weights that are not zero."""
    names = ("vocab_size", "d_model", "num_heads", "num_layers", "max_seq_len")
    torch.manual_seed(args.seed)
    model = LLM(**{name: getattr(args, name) for name in names} | changed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model.to(choose_device()[0])


def flops_per_token(args) -> int:
    """FLOPs of a training step per token: 6 N + 12 L T D (Chowdhery et al. 2022, arXiv:2204.02311, app. B).

    N counts the weights of the matrix products, with the output layer: two operations forward, four backward.
    Attention multiplies a query with T keys and mixes T values; what the causal mask hides is computed too.
    """
    with torch.device("meta"):  # sizes without memory
        model = LLM(args.vocab_size, args.d_model, args.num_heads, args.num_layers, args.max_seq_len)
    weights = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    return 6 * weights + 12 * args.num_layers * args.max_seq_len * args.d_model


def our_steps(args, compiled=True, count=STEPS, precision="auto", **changed):
    """A function that makes `count` steps of train.py on random tokens."""
    device, dtype = choose_device(precision)
    batch_size = changed.pop("batch_size", args.batch_size)
    model = new_model(args, **changed)
    loss = maybe_compile(TrainingLoss(model, dtype), "on" if compiled else "off", count, device)
    optimizer = make_optimizer(model, 1.0, count, args)
    ids = torch.randint(model.vocab_size, (batch_size, model.max_seq_len + 1), device=device)

    def steps():
        for _ in range(count):
            training_step(loss, model, optimizer, 1e-4, args.grad_clip, ids[:, :-1], ids[:, 1:])

    return steps


def bench_training(args, precision: str) -> list[dict]:
    """Tokens per second in one precision, beside the peers and as a share of the matrix products alone."""
    tokens = STEPS * args.batch_size * args.max_seq_len
    jobs = {
        "ours": (our_steps, args, True, STEPS, precision),
        "ours, not compiled": (our_steps, args, False, STEPS, precision),
        "products": (product_steps, args, precision, STEPS),
    }
    if importlib.util.find_spec("transformers"):
        jobs["transformers GPT-2, float32 loop"] = (gpt2_steps, args, STEPS)
    if args.nanogpt:
        jobs["nanoGPT, compiled"] = (nanogpt_steps, args.nanogpt, args, precision, STEPS)
    rate = {name: tokens / seconds for name, seconds in median_in_own_processes(jobs).items()}
    ours, limit = rate.pop("ours"), (rate.pop("products"), "its matrix products alone")
    figure = f"training, {precision}"
    rows = [row(figure, ours, "tokens/s", peer, name, *limit) for name, peer in rate.items()]
    flops = flops_per_token(args)
    return rows + [row(f"{figure}, {flops / 1e6:.1f} MFLOP a token", flops * ours / 1e9, "GFLOP/s")]


def precisions() -> list[str]:
    """float32, and bfloat16 where the hardware computes in it."""
    return ["float32", "bfloat16"] if choose_device()[1] == torch.bfloat16 else ["float32"]


def bench_memory(args) -> list[dict]:
    """Peak memory of a process that trains, and how much of it the training steps need."""
    rows = []
    for precision in precisions():
        before, peak = alone(training_memory, args, precision)
        rows.append(row(f"training, {precision}: peak memory in all", peak, "MiB"))
        rows.append(row(f"training, {precision}: peak memory of the steps", peak - before, "MiB"))
    return rows


def training_memory(args, precision: str) -> tuple[float, float]:
    """Peak memory (MiB) of this process before and after some training steps."""
    before = peak_memory()
    our_steps(args, precision=precision)()
    return before, peak_memory()


def peak_memory() -> float:
    """Most memory that this process has held so far, MiB: the GPU's if there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def bench_growth(args) -> list[dict]:
    """Step time at 2 and 4 times each size, as a multiple of the step time as it is; not compiled."""
    rows = []
    for name in ("d_model", "num_layers", "max_seq_len", "batch_size"):
        sizes = {times: getattr(args, name) * times for times in (1, 2, 4)}
        sides = {times: our_steps(args, False, 2, **{name: size}) for times, size in sizes.items()}
        seconds = median_of_turns(sides)
        for times in (2, 4):
            figure = f"step time at {times} x {name} ({sizes[times]})"
            rows.append(row(figure, seconds[times] / seconds[1], "times"))
    return rows


def bench_generation(args) -> list[dict]:
    """Tokens per second as in generate.py: first, later (keys and values cached), with the window full."""
    articles = load_articles(args.dataset, args.text_column)
    tokenizer = train_tokenizer(itertools.islice(articles, 500), args.vocab_size)
    device, rows = choose_device()[0], []
    model = new_model(args, vocab_size=tokenizer.get_vocab_size()).eval()
    peers = [nanogpt_generation(args.nanogpt, args)] if args.nanogpt else []
    with contextlib.suppress(ImportError):
        peers.append(gpt2_generation(args))
    with contextlib.suppress(ImportError):
        peers.append(llama_cpp_generation(model, tokenizer))
    # Each token must read every weight once. Summing as many numbers takes about the least time for that.
    weights = torch.randn(sum(p.numel() for p in model.parameters()), device=device)
    T, start = args.max_seq_len, max(1, min(28, args.max_seq_len // 4))
    later = (f"after {start} tokens", start, min(100, T - start))
    jobs = [("first token", start, 1), later, ("window full", T, 20)]
    for streams, (name, length, count) in itertools.product((1, 16), jobs):
        ids = torch.randint(1, model.vocab_size, (streams, length), device=device)
        ours = 3 * count if length == T else count  # so that the window's moving on has its share
        stream = functools.partial(model.generate, ids, temperature=0, step=fastest_step(model, streams))
        sides = {"read": lambda: [weights.sum() for _ in range(100)]}
        sides["ours"] = default_products()(lambda stream=stream, n=ours: list(itertools.islice(stream(), n)))
        # A peer with a cache ends at the window; one without a cache is compared where the window is full
        for peer in peers:
            if streams in peer.streams and peer.has_cache == (length < T):
                sides[peer.name] = functools.partial(peer.generate, ids, count)
        seconds = median_of_turns(sides)
        rate, limit = streams * ours / seconds.pop("ours"), streams * 100 / seconds.pop("read")
        for peer_name, taken in seconds.items() or [("", None)]:
            peer_rate = streams * count / taken if taken else None
            figures = rate, "tokens/s", peer_rate, peer_name, limit, "reading the weights"
            rows.append(row(f"generation, {streams} at once, {name}", *figures))
    return rows


def bench_text(args) -> list[dict]:
    rows, first, articles = [], None, list(load_articles(args.dataset, args.text_column))
    chars = sum(map(len, articles))
    sample = articles[:: math.ceil(chars / args.tokenizer_chars)]
    encoder = Encoder(train_tokenizer(articles[:100], args.vocab_size))
    for name, texts, job in (
        ("sentence splitting, one core", articles, lambda: [split_sentences(text) for text in articles]),
        ("tokenizer training", sample, lambda: train_tokenizer(sample, args.vocab_size)),
        ("splitting and encoding, one core", articles, lambda: [encoder(text) for text in articles]),
    ):
        start = time.perf_counter()
        job()
        rows.append(row(name, sum(map(len, texts)) / (time.perf_counter() - start) / 1e6, "Mchar/s"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.jsonl"
        for times in (1, 4, 16):
            with open(path, "w", encoding="utf-8") as file:
                file.writelines(json.dumps({"sample": article}) + "\n" for article in articles * times)
            peak, seconds = alone(text_peak, str(path), folder, args)
            first = first or peak
            name = f"file to tokens, all cores, {times}x the text"
            rows.append(row(name, chars * times / seconds / 1e6, "Mchar/s"))
            rows.append(row(name + ": peak memory", peak, "MiB", first, "at 1x"))
        for name in ("cold", "warm"):
            rows.append(row(f"time to the first training step, {name}", first_step(args, Path(folder)), "s"))
    return rows


def text_peak(path: str, folder: str, args) -> tuple[float, float]:
    """Peak memory (MiB) and seconds in which this process makes the text of a file ready for training.

    On Linux, pages of mapped files do not count, since the system takes them back when it needs them.
    """
    status, peak, ready = Path("/proc/self/status"), 0.0, threading.Event()

    def watch():
        nonlocal peak
        while status.exists() and not ready.wait(0.02):
            peak = max(peak, int(re.search(r"RssAnon:\s*(\d+)", status.read_text())[1]) / 2**10)

    threading.Thread(target=watch, daemon=True).start()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as cache, contextlib.redirect_stdout(io.StringIO()):
        articles = load_articles(path, "sample")
        prepare_corpus(articles, Path(cache), args.vocab_size, args.val_fraction, args.tokenizer_chars)
    ready.set()
    return peak or peak_memory(), time.perf_counter() - start


def first_step(args, folder: Path) -> float:
    """Seconds from starting train.py to its first step done, that is to the first row of its log."""
    log = folder / "run" / "training_log.csv"
    log.unlink(missing_ok=True)
    flags = {name: value for name, value in vars(args).items() if name not in ("given", "nanogpt")}
    flags |= {"out_dir": log.parent, "eval_every": 1, "eval_windows": 1}
    command = [sys.executable, Path(__file__).with_name("train.py")]
    command += [f"--{name}={value}" for name, value in flags.items()]
    with open(folder / "errors", "w+") as errors:
        start = time.perf_counter()
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        while run.poll() is None and not log.exists():
            time.sleep(0.05)
        seconds = time.perf_counter() - start
        run.kill()
        run.wait()
        errors.seek(0)
        lines = errors.read().splitlines() or [f"exit code {run.returncode}"]
    if not log.exists():
        raise UserError(f"train.py ended before its first step: {lines[-1]}")
    return seconds


def show(rows: list[dict]) -> None:
    for r in rows:
        numbers = [r[key] for key in ("ours", "peer", "ratio", "limit")]
        shown = ["" if n is None else f"{n:,.0f}" if n >= 100 else f"{n:.3g}" for n in numbers]
        ours, peer, ratio, limit = shown
        share = "" if r["share"] is None else f"{r['share']:.0%}"
        notes = "; ".join(note for note in (r["beside"], r["of"]) if note)
        print(f"{r['figure']:<54}{ours:>9} {r['unit']:<9}{peer:>8}{ratio:>7}{limit:>10}{share:>6}  {notes}")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--nanogpt", default="", metavar="FOLDER", help="a clone of karpathy/nanoGPT [none]")
    args = parse_args(parser)
    out = Path(args.out_dir)
    out.mkdir(parents=True, exist_ok=True)  # before anything is measured
    if args.nanogpt and not (Path(args.nanogpt) / "model.py").exists():
        raise UserError(f"--nanogpt {args.nanogpt}: there is no model.py in it")
    articles, args.dataset = load_articles_or_bundled(args.dataset, args.text_column)
    if next(iter(articles), None) is None:
        raise UserError(f"{args.dataset} holds no text")
    device, dtype = choose_device()
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} cores"
    machine = f"{where}, torch {torch.__version__}, {str(dtype).removeprefix('torch.')}"
    print(machine)
    print(f"{'figure':54}{'ours':>9} {'unit':9}{'peer':>8}{'ratio':>7}{'limit':>10}{'share':>6}  peer; limit")
    rows = []
    # Training, memory and text start processes of their own
    parts = [functools.partial(bench_training, args, precision) for precision in precisions()]
    parts += [functools.partial(alone, part, args) for part in (bench_generation, bench_growth)]
    parts += [functools.partial(part, args) for part in (bench_memory, bench_text)]
    for part in parts:
        new = part()
        show(new)
        rows += new
    write_json(out / "bench.json", {"machine": machine, "rows": rows})
    print(f"saved {out / 'bench.json'}")


if __name__ == "__main__":
    run_script(main)
