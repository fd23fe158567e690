"""experiments/scaling.py: the fit on made losses, and the script as a person starts it, with tiny models."""

import itertools
import json
import subprocess

import matplotlib.image
import numpy as np
import pytest
from helpers import ARTICLES, call, write_articles

from experiments import scaling, scaling_law
from experiments.scaling import heads
from experiments.scaling_law import best_split, bounds, draw_laws, fit, loss_of
from llm import LLM

SCRIPT = "experiments.scaling"
TRUTH = np.array([2.4, 40.0, 0.28, 250.0, 0.38])  # E, A, a, B, b
SIZES = np.repeat([213e3, 533e3, 1.44e6, 2.73e6], 3)
TOKENS = np.tile([200e3, 800e3, 3.2e6], 4)
FULL_PASS = 2.73e6, 7.6e6  # parameters, tokens


def made_losses(noise: float, seed: int = 0) -> np.ndarray:
    errors = noise * np.random.default_rng(seed).standard_normal(len(SIZES))
    return loss_of(TRUTH, SIZES, TOKENS) * np.exp(errors)


def test_without_noise_the_constants_come_back():
    assert fit(SIZES, TOKENS, made_losses(0)) == pytest.approx(TRUTH, rel=0.02)


def test_a_law_without_a_floor(monkeypatch):
    """Losses that want E < 0: the law has E = 0; no exponents on a fine grid with best A and B are closer."""
    monkeypatch.setattr(scaling_law, "HUBER", np.inf)  # least squares
    losses = loss_of(np.array([-1.0, *TRUTH[1:]]), SIZES, TOKENS)
    law = fit(SIZES, TOKENS, losses)
    best = np.inf
    for a, b in itertools.product(np.geomspace(0.05, 2, 80), repeat=2):
        columns = np.stack([SIZES**-a, TOKENS**-b], axis=-1) / losses[:, None]
        A_and_B, *_ = np.linalg.lstsq(columns, np.ones(len(losses)), rcond=None)
        if (A_and_B > 0).all():
            best = min(best, ((columns @ A_and_B - 1) ** 2).sum())
    assert law[0] == 0 and ((loss_of(law, SIZES, TOKENS) / losses - 1) ** 2).sum() < 1.001 * best


def test_the_intervals_hold_the_truth(monkeypatch):
    monkeypatch.setattr(scaling_law, "DRAWS", 80)
    held, predicted, trials = np.zeros(5), 0, 10
    for trial in range(trials):
        losses = made_losses(0.003, trial)
        law = fit(SIZES, TOKENS, losses)
        laws, noise = draw_laws(law, SIZES, TOKENS, losses, seed=trial)
        low, high = np.percentile(laws, (2.5, 97.5), axis=1)
        held += (low <= TRUTH) & (TRUTH <= high)
        error = 0.003 * np.random.default_rng(100 + trial).standard_normal()
        new_run = loss_of(TRUTH, *FULL_PASS) * np.exp(error)
        interval = bounds(loss_of(laws, *FULL_PASS) * noise)
        predicted += interval["from"] <= new_run <= interval["to"]
        assert interval["to"] - interval["from"] < 0.5
    assert held.min() >= trials - 2 and predicted >= trials - 2


def test_an_unlucky_run_counts_little(monkeypatch):
    losses = made_losses(0.001)
    losses[9] *= 1.05  # as a short run has come out
    truth = loss_of(TRUTH, *FULL_PASS)
    robust = abs(loss_of(fit(SIZES, TOKENS, losses), *FULL_PASS) - truth)
    monkeypatch.setattr(scaling_law, "HUBER", np.inf)
    assert robust < 0.04 and robust < abs(loss_of(fit(SIZES, TOKENS, losses), *FULL_PASS) - truth) / 2


@pytest.mark.parametrize("p", [0.5, 1.0])
@pytest.mark.parametrize("seconds", [60, 3600])
def test_the_best_split_is_the_best_of_all(seconds, p):
    k = 1e-4 / 2.73e6**p  # 10,000 tokens a second at the default size
    sizes = np.geomspace(1e4, 1e9, 100_001)
    best = sizes[loss_of(TRUTH, sizes, seconds / (k * sizes**p)).argmin()]
    size, tokens = best_split(TRUTH, k, p, seconds)
    assert size == pytest.approx(best, rel=1e-3) and k * size**p * tokens == pytest.approx(seconds)
    if p == 1:  # Hoffmann et al. 2022, eq. 4, with 6 N D operations in seconds of 6 / k of them
        _, A, a, B, b = TRUTH
        G = (a * A / (b * B)) ** (1 / (a + b))
        assert size == pytest.approx(G * (seconds / k) ** (b / (a + b)))


def test_heads_are_even_and_at_most_64():
    for width in range(16, 1025, 16):
        size, rest = divmod(width, heads(width))
        assert rest == 0 and size % 2 == 0 and size <= 64
    assert [heads(width) for width in (32, 64, 128, 192)] == [1, 1, 2, 3]


def test_from_the_text_to_the_prediction(tmp_path, monkeypatch):
    text = write_articles(tmp_path / "text.jsonl", ARTICLES[:20])
    monkeypatch.setattr(scaling, "WIDTHS", (16, 48))
    monkeypatch.setattr(scaling, "SHARES", (1 / 4, 1 / 2, 1))
    monkeypatch.setattr(scaling_law, "DRAWS", 20)
    flags = "--d_model 32 --num_heads 1 --num_layers 1 --max_seq_len 16 --vocab_size 300".split()
    flags += ["--batch_size", 4, "--dataset", text, "--out_dir", tmp_path, "--tokens", 5120, "--epochs", 3]
    trained = []

    def train_here(command, **_):
        """What subprocess.run() does, without a new process. The fourth run is interrupted."""
        trained.append(command)
        if len(trained) == 4:
            raise KeyboardInterrupt
        done = call("train.py", *command[2:])
        return subprocess.CompletedProcess(command, done.code, done.out, done.err)

    monkeypatch.setattr(subprocess, "run", train_here)
    assert call(SCRIPT, *flags).code == 130 and not (tmp_path / "scaling.json").exists()
    done = call(SCRIPT, *flags)
    assert done.code == 0, done.err
    assert len(trained) == 7  # three, the one that was interrupted, it again, and two
    flags_of_runs = [dict(word.split("=") for word in command if word.count("=") == 1) for command in trained]
    assert {each["--warmup"] for each in flags_of_runs} == {"0.15"}

    result = json.loads((tmp_path / "scaling.json").read_text(encoding="utf-8"))
    runs, (prediction,) = result["runs"], result["prediction"]
    asked = [(width, tokens) for tokens in (1280, 2560, 5120) for width in (16, 48)]
    assert [run["d_model"] for run in runs] == [width for width, _ in asked]
    assert [run["tokens"] for run in runs] == pytest.approx([tokens for _, tokens in asked], abs=64)
    for path in (tmp_path / "scaling").glob("*/parameters.pt2"):
        model = LLM.load(path)
        counted = {run["parameters"] for run in runs if run["d_model"] == model.d_model}
        assert counted == {sum(parameter.numel() for parameter in model.parameters())}
    assert all(run["loss"] - run["law"] == pytest.approx(run["difference"]) for run in runs)
    assert [row["minutes"] for row in result["best"]] == [1, 5, 20, 60]
    assert prediction["d_model"] == 32 and prediction["tokens"] > 5120
    assert prediction["from"] < prediction["loss"] < prediction["to"]
    assert matplotlib.image.imread(tmp_path / "scaling.png").shape == (700, 1600, 4)
    assert "Prediction" in done.out and done.out.count("--epochs") == done.out.count("--epochs 1 ") == 1

    assert call(SCRIPT, *flags).out == done.out and len(trained) == 7  # nothing is trained again
    again = call(SCRIPT, *flags, "--tokens", 10**9)
    assert again.code == 2 and "or --tokens" in again.err and len(trained) == 7
    again = call(SCRIPT, *flags, "--tokens", 100)
    assert again.code == 2 and "--tokens 100 is too few" in again.err and len(trained) == 7
