"""Train the model of params.py on its text:  python train.py  (--help lists the flags, one for each line of params.py)

Says what it does, step by step, and leaves in out_dir the tokenizer (bpe_tokenizer.json), the weights (parameters.pt2)
and the curve (training_log.csv). Ctrl-C ends it early, with what it has learned saved.
"""

import copy
import csv
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

import cli
import params
from dataset import EOS, SAMPLE, Text, TextDataset, encode_prompt, load_articles, prepare
from llm import LLM

PROMPTS = ("Столицей Франции является", "Волга впадает в", "В начале XX века")  # continued at the end
COMPILE_FROM = 1000  # steps
LOG = "step tokens seconds train_loss val_loss bits_per_char learning_rate tokens_per_second".split()


def choose_device() -> tuple[torch.device, torch.dtype]:
    """Where to train, and the precision of the matrix products: bf16 where the hardware has it, else float32."""
    if torch.cuda.is_available():
        return torch.device("cuda"), torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float32
    if torch.backends.mps.is_available():
        return torch.device("mps"), torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.device("cpu"), torch.bfloat16 if native else torch.float32


def load_text(args) -> tuple[Text, str, float]:
    """The text that args ask for, made ready; its name; and the epochs to train on it. The sample if the hub is out of reach."""
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


def maybe_compiled(loss, steps: int, device: torch.device):
    """loss, through torch.compile if there is a compiler and the run is long enough to win back the time it takes."""
    compiler = device.type == "cuda" or device.type == "cpu" and any(map(shutil.which, ("c++", "g++", "clang++")))
    if not compiler or steps < COMPILE_FROM:
        return loss
    print("  compiling the model, which takes up to a minute the first time")
    return torch.compile(loss, dynamic=False)


def save(model: LLM, text: Text, out: Path) -> None:
    """Write the weights and the tokenizer that belongs to them."""
    with cli.replacing(out / "bpe_tokenizer.json") as temporary:
        text.tokenizer.save(str(temporary))
    with cli.replacing(out / "parameters.pt2") as temporary:
        torch.save({name: w.cpu() if torch.is_tensor(w) else w for name, w in model.state_dict().items()}, temporary)


def catch_signals() -> list[str]:
    """From now on Ctrl-C and SIGTERM do not end the program; their names come to stand in this list."""
    came = []

    def note(number, frame):
        came.append(signal.Signals(number).name)
        tqdm.write(f"{came[-1]}: this step is the last one")

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


def batches(tokens: np.ndarray, steps: int, args) -> Iterator[tuple[tqdm, torch.Tensor, torch.Tensor]]:
    """So many batches: (progress bar of the epoch, input_ids, target_ids), the tensors (batch_size, max_seq_len).

    What an epoch holds follows from the seed and its number: it cuts the text into windows at places of its own, lest
    the model learn a small text as so many windows by heart, and takes them in an order of its own.
    """
    per_epoch = steps_in_epoch(tokens, args.max_seq_len, args.batch_size)
    num_epochs = math.ceil(steps / per_epoch)
    for epoch in range(num_epochs):
        random = np.random.default_rng((args.seed, epoch))
        first = random.integers(args.max_seq_len) if epoch and len(tokens) > 2 * args.max_seq_len else 0
        windows = TextDataset(tokens, args.max_seq_len, first)
        order = random.permutation(len(windows))[: min(per_epoch, steps - epoch * per_epoch) * args.batch_size]
        loader = DataLoader(windows, args.batch_size, sampler=order.tolist())
        with tqdm(loader, f"epoch {epoch + 1}/{num_epochs}", unit=" batches", dynamic_ncols=True) as bar:
            for input_ids, target_ids in bar:
                yield bar, input_ids, target_ids


def train(model: LLM, text: Text, epochs: float, args, device: torch.device, dtype: torch.dtype) -> str | None:
    """Train for so many epochs and save the weights, writing training_log.csv on the way.

    Returns the name of the signal that ended it early, if one did. Raises UserError if the loss is no longer finite.
    """
    held_out = TextDataset(text.val, min(args.max_seq_len, len(text.val) - 1))
    if len(text.train) <= args.max_seq_len:
        raise cli.UserError(
            f"the text has {len(text.train)} tokens to train on, too few for one window of max_seq_len={args.max_seq_len}: "
            "give it more text or a smaller --max_seq_len"
        )
    steps = max(1, round(epochs * steps_in_epoch(text.train, args.max_seq_len, args.batch_size)))
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, args.adam_beta2), fused=True)
    eager_loss = loss_function(model, device, dtype)
    loss_of = maybe_compiled(eager_loss, steps, device)
    signals = catch_signals()

    out, recent, good, status = Path(args.out_dir), [], None, {}
    start = since = time.monotonic()
    with open(out / "training_log.csv", "w", newline="") as file:
        log = csv.writer(file)
        log.writerow(LOG)
        for step, (bar, input_ids, target_ids) in enumerate(batches(text.train, steps, args), 1):
            rate = learning_rate_at(step, steps, args)
            input_ids, target_ids = input_ids.to(device), target_ids.to(device)
            recent.append(training_step(loss_of, model, optimizer, rate, args.grad_clip, input_ids, target_ids))
            last = step == steps or bool(signals)
            evaluate = last or step % args.eval_every == 0
            if not evaluate and step % 10:
                continue  # to look at a loss is to wait for the device

            train_loss = torch.stack(recent).mean().item()
            tokens_per_second = len(recent) * input_ids.numel() / (time.monotonic() - since)
            status |= {"loss": f"{train_loss:.3f}", "rate": f"{rate:.1e}", "tokens/s": f"{tokens_per_second:,.0f}"}
            if not math.isfinite(train_loss):
                if good:
                    model.load_state_dict(good)
                    save(model, text, out)
                saved = "the weights of the last validation are saved" if good else "nothing is saved"
                raise cli.UserError(f"the loss at step {step} is {train_loss}; {saved}; try a smaller --learning_rate")
            if evaluate:
                val_loss = validation_loss(eager_loss, model, held_out, args.batch_size, args.eval_windows, device)
                bits = val_loss / math.log(2) / text.chars_per_token
                status |= {"validation": f"{val_loss:.3f}", "bits/char": f"{bits:.3f}"}
                seconds = time.monotonic() - start
                row = (step, step * input_ids.numel(), seconds, train_loss, val_loss, bits, rate, tokens_per_second)
                log.writerow(f"{value:.6g}" if isinstance(value, float) else value for value in row)
                file.flush()
                good = copy.deepcopy(model.state_dict())
                recent, since = [], time.monotonic()
            bar.set_postfix(status, refresh=False)
            if signals:
                break
    save(model, text, out)
    return signals[0] if signals else None


def main() -> None:
    args = cli.parse(cli.parser(__doc__))
    out = Path(args.out_dir)
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    text, name, epochs = load_text(args)

    torch.manual_seed(args.seed)
    device, dtype = choose_device()
    vocab_size = text.tokenizer.get_vocab_size()  # a small text may not have pairs enough for args.vocab_size
    model = LLM(vocab_size, args.d_model, args.num_heads, args.num_layers, args.max_seq_len, args.dropout)
    describe(model)
    print(f"training: {epochs:g} epochs on {device}, matrix products in {str(dtype).removeprefix('torch.')}")
    ended = train(model.to(device), text, epochs, args, device, dtype)

    print(f"{'ended early by ' + ended if ended else 'done'} after {(time.monotonic() - began) / 60:.1f} minutes")
    print(f"trained on {name}")
    print(f"saved {out / 'parameters.pt2'} and {out / 'bpe_tokenizer.json'}")
    if not ended:
        show_samples(model.eval(), text, args.seed)
    where = "" if args.out_dir == params.out_dir else f" --out_dir {shlex.quote(args.out_dir)}"
    print(f'next: python generate.py "{PROMPTS[1]}"{where}')


def show_samples(model: LLM, text: Text, seed: int) -> None:
    """Print a continuation of each of PROMPTS, to the end of the sentence."""
    generator = torch.Generator(model.embedding.weight.device).manual_seed(seed)
    eos = text.tokenizer.token_to_id(EOS)
    for prompt in PROMPTS:
        prompt, ids = encode_prompt(text.tokenizer, prompt)
        tokens = model.generate(torch.tensor([ids], device=generator.device), 0.5, top_k=50, generator=generator)
        sentence = itertools.takewhile(lambda token: token != eos, itertools.islice((t.item() for t in tokens), 60))
        print(f"  {prompt}{text.tokenizer.decode(list(sentence))}")


if __name__ == "__main__":
    cli.run(main)
