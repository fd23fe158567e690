"""train.py as a person starts it, on a part of the bundled encyclopedia."""

import copy
import csv
import json
import math
import signal
from argparse import Namespace
from collections import Counter

import pytest
import torch
from helpers import ARTICLES, SMALL, call, run, start, wait_for, write_articles
from tokenizers import Tokenizer

import params
import train
from dataset import TextDataset
from llm import LLM
from support.loss import TrainingLoss


def test_it_learns_more_than_how_frequent_tokens_are(trained):
    rows = list(csv.DictReader(open(trained / "training_log.csv")))
    columns = "step tokens seconds train_loss val_loss bits_per_char learning_rate tokens_per_second"
    assert list(rows[0]) == columns.split()
    assert [int(row["step"]) for row in rows[:2]] == [50, 100]
    assert int(rows[-1]["tokens"]) == int(rows[-1]["step"]) * 8 * 64

    trained_on = torch.load(trained / "parameters.pt2", weights_only=True)["_extra_state"]
    text = trained / "cache" / trained_on["text"]  # other tests may have left other texts there
    train_ids, val = (
        torch.frombuffer(bytearray((text / f"{part}.bin").read_bytes()), dtype=torch.uint16).tolist()
        for part in ("train", "val")
    )
    counts, unknown = Counter(train_ids), 0.5
    of_frequencies = -sum(math.log((counts[i] or unknown) / len(train_ids)) for i in val) / len(val)
    assert float(rows[-1]["val_loss"]) < of_frequencies - 0.3

    model = LLM.load(trained / "parameters.pt2")
    tokenizer = Tokenizer.from_file(str(trained / "bpe_tokenizer.json"))
    assert (model.vocab_size, model.d_model, model.num_layers, model.max_seq_len) == (600, 64, 2, 64)
    with torch.no_grad():  # the loss in the log is that of the model on disk
        windows = TextDataset(val, 64)
        inputs, targets = (torch.stack(part) for part in zip(*(windows[i] for i in range(len(windows)))))
        loss = torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).item()
    assert loss == pytest.approx(float(rows[-1]["val_loss"]), abs=0.01)
    lines = (trained / "text.jsonl").read_text(encoding="utf-8").splitlines()
    chars = sum(len(json.loads(line)["sample"]) for line in lines[-2:])
    assert float(rows[-1]["bits_per_char"]) == pytest.approx(
        float(rows[-1]["val_loss"]) / math.log(2) * len(val) / chars, rel=1e-4
    )
    assert tokenizer.get_vocab_size() == 600


def test_a_signal_ends_training_with_the_weights_saved(trained, tmp_path):
    text = trained / "text.jsonl"
    process = start("train.py", "--dataset", text, "--out_dir", tmp_path, "--epochs", 900, *SMALL)
    wait_for(process, "tokens/s=")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "SIGINT" in out and "saved" in out
    assert call("generate.py", "Волга", "--out_dir", tmp_path, "--max_new_tokens", 5).code == 0


def test_output_that_nobody_reads_any_more_loses_no_training(trained, tmp_path):
    """As where Ctrl-C ends  python train.py 2>&1 | tee log:  tee goes first."""
    flags = ["--dataset", trained / "text.jsonl", "--out_dir", tmp_path, "--epochs", 900, *SMALL]
    process = start("train.py", *flags)
    wait_for(process, "tokens/s=")
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    assert (tmp_path / "parameters.pt2").exists() and (tmp_path / "checkpoint.pt").exists()


def test_without_a_hub_the_bundled_encyclopedia_trains(tmp_path):
    code, out, err = run("train.py", "--out_dir", tmp_path, "--epochs", 0.02, *SMALL)
    assert code == 0, err
    assert "cannot be reached" in out and "trained on the bundled encyclopedia" in out.split("training:")[1]
    assert "0.02 epochs" in out


def test_epochs_that_are_asked_for_are_not_replaced_by_those_of_the_bundled_text(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(train, "train", lambda model, corpus, epochs, *_: asked.append(epochs) or "nothing")
    call("train.py", "--out_dir", tmp_path, *SMALL)
    call("train.py", "--out_dir", tmp_path, *SMALL, "--epochs", params.epochs)
    assert asked == [params.sample_epochs, params.epochs]


def test_a_mistyped_path_does_not_train_on_the_bundled_text(tmp_path):
    code, _, err = call("train.py", "--out_dir", tmp_path, "--dataset", "texts/mine", *SMALL)
    assert code == 2 and "texts/mine: there is no such file or folder here, and the Hugging Face hub" in err


def test_a_loss_that_is_not_finite_stops_it(trained, tmp_path):
    rate = ["--learning_rate", 1e30, "--grad_clip", 1e30, "--warmup", 0]
    flags = ["--dataset", trained / "text.jsonl", "--out_dir", tmp_path, *SMALL, *rate]
    code, _, err = call("train.py", *flags)
    assert code == 2 and "loss" in err.splitlines()[-1] and "--learning_rate" in err.splitlines()[-1]
    assert not (tmp_path / "parameters.pt2").exists()
    code, _, err = call("train.py", *flags, "--eval_every", 1)  # weights are looked at before they are kept
    assert code == 2 and "is nan" in err.splitlines()[-1]
    LLM.load(tmp_path / "parameters.pt2")  # of step 1: it refuses weights that are not finite


def test_what_a_run_prints(trained):
    printed = (trained / "printed.txt").read_text(encoding="utf-8")
    progress = (trained / "progress.txt").read_text(encoding="utf-8")
    words = ["tokenizer", "tokens to train on", "parameters", "embedding", "attention", "MLP"]
    for word in [*words, "epochs on", "generate.py"]:
        assert word in printed
    for word in ("epoch 1/4", "epoch 4/4", "loss=", "validation=", "tokens/s=", "left="):
        assert word in progress


def test_a_finished_model_is_kept_when_a_new_run_begins(tmp_path):
    write_articles(tmp_path / "text.jsonl", ARTICLES[:30])
    out = tmp_path / "out"
    flags = ["--dataset", tmp_path / "text.jsonl", "--out_dir", out, *SMALL]

    def weights(folder):
        return (folder / "parameters.pt2").read_bytes()

    assert call("train.py", *flags, "--epochs", 0.1).code == 0
    (out / "evaluation.json").write_text("{}")
    first = weights(out)
    diverging = ["--learning_rate", 1e30, "--grad_clip", 1e30, "--warmup", 0, "--eval_every", 1]
    broken = call("train.py", *flags, "--epochs", 0.1, *diverging)
    assert broken.code == 2 and "is kept in" in broken.out and weights(out / "previous") == first
    kept = {path.name for path in (out / "previous").iterdir()}
    assert {"parameters.pt2", "bpe_tokenizer.json", "training_log.csv", "evaluation.json"} <= kept
    assert call("generate.py", "Волга", "--out_dir", out / "previous", "--max_new_tokens", 3).code == 0

    # an unfinished run does not displace what is kept, a finished one does
    assert "finite are saved" in broken.err and weights(out) != first
    assert call("train.py", *flags, "--epochs", 0.2).code == 0
    assert weights(out / "previous") == first
    second = weights(out)
    assert call("train.py", *flags, "--epochs", 0.1).code == 0
    assert weights(out / "previous") == second


def test_tokens_count_what_was_read_where_a_text_is_shorter_than_a_batch(tmp_path):
    write_articles(tmp_path / "text.jsonl", ARTICLES[:6])
    flags = ["--dataset", tmp_path / "text.jsonl", "--out_dir", tmp_path]
    flags += [*SMALL, "--batch_size", 500, "--epochs", 3]
    assert call("train.py", *flags).code == 0
    num_tokens = LLM.load(tmp_path / "parameters.pt2").max_seq_len * num_windows(tmp_path)
    row = list(csv.DictReader(open(tmp_path / "training_log.csv")))[-1]
    assert int(row["step"]) == 3 and 2 * num_tokens < int(row["tokens"]) <= 3 * num_tokens < 3 * 500 * 64


# A run of one step loses no more than one of 100
@pytest.mark.parametrize(
    "epochs, steps, decay, share", [(1, 200, 100.0, 0.5), (4, 200, 50.0, 0.5), (1, 1, 50.0, 0.5)]
)
def test_a_first_step_is_adam_s_with_decay_and_the_embedding_has_its_own_rate(epochs, steps, decay, share):
    """The first step of Adam is as long as the rate, against the gradient.

    Before it, each weight loses a share: weight_decay * sqrt(epochs) / steps at the peak of the rate,
    less where the rate is smaller.
    """
    torch.manual_seed(0)
    model = LLM(40, 16, 2, 1, 8)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # so that every gradient differs from 0
    ids = torch.randint(40, (4, 9))
    loss_of = TrainingLoss(model, torch.float32)
    loss_of(ids[:, :-1], ids[:, 1:]).backward()
    before = copy.deepcopy({name: (each.detach(), each.grad) for name, each in model.named_parameters()})
    model.zero_grad()

    args = Namespace(embedding_rate=3.0, weight_decay=decay, learning_rate=0.1)
    args.adam_beta1, args.adam_beta2 = 0.8, 0.995
    optimizer = train.make_optimizer(model, epochs, steps, args)
    train.training_step(loss_of, model, optimizer, 0.01, 1e9, ids[:, :-1], ids[:, 1:])
    for name, after in model.named_parameters():
        weight, gradient = before[name]
        rate = 0.03 if name == "embedding.weight" else 0.01
        expected = weight * (1 - share * 0.01 / 0.1) - rate * gradient.sign()
        clear = gradient.abs() > 1e-5  # beside Adam's eps
        assert clear.sum() > 0.5 * clear.numel()
        assert torch.allclose(after[clear], expected[clear], atol=1e-4), name


def num_windows(folder) -> int:
    """Of the text that was trained on."""
    train_ids = next((folder / "cache").glob("*/train.bin"))
    return (train_ids.stat().st_size // 2 - 1) // 64
