"""Train the model of params.py on its text:  python train.py  (--help lists the flags, one for each line of params.py)

Says what it does, step by step, and leaves in out_dir the tokenizer (bpe_tokenizer.json), the weights (parameters.pt2),
the curve (training_log.csv) and a sentence as the model goes on with it time after time (training_samples.jsonl). Ctrl-C ends
it early, with what it has learned saved; run again, it goes on from checkpoint.pt. In two processes, each with half of
every batch:  torchrun --nproc_per_node=2 train.py
"""

import copy
import itertools
import math
import shlex
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

import checkpoint
import cli
import parallel
import params
from articles import SAMPLE, load_articles
from dataset import EOS, Text, TextDataset, encode_prompt, prepare, tokenizer_key
from llm import LLM

PROMPTS = ("Столицей Франции является", "Волга впадает в", "В начале XX века")  # continued at the end
COMPILE_FROM = 1000  # steps
SAMPLES = 40  # lines of training_samples.jsonl, at most about so many


def choose_device() -> tuple[torch.device, torch.dtype]:
    """Where to train, and the precision of the matrix products: bf16 where the hardware has it, else float32."""
    if torch.cuda.is_available():
        return torch.device("cuda"), torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float32
    if torch.backends.mps.is_available():
        return torch.device("mps"), torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.device("cpu"), torch.bfloat16 if native else torch.float32


def load_text(args) -> tuple[Text, str, float]:
    """The text that args ask for, made ready; its name; and the epochs to train on it. The sample without the hub."""
    name, epochs = args.dataset, args.epochs
    print(f"text: {name}")
    try:
        articles = load_articles(name, args.text_column)
    except ConnectionError:
        print(f"  the Hugging Face hub cannot be reached, so the bundled sample stands in: {SAMPLE.name}")
        name = f"the bundled sample (data/{SAMPLE.name}), since the hub could not be reached"
        articles = load_articles(str(SAMPLE), "sample")
        epochs = args.sample_epochs if args.epochs == params.epochs else args.epochs
    text = prepare(articles, Path(args.out_dir) / "cache", args.vocab_size, args.val_fraction, args.tokenizer_chars)
    print(f"  {len(text.train):,} tokens to train on, {len(text.val):,} held out, {text.chars_per_token:.2f} characters each")
    return text, name, epochs


def describe(model: LLM) -> None:
    """Print where the parameters are."""
    parts = {"embedding (also the output layer)": model.embedding}
    block = model.blocks[0]
    layers = f"{model.num_layers} layers x "
    parts |= {layers + "attention": block.attention, layers + "MLP": block.mlp}
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    count = {name: n * (model.num_layers if name.startswith(layers) else 1) for name, n in count.items()}
    total = sum(p.numel() for p in model.parameters())
    count["norms"] = total - sum(count.values())
    print(f"model: {total:,} parameters")
    for name, n in count.items():
        print(f"  {name:<36}{n:>12,}  {n / total:4.0%}")


def learning_rate_at(step: int, steps: int, args) -> float:
    """The rate for step 1 to steps: up from 0 over the first `warmup` of the steps, down to 0 over the last `decay` of them."""
    rise = step / max(1, args.warmup * steps)
    fall = (steps + 1 - step) / max(1, args.decay * steps)
    return args.learning_rate * min(1, rise, fall)


def loss_function(model: LLM, device: torch.device, dtype: torch.dtype):
    """(input_ids, target_ids), both (B, T), to the mean cross-entropy in nats per token, products computed in dtype."""

    def loss(input_ids, target_ids):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = model(input_ids)
        return F.cross_entropy(logits.flatten(0, 1).float(), target_ids.flatten())

    return loss


@torch.no_grad()
def validation_loss(loss_of, model: LLM, windows: TextDataset, batch_size: int, most: int, device) -> float:
    """Mean loss over the held-out windows, or over an even sample of at most `most` of them: nats per token."""
    model.eval()
    chosen = range(0, len(windows), max(1, math.ceil(len(windows) / most)))
    total = 0.0
    for input_ids, target_ids in DataLoader(windows, batch_size, sampler=chosen):
        total += loss_of(input_ids.to(device), target_ids.to(device)).item() * len(input_ids)
    model.train()
    return total / len(chosen)


def held_out_loss(model: LLM, text: Text, args, device, dtype: torch.dtype) -> float:
    """The validation loss of the model as it stands: nats per token."""
    windows = TextDataset(text.val, min(args.max_seq_len, len(text.val) - 1))
    loss = loss_function(model, device, dtype)  # not compiled, since it would be once more for these shapes
    return validation_loss(loss, model, windows, args.batch_size, args.eval_windows, device)


def maybe_compiled(loss, steps: int, device: torch.device):
    """loss, through torch.compile if there is a compiler and the run is long enough to win back the time it takes."""
    compiler = device.type == "cuda" or device.type == "cpu" and any(map(shutil.which, ("c++", "g++", "clang++")))
    if not compiler or steps < COMPILE_FROM:
        return loss
    print("  compiling the model, which takes up to a minute the first time")
    return torch.compile(loss, dynamic=False)


def save(model: LLM, text: Text, out: Path) -> None:
    """Write the weights and the tokenizer that belongs to them."""
    state = checkpoint.on_cpu(model)
    state["_extra_state"]["tokenizer"] = tokenizer_key(text.tokenizer)
    with cli.replacing(out / "bpe_tokenizer.json") as temporary:  # which takes its place after the weights, if nothing failed
        temporary.write_text(text.tokenizer.to_str(pretty=True), encoding="utf-8")
        checkpoint.write(out / "parameters.pt2", state)


def catch_signals() -> list[str]:
    """From now on Ctrl-C and SIGTERM do not end the program; their names come to stand in this list."""
    came = []

    def note(number, frame):
        came.append(signal.Signals(number).name)
        tqdm.write(f"{came[-1]}: training stops after this step and is saved")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return came


def training_step(loss_of, model: LLM, optimizer, rate: float, grad_clip: float, input_ids, target_ids) -> torch.Tensor:
    """One step of Adam on a batch, both (B, T). Returns its mean loss, still on the device."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = loss_of(input_ids, target_ids)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def steps_in_epoch(tokens: np.ndarray, max_seq_len: int, batch_size: int) -> int:
    """Full batches in an epoch wherever its windows begin, or one batch that is not full."""
    return max(1, (len(TextDataset(tokens, max_seq_len)) - 1) // batch_size)


def batches(
    tokens: np.ndarray, done: int, steps: int, args, rank: int = 0, count: int = 1
) -> Iterator[tuple[tqdm, torch.Tensor, torch.Tensor]]:
    """The batches of the steps after the first `done`: (progress bar of the epoch, input_ids, target_ids).

    The tensors are (batch_size / count, max_seq_len): the share of process `rank` of `count`. What an epoch holds follows
    from the seed and its number: it cuts the text into windows at places of its own, lest the model learn a small text as
    so many windows by heart, and takes them in an order of its own.
    """
    per_epoch = steps_in_epoch(tokens, args.max_seq_len, args.batch_size)
    num_epochs = math.ceil(steps / per_epoch)
    for epoch in range(done // per_epoch, num_epochs):
        random = np.random.default_rng((args.seed, epoch))
        first = random.integers(args.max_seq_len) if epoch and len(tokens) > 2 * args.max_seq_len else 0
        windows = TextDataset(tokens, args.max_seq_len, first)
        order = random.permutation(len(windows))
        begin, end = max(0, done - epoch * per_epoch), min(per_epoch, steps - epoch * per_epoch)  # steps of the epoch
        shares = [order[i * args.batch_size : (i + 1) * args.batch_size][rank::count].tolist() for i in range(begin, end)]
        loader = DataLoader(windows, batch_sampler=shares)
        name = f"epoch {epoch + 1}/{num_epochs}"
        with tqdm(loader, name, end, unit=" batches", initial=begin, dynamic_ncols=True, disable=rank > 0) as bar:
            for input_ids, target_ids in bar:
                yield bar, input_ids, target_ids


def train(model: LLM, text: Text, epochs: float, args, device, dtype: torch.dtype, rank: int = 0, count: int = 1) -> str | None:
    """Train for so many epochs, on from the checkpoint if there is one, and save the weights, writing the log on the way.

    Returns the name of the signal that ended it early, if one did. Raises UserError if the loss is no longer finite.
    """
    out = Path(args.out_dir)
    steps = max(1, round(epochs * steps_in_epoch(text.train, args.max_seq_len, args.batch_size)))
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, args.adam_beta2), fused=True)
    identity = checkpoint.identity(args, epochs, text.key, tokenizer_key(text.tokenizer))
    found = parallel.from_first(checkpoint.find(out, identity) if rank == 0 else None)
    run = checkpoint.restore(found, out, model, optimizer)
    if run.step:
        print(f"  goes on from {out / checkpoint.NAME}, after step {run.step:,} of {steps:,}")
    loss_of = maybe_compiled(loss_function(parallel.wrap(model, device), device, dtype), steps, device)
    good, status = copy.deepcopy(model.state_dict()) if run.step else None, {}
    signals, saved = catch_signals(), time.monotonic()

    for bar, input_ids, target_ids in batches(text.train, run.step, steps, args, rank, count):
        step = run.step + 1
        rate = learning_rate_at(step, steps, args)
        torch.manual_seed(args.seed + step * count + rank)  # so that dropout, too, follows from the seed and the step
        try:
            loss = training_step(loss_of, model, optimizer, rate, args.grad_clip, input_ids.to(device), target_ids.to(device))
            run.step = step
            run.recent.append(loss)
            run.recent[-1] = parallel.mean(loss)
        except RuntimeError:
            if count > 1 and rank == 0 and run.step:  # another process is gone; what this one has done is whole
                checkpoint.save(out, model, optimizer, run, identity)
            raise
        evaluate = step == steps or step % args.eval_every == 0
        look = evaluate or step % 10 == 0  # to look at a loss, or to ask the other processes, is to wait
        stop = bool(signals) if count == 1 else look and parallel.mean(torch.tensor(len(signals) * 1.0, device=device)) > 0
        if not (look or stop):
            continue

        run.tick()
        train_loss = torch.stack(run.recent).mean().item()
        tokens_per_second = len(run.recent) * args.batch_size * args.max_seq_len / run.interval
        status |= {"loss": f"{train_loss:.3f}", "rate": f"{rate:.1e}", "tokens/s": f"{tokens_per_second:,.0f}"}
        if not math.isfinite(train_loss):
            if good and rank == 0:
                model.load_state_dict(good)
                save(model, text, out)
            kept = "the last weights that were good are saved" if good else "nothing is saved"
            raise cli.UserError(f"the loss at step {step} is {train_loss}; {kept}; try a smaller --learning_rate")
        if evaluate and rank == 0:
            val_loss = held_out_loss(model, text, args, device, dtype)
            bits = val_loss / math.log(2) / text.chars_per_token
            status |= {"validation": f"{val_loss:.3f}", "bits/char": f"{bits:.3f}"}
            tokens = step * args.batch_size * args.max_seq_len
            run.rows.append([step, tokens, run.seconds, train_loss, val_loss, bits, rate, tokens_per_second])
            if not run.samples or step * SAMPLES // steps > run.samples[-1]["step"] * SAMPLES // steps:
                run.samples.append({"step": step, "text": continuation(model, text, PROMPTS[0], 20)})
            checkpoint.write_log(out, run)
            good = copy.deepcopy(model.state_dict())
        if evaluate:
            run.recent, run.interval = [], 0.0
        bar.set_postfix(status, refresh=False)
        if rank == 0 and step < steps and (stop or time.monotonic() - saved >= 60 * args.checkpoint_minutes):
            checkpoint.save(out, model, optimizer, run, identity)
            saved = time.monotonic()
        if stop:
            break
    if rank == 0:
        save(model, text, out)
    if run.step < steps:
        return (signals or ["a signal"])[0]
    if rank == 0:
        checkpoint.finish(out)
    return None


def check_batch(args, text: Text, count: int) -> None:
    """Raise UserError if there is too little text for a window, or for a batch that `count` processes share."""
    if len(text.train) <= args.max_seq_len:
        raise cli.UserError(
            f"the text has {len(text.train)} tokens to train on, too few for one window of max_seq_len={args.max_seq_len}: "
            "give it more text or a smaller --max_seq_len"
        )
    if count > 1 and len(TextDataset(text.train, args.max_seq_len)) <= args.batch_size:
        raise cli.UserError(f"the text is too short for {count} processes to share batches of --batch_size {args.batch_size}")


def main() -> None:
    args = cli.parse(cli.parser(__doc__))
    with parallel.together() as (rank, count):
        if args.batch_size % count:
            raise cli.UserError(f"--batch_size {args.batch_size} does not divide among {count} processes")
        out = Path(args.out_dir)
        out.mkdir(parents=True, exist_ok=True)
        lock = checkpoint.lock(out) if rank == 0 else None  # held for as long as this name lives
        began = time.monotonic()
        with parallel.one_first():
            text, name, epochs = load_text(args)
        check_batch(args, text, count)

        torch.manual_seed(args.seed)
        device, dtype = choose_device()
        vocab_size = text.tokenizer.get_vocab_size()  # a small text may not have pairs enough for args.vocab_size
        model = LLM(vocab_size, args.d_model, args.num_heads, args.num_layers, args.max_seq_len, args.dropout)
        describe(model)
        where = f"{device} in {count} processes" if count > 1 else device
        print(f"training: {epochs:g} epochs on {where}, matrix products in {str(dtype).removeprefix('torch.')}")
        ended = train(model.to(device), text, epochs, args, device, dtype, rank, count)

        print(f"{'ended early by ' + ended if ended else 'done'} after {(time.monotonic() - began) / 60:.1f} minutes")
        print(f"trained on {name}")
        print(f"saved {out / 'parameters.pt2'} and {out / 'bpe_tokenizer.json'}")
        where = "" if args.out_dir == params.out_dir else f" --out_dir {shlex.quote(args.out_dir)}"
        if ended:
            print("run again to go on from here")
        elif rank == 0:
            show_samples(model.eval(), text, args.seed)
        print(f'next: python generate.py "{PROMPTS[1]}"{where}')


def continuation(model: LLM, text: Text, prompt: str, most: int, temperature: float = 0.0, generator=None) -> str:
    """The prompt as the model goes on with it, to the end of the sentence or for `most` tokens; the likeliest, or drawn."""
    training = model.training
    eos = text.tokenizer.token_to_id(EOS)
    prompt, ids = encode_prompt(text.tokenizer, prompt)
    ids = torch.tensor([ids], device=model.embedding.weight.device)
    tokens = model.eval().generate(ids, temperature, top_k=50, generator=generator)
    sentence = itertools.takewhile(lambda token: token != eos, itertools.islice((t.item() for t in tokens), most))
    line = prompt + text.tokenizer.decode(list(sentence))
    model.train(training)
    return line


def show_samples(model: LLM, text: Text, seed: int) -> None:
    """Print a continuation of each of PROMPTS, to the end of the sentence."""
    generator = torch.Generator(model.embedding.weight.device).manual_seed(seed)
    for prompt in PROMPTS:
        print(f"  {continuation(model, text, prompt, 60, 0.5, generator)}")


if __name__ == "__main__":
    cli.run(main)
