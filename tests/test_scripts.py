"""train.py and generate.py as a person starts them, on a part of the bundled sample."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

import articles
import cli
import dataset
import params
from llm import LLM

ROOT = Path(__file__).parent.parent
SMALL = "--d_model 64 --num_heads 2 --num_layers 2 --max_seq_len 64 --vocab_size 600 --batch_size 8 --eval_every 50".split()


def start(*arguments, **env) -> subprocess.Popen:
    env = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", **env}  # no hub
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def run(*arguments, **env) -> tuple[int, str, str]:
    process = start(*arguments, **env)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a small real text and the model that train.py made of it."""
    folder = tmp_path_factory.mktemp("trained")
    lines = articles.SAMPLE.read_text(encoding="utf-8").splitlines()[:100]
    (folder / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    code, out, err = run("train.py", "--dataset", folder / "text.jsonl", "--out_dir", folder, "--epochs", 4, *SMALL)
    assert code == 0, err
    for word in ("tokenizer", "tokens to train on", "parameters", "embedding", "attention", "MLP", "epochs on", "generate.py"):
        assert word in out
    for word in ("epoch 1/4", "epoch 4/4", "loss=", "validation=", "rate=", "tokens/s="):
        assert word in err  # the progress bars
    return folder


def test_it_learns_more_than_how_frequent_tokens_are(trained):
    rows = list(csv.DictReader(open(trained / "training_log.csv")))
    assert list(rows[0]) == "step tokens seconds train_loss val_loss bits_per_char learning_rate tokens_per_second".split()
    assert [int(row["step"]) for row in rows[:2]] == [50, 100] and int(rows[-1]["tokens"]) == int(rows[-1]["step"]) * 8 * 64

    text = next(path for path in (trained / "cache").iterdir())
    train, val = (
        torch.frombuffer(bytearray((text / f"{part}.bin").read_bytes()), dtype=torch.uint16).tolist()
        for part in ("train", "val")
    )
    counts, unknown = Counter(train), 0.5
    of_frequencies = -sum(math.log((counts[i] or unknown) / len(train)) for i in val) / len(val)
    assert float(rows[-1]["val_loss"]) < of_frequencies - 0.3

    model, tokenizer = LLM.load(trained / "parameters.pt2"), Tokenizer.from_file(str(trained / "bpe_tokenizer.json"))
    assert (model.vocab_size, model.d_model, model.num_layers, model.max_seq_len) == (600, 64, 2, 64)
    with torch.no_grad():  # the loss in the log is that of the model on disk
        windows = dataset.TextDataset(val, 64)
        inputs, targets = (torch.stack(part) for part in zip(*(windows[i] for i in range(len(windows)))))
        loss = torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).item()
    assert loss == pytest.approx(float(rows[-1]["val_loss"]), abs=0.01)
    chars = sum(
        len(json.loads(line)["sample"]) for line in (trained / "text.jsonl").read_text(encoding="utf-8").splitlines()[-2:]
    )
    assert float(rows[-1]["bits_per_char"]) == pytest.approx(
        float(rows[-1]["val_loss"]) / math.log(2) * len(val) / chars, rel=1e-4
    )
    assert tokenizer.get_vocab_size() == 600


def test_a_prompt_is_continued(trained):
    ask = ["generate.py", "--out_dir", trained]
    code, out, err = run(*ask, "Волга впадает в", "--max_new_tokens", 30)
    assert code == 0 and out.startswith("Волга впадает в ") and len(out) > 30, err
    assert run(*ask, "Волга впадает в", "--max_new_tokens", 30)[1] == out  # the seed decides
    assert run(*ask, "Волга впадает в", "--max_new_tokens", 30, "--seed", 7)[1] != out
    assert "d_model=64" in err and "num_layers=2" in err  # and params.py another: said, and the file's is used

    code, out, _ = run(*ask, "Река", "--temperature", 0, "--max_new_tokens", 150)  # past the window of 64
    model, tokenizer = LLM.load(trained / "parameters.pt2"), dataset.load_tokenizer(trained / "bpe_tokenizer.json")
    ids = [tokenizer.token_to_id("<EOS>"), *tokenizer.encode("Река").ids]
    for _ in range(60 - len(ids)):
        ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
    assert out.startswith(tokenizer.decode(ids).rstrip())

    code, out, _ = run(*ask, "Река", "--num_samples", 3, "--sentences", 1)
    samples = [sample for sample in out.split("\n\n") if sample.strip()]
    assert code == 0 and len(samples) >= 3 and len(set(samples)) > 1

    for prompt in ("", "🙂 שלום <EOS>\t", "слово " * 500, "Он ушёл."):
        code, out, err = run(*ask, prompt, "--max_new_tokens", 5)
        assert code == 0 and out.startswith(prompt.rstrip()), err


def test_what_a_person_gets_wrong_is_one_line_and_exit_code_2(trained, tmp_path):
    (tmp_path / "columns.jsonl").write_text('{"text": "Раз. Два."}\n')
    (tmp_path / "empty.jsonl").write_text('{"sample": ""}\n')
    (tmp_path / "short.jsonl").write_text('{"sample": "Раз."}\n{"sample": "Два."}\n')
    (tmp_path / "parameters.pt2").write_bytes(b"broken")
    for script, arguments, message in [
        ("train.py", "--d_modl 8", "--d_modl"),
        ("train.py", "--d_model eight", "--d_model: invalid int value: 'eight'"),
        ("train.py", "--d_model 30 --num_heads 4", "--d_model 30 must divide into --num_heads 4"),
        ("train.py", "--learning_rate nan", "--learning_rate must be above 0"),
        ("train.py", f"--dataset {tmp_path}/none.jsonl", "no such file"),
        ("train.py", f"--dataset {tmp_path}/columns.jsonl", "no column 'sample', only text"),
        ("train.py", f"--dataset {tmp_path}/empty.jsonl", "empty"),
        ("train.py", f"--dataset {tmp_path}/short.jsonl", "too few for one window"),
        ("generate.py", f"да --out_dir {tmp_path}/none", "train.py"),
        ("generate.py", f"да --out_dir {tmp_path}", "parameters.pt2 does not hold"),
        ("generate.py", f"да --out_dir {trained} --temperature -1", "--temperature must be 0 or above"),
    ]:
        code, _, err = run(script, "--out_dir", tmp_path, *arguments.split())
        last = err.splitlines()[-1]
        assert code == 2 and message in last and last.startswith(script) and "Traceback" not in err, err
    assert (tmp_path / "parameters.pt2").read_bytes() == b"broken"  # nothing is lost


def test_a_signal_ends_training_with_the_weights_saved(trained, tmp_path):
    process = start("train.py", "--dataset", trained / "text.jsonl", "--out_dir", tmp_path, "--epochs", 900, *SMALL)
    err = ""
    while "tokens/s=" not in err:  # it is training
        err += process.stderr.read(100)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "SIGINT" in out and "saved" in out
    assert run("generate.py", "Волга", "--out_dir", tmp_path, "--max_new_tokens", 5)[0] == 0


def test_without_a_hub_the_bundled_sample_trains(tmp_path):
    code, out, err = run("train.py", "--out_dir", tmp_path, "--epochs", 0.02, *SMALL, HF_HOME=str(tmp_path))
    assert code == 0, err
    assert "cannot be reached" in out and "trained on the bundled sample" in out.split("training:")[1]


def test_a_loss_that_is_not_finite_stops_it(trained, tmp_path):
    rate = ["--learning_rate", 1e30, "--grad_clip", 1e30, "--warmup", 0]
    code, _, err = run("train.py", "--dataset", trained / "text.jsonl", "--out_dir", tmp_path, *SMALL, *rate)
    assert code == 2 and "loss" in err.splitlines()[-1] and "--learning_rate" in err.splitlines()[-1]
    assert not (tmp_path / "parameters.pt2").exists()


def test_the_flags_are_params_py(capsys):
    defaults = {name: value for name, value in vars(params).items() if not name.startswith("__")}
    with pytest.raises(SystemExit):
        cli.parser("").parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    parsed = vars(cli.parser("").parse_args([]))
    assert parsed == defaults
    assert all(f"--{name} " in text for name in defaults)
    assert "numbers in the vector that stands for a token" in text  # a comment of params.py


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), cli.replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    with cli.replacing(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
