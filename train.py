"""Train the model of params.py on its text:  python train.py  (each line of params.py is a flag, too: --help)

Leaves in out_dir the tokenizer (bpe_tokenizer.json), the weights (parameters.pt2), the loss curve
(training_log.csv), how the model continued a sentence as it learned (training_samples.jsonl), and the weights
at some steps (snapshots/). Ctrl-C ends a run early and saves what it has learned; the next run goes on from
there. Two processes, each with half of every batch: torchrun --nproc_per_node=2 train.py
"""

import math
import shlex
import time
from argparse import SUPPRESS, Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from corpus.sources import BUNDLED
from corpus.token_files import Corpus
from corpus.tokenizer import tokenizer_key
from dataset import TextDataset, check_text_length, load_text, text_settings, validation_windows
from llm import LLM
from support.checkpoint import lock_folder
from support.cli import UserError, make_parser, parse_args, run_script
from support.continuation import PROMPTS, continue_prompt
from support.device import choose_device, maybe_compile
from support.distributed import all_reduce_mean, data_parallel, local_rank_zero_first, process_group
from support.loss import TrainingLoss
from support.model_class import model_class, print_parameters
from support.training_run import TrainingRun


def learning_rate_at(step: int, steps: int, args: Namespace) -> float:
    """The rate of step 1 to steps: rises in the first `warmup` of the run, falls to 0 in the last `decay`."""
    rise = step / max(1, args.warmup * steps)
    fall = (steps + 1 - step) / max(1, args.decay * steps)
    return args.learning_rate * min(1, rise, fall)


def make_optimizer(model: LLM, epochs: float, steps: int, args: Namespace) -> torch.optim.Adam:
    """Adam with weight decay (arXiv:1711.05101). The embedding learns embedding_rate times as fast."""
    others = [parameter for parameter in model.parameters() if parameter is not model.embedding.weight]
    embedding = {"params": [model.embedding.weight], "rate_factor": args.embedding_rate}
    rest = {"params": others, "rate_factor": 1.0}
    # The steps of a run together take away this share of a weight, if the rate is always at its peak; those
    # of a run of less than 100 steps take less
    in_all = args.weight_decay * epochs**0.5
    for group in (embedding, rest):  # the embedding decays as slowly as the rest
        group["weight_decay"] = in_all / (args.learning_rate * max(100, steps)) / group["rate_factor"]
    betas = args.adam_beta1, args.adam_beta2
    return torch.optim.Adam([embedding, rest], betas=betas, decoupled_weight_decay=True, fused=True)


def training_step(
    loss_of: Callable, model: LLM, optimizer: torch.optim.Optimizer, rate: float, grad_clip: float,
    input_ids: Tensor, target_ids: Tensor,
) -> Tensor:  # fmt: skip
    """One step of Adam on a batch, both (B, T). Returns its mean loss over all processes, on the device."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_factor"]
    loss = loss_of(input_ids, target_ids)
    mean_loss = all_reduce_mean(loss.detach())  # raises if a process is gone, while the weights are whole
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    optimizer.step()
    optimizer.zero_grad()
    return mean_loss


@torch.no_grad()
def validation_loss(
    model: LLM, tokens: np.ndarray, args: Namespace, device: torch.device, dtype: torch.dtype
) -> float:
    """Mean loss in nats per token over at most eval_windows held-out windows."""
    windows = validation_windows(tokens, args.max_seq_len, args.eval_windows)
    loss_of = TrainingLoss(model.eval(), dtype)  # not compiled: other shapes would have to be compiled again
    total = 0.0
    for input_ids, target_ids in DataLoader(windows, args.batch_size):
        total += loss_of(input_ids.to(device), target_ids.to(device)).item() * len(input_ids)
    model.train()
    return total / len(windows)


def steps_in_epoch(tokens: np.ndarray, max_seq_len: int, batch_size: int) -> int:
    """The full batches of every epoch, at least 1. A later epoch may have a window less than the first."""
    return max(1, (len(TextDataset(tokens, max_seq_len)) - 1) // batch_size)


def batches(
    tokens: np.ndarray, start: int, steps: int, args: Namespace, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of step number `start` (from 0) to steps - 1: (input_ids, target_ids).

    Both are (batch_size / world_size, max_seq_len): the share of this rank. Every epoch shuffles the windows
    and cuts them at other places, so that a small text is harder to memorize. Order and cuts follow from the
    seed and the epoch's number.
    """
    per_epoch = steps_in_epoch(tokens, args.max_seq_len, args.batch_size)
    for epoch in range(start // per_epoch, math.ceil(steps / per_epoch)):
        random = np.random.default_rng((args.seed, epoch))
        first = 0
        if epoch > 0 and len(tokens) > 2 * args.max_seq_len:  # a very short text has no tokens to leave out
            first = random.integers(args.max_seq_len)
        windows = TextDataset(tokens, args.max_seq_len, first)
        order = random.permutation(len(windows))
        before = epoch * per_epoch  # steps of earlier epochs
        shares = []  # for each step, this rank's windows
        for step in range(max(start, before), min(steps, before + per_epoch)):
            batch = order[(step - before) * args.batch_size :][: args.batch_size]
            shares.append(batch[rank::world_size].tolist())
        yield from DataLoader(windows, batch_sampler=shares)


def train(
    model: LLM, corpus: Corpus, epochs: float, args: Namespace, device: torch.device, dtype: torch.dtype,
    rank: int = 0, world_size: int = 1,
) -> str | None:  # fmt: skip
    """Train, or go on from the checkpoint, and save the weights.

    Returns the name of the signal that ended it early, if any.
    """
    per_epoch = steps_in_epoch(corpus.train, args.max_seq_len, args.batch_size)
    steps = max(1, round(epochs * per_epoch))
    optimizer = make_optimizer(model, epochs, steps, args)
    with TrainingRun(model, optimizer, corpus, args, epochs, steps, per_epoch, rank, world_size) as run:
        loss_of = data_parallel(TrainingLoss(model, dtype), device)
        loss_of = maybe_compile(loss_of, args.compile, steps - run.step, device)
        for input_ids, target_ids in batches(corpus.train, run.step, steps, args, rank, world_size):
            step = run.step + 1
            rate = learning_rate_at(step, steps, args)
            torch.manual_seed(args.seed + step * world_size + rank)  # dropout is the same in a resumed run
            input_ids, target_ids = input_ids.to(device), target_ids.to(device)
            loss = training_step(loss_of, model, optimizer, rate, args.grad_clip, input_ids, target_ids)
            run.record(loss, rate, num_tokens=world_size * input_ids.numel())
            run.save_snapshot_if_due()
            if run.evaluation_due():
                text = continue_prompt(model, corpus.tokenizer, PROMPTS[0], 20) if run.sample_due() else None
                run.log(validation_loss(model, corpus.val, args, device, dtype), text)
            if run.should_stop():
                break
            run.save_if_due()
        return run.finish()


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", default=SUPPRESS, help="a file whose class LLM to train, not llm.py's")
    args = parse_args(parser)
    Model = model_class(args)
    with process_group() as (rank, world_size):
        if args.batch_size % world_size:
            raise UserError(f"--batch_size {args.batch_size} does not divide among {world_size} processes")
        out_dir = Path(args.out_dir)
        out_dir.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(out_dir) if rank == 0 else None  # held until this function returns
        began = time.monotonic()
        with local_rank_zero_first():
            corpus, text_name = load_text(args)
        check_text_length(corpus, args, world_size)
        # The bundled encyclopedia is short, so it has its own number of passes, unless one was asked for
        epochs = args.sample_epochs if text_name == BUNDLED and "epochs" not in args.given else args.epochs

        torch.manual_seed(args.seed)
        device, dtype = choose_device(args.precision)
        vocab_size = corpus.tokenizer.get_vocab_size()  # less than args.vocab_size if the text is very small
        names = ("d_model", "num_heads", "num_layers", "max_seq_len", "dropout")
        model = Model(vocab_size=vocab_size, **{name: getattr(args, name) for name in names})
        model.trained_on = {
            "tokenizer": tokenizer_key(corpus.tokenizer),
            "text": corpus.key,
            "settings": text_settings(args) | {"dataset": text_name},
        }
        print_parameters(model)
        processes = f" in {world_size} processes" if world_size > 1 else ""
        precision = str(dtype).removeprefix("torch.")
        print(f"training: {epochs:g} epochs on {device}{processes}, matrix products in {precision}")
        ended_by = train(model.to(device), corpus, epochs, args, device, dtype, rank, world_size)

        how = f"ended early by {ended_by}" if ended_by else "done"
        text = "the bundled encyclopedia" if text_name == BUNDLED else text_name
        print(f"{how} after {(time.monotonic() - began) / 60:.1f} minutes; trained on {text}")
        print(f"saved {out_dir / 'parameters.pt2'} and {out_dir / 'bpe_tokenizer.json'}")
        if ended_by:
            print("run again to go on from here")
        elif rank == 0:
            generator = torch.Generator(device).manual_seed(args.seed)
            for prompt in PROMPTS:
                print(f"  {continue_prompt(model, corpus.tokenizer, prompt, 60, 0.5, generator)}")
        out_flag = f" --out_dir {shlex.quote(args.out_dir)}" if "out_dir" in args.given else ""
        print(f'next: python generate.py "{PROMPTS[1]}"{out_flag}')


if __name__ == "__main__":
    run_script(main)
