"""The measurements against separate computations: plain loops, the model itself, attention built by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import write_log
from small_models import HEADS, LAYERS, VOCAB, T, random_tokens, small_model, trace, without_head

from corpus.tokenizer import train_tokenizer
from interpretability import measurements
from llm import LLM
from support.cli import UserError
from support.training_log import read_log, read_samples


@pytest.fixture(scope="module")
def model() -> LLM:
    return small_model()


@pytest.fixture(scope="module")
def text() -> np.ndarray:
    """Tokens that repeat often enough for every score to have something to count."""
    return random_tokens(0, 200, vocab_size=8)


def mean_losses(model: LLM, windows: list[np.ndarray]) -> list[float]:
    """The mean loss at each place of the windows, token by token."""
    total = [0.0] * (len(windows[0]) - 1)
    for window in windows:
        ids = torch.tensor(window.astype(np.int64))
        for t in range(len(total)):
            logits = model(ids[None, : t + 1])[0, -1].tolist()
            total[t] += math.log(sum(math.exp(a) for a in logits)) - logits[ids[t + 1]]
    return [a / len(windows) for a in total]


@pytest.mark.parametrize(
    "length, most, overlap", [(200, 60, True), (200, 60, False), (20, 1000, True), (20, 1000, False)]
)
def test_windows_are_pieces_of_the_text(length, most, overlap):
    tokens = np.arange(length, dtype=np.uint16)
    windows = measurements.even_windows(tokens, T, most, overlap)
    starts = windows[:, 0].tolist()
    assert windows.tolist() == [list(range(s, s + T + 1)) for s in starts]
    assert len(set(starts)) == len(starts) == min(most // T, length - T if overlap else (length - 1) // T)
    assert starts[0] == 0 and (len(starts) == 1 or starts[-1] == length - T - 1)
    if not overlap:
        assert all(b - a >= T for a, b in zip(starts, starts[1:]))


def test_a_text_shorter_than_the_window(model):
    assert measurements.even_windows(np.arange(5), T, 100, True).tolist() == [[0, 1, 2, 3, 4]]
    assert len(measurements.loss_by_position(model, np.array([1, 2]))) == 1
    with pytest.raises(ValueError):
        measurements.loss_by_position(model, np.array([1]))


def test_loss_by_position_against_a_plain_loop(model, text):
    short = text[: T + 20]
    expected = mean_losses(model, [short[s : s + T + 1] for s in range(20)])  # all the windows that there are
    assert measurements.loss_by_position(model, short) == pytest.approx(expected, abs=1e-6)


def test_ablation_losses_against_a_model_without_the_head(model, text):
    short = text[: T + 5]
    pieces = [short[s : s + T + 1] for s in range(5)]
    base = sum(mean_losses(model, pieces)) / T
    found = measurements.ablation_losses(model, short)
    for layer in range(LAYERS):
        for head in range(HEADS):
            rise = sum(mean_losses(without_head(model, layer, head), pieces)) / T - base
            assert abs(rise) > 1e-4
            assert found[layer][head] == pytest.approx(rise, abs=1e-6)


def plain_scores(weights, ids, eos) -> dict[str, float]:
    """The scores of one head by their definitions, for weights [window][query][key] and ids [window][key]."""
    looks = {name: [] for name in measurements.SCORE_DEFINITIONS}
    fair = []
    for w, x in zip(weights, ids):
        for t, row in enumerate(w):
            if t > 0:
                looks["previous token"].append(row[t - 1])
                looks["first token"].append(row[0])
            ends = [s for s in range(t + 1) if x[s] == eos]
            if ends:
                looks["sentence end"].append(sum(row[s] for s in ends))
                fair.append(len(ends) / (t + 1))
            before = [s for s in range(t) if x[s] == x[t]]
            if before:
                looks["same token"].append(sum(row[s] for s in before))
            if any(s + 1 < t for s in before):
                looks["induction"].append(sum(row[s + 1] for s in before if s + 1 < t))
            looks["spread"].append(2 ** -sum(a * math.log2(a) for a in row if a > 0))
    scores = {name: sum(values) / len(values) for name, values in looks.items()}
    scores["sentence end"] /= sum(fair) / len(fair)
    return scores


def test_head_scores_against_plain_loops(model, text):
    short, eos = text[: T + 6], int(text[4])
    pieces = [torch.tensor(short[s : s + T].astype(np.int64)) for s in range(6)]
    found = measurements.head_scores(model, short, eos=eos)
    traces = [trace(model, ids[None]).layers for ids in pieces]
    ids = [piece.tolist() for piece in pieces]
    for layer in range(LAYERS):
        for head in range(HEADS):
            weights = [layers[layer].weights[0, head].tolist() for layers in traces]
            expected = plain_scores(weights, ids, eos=eos)
            values = {name: score["values"][layer][head] for name, score in found.items()}
            assert values == pytest.approx(expected, abs=1e-6)
    equal = [[[1 / (t + 1)] * (t + 1) + [0] * (T - t - 1) for t in range(T)]] * len(ids)
    expected = plain_scores(equal, ids, eos=eos)
    assert {name: score["uniform"] for name, score in found.items()} == pytest.approx(expected, abs=1e-6)
    assert expected["sentence end"] == pytest.approx(1)
    assert all(score["definition"] for score in found.values())


#                         0  1  2  3  4  5  6  7
IDS = torch.tensor([[5, 6, 0, 7, 5, 6, 8, 5]])  # 0 is <EOS>


@pytest.mark.parametrize(
    "name, looks_at, score",
    [
        ("previous token", [0, 0, 1, 2, 3, 4, 5, 6], 1),
        ("first token", [0] * 8, 1),
        ("same token", [0, 1, 2, 3, 0, 1, 6, 4], 1),
        ("same token", [0, 1, 2, 3, 4, 5, 6, 6], 0),
        ("induction", [0, 1, 2, 3, 1, 2, 6, 5], 1),
        ("induction", [0, 1, 2, 3, 1, 3, 6, 4], 1 / 3),
        ("sentence end", [0, 1, 2, 2, 2, 2, 2, 2], 1 / np.mean([1 / 3, 1 / 4, 1 / 5, 1 / 6, 1 / 7, 1 / 8])),
        ("spread", [0, 0, 1, 2, 3, 4, 5, 6], 1),
    ],
)
def test_the_score_of_a_head_that_always_looks_there(name, looks_at, score):
    weights = F.one_hot(torch.tensor(looks_at), 8).double()[None, None]
    assert measurements.score_weights(weights, IDS, eos=0)[name].tolist() == pytest.approx([score], abs=1e-6)


def test_a_model_built_to_look_at_the_previous_token():
    """All tokens share one query and key, turned by rotary positions so as to match one position apart."""
    model = LLM(VOCAB, d_model=8, num_heads=1, num_layers=1, max_seq_len=8).double().eval()
    with torch.no_grad():
        model.embedding.weight[:, 0] = 100  # the same for all tokens; so much that the norm leaves only it
        qkv = model.blocks[0].attention.qkv_proj.weight.zero_()
        angles = 10000.0 ** (-torch.arange(0, 8, 2).double() / 8)
        qkv[0:4, 0], qkv[4:8, 0] = angles.cos(), -angles.sin()  # the query turned back by one place
        qkv[8:12, 0] = 1
        model.blocks[0].attention.q_norm.weight.mul_(100)  # sharp
    scores = measurements.head_scores(model, np.arange(9), eos=3)
    assert scores["previous token"]["values"][0][0] == pytest.approx(1, abs=1e-2)
    assert scores["spread"]["values"][0][0] == pytest.approx(1, abs=5e-2)


def test_scores_where_there_is_nothing_to_count():
    weights = torch.ones(1, 1, 1, 1)
    scores = measurements.score_weights(weights, torch.tensor([[4]]), eos=0)
    assert scores.pop("spread").item() == 1
    assert all(score.item() == 0 for score in scores.values())


@pytest.mark.parametrize("length", [200, T + 1])
def test_neuron_contexts_against_brute_force(model, text, length, monkeypatch):
    monkeypatch.setattr(measurements, "BATCH_TOKENS", 30)  # several batches
    tokens = random_tokens(1, length, VOCAB)
    contexts, values = measurements.neuron_contexts(model, tokens, count=3, tokens_before=4)
    hidden = model.blocks[0].mlp.down_proj.in_features
    assert contexts.shape == (LAYERS, hidden, 3, 5)
    assert values.shape == (LAYERS, hidden, 3)
    # (context, activations (LAYERS, hidden)) of every place with four tokens before it in its window
    places = []
    for window in measurements.even_windows(tokens, T, 60_000, overlap=False)[:, :-1]:
        layers = trace(model, window[None]).layers
        activations = torch.stack([layer.activations[0] for layer in layers])  # (LAYERS, T, hidden)
        places += [(window[t - 4 : t + 1].tolist(), activations[:, t]) for t in range(4, T)]
    every = torch.stack([activations for _, activations in places]).numpy()
    for layer in range(LAYERS):
        for neuron in range(hidden):
            order = sorted(range(len(places)), key=lambda i: -abs(every[i, layer, neuron]))[:3]
            assert values[layer, neuron] == pytest.approx(every[order, layer, neuron], rel=1e-5)
            assert contexts[layer, neuron].tolist() == [places[i][0] for i in order]


# What the page gets


def test_measure_gives_all_that_the_page_shows(tmp_path):
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["Мама мыла раму. Папа читал газету. " * 20], 300)
    model = LLM(tokenizer.get_vocab_size(), 16, HEADS, LAYERS, T).eval()
    tokens = random_tokens(0, 300, model.vocab_size)
    write_log(tmp_path, step=[10, 20], val_loss=[5.5, 4.5])
    sample = '{"step": 10, "text": "да\u2028нет"}\n'
    (tmp_path / "training_samples.jsonl").write_text(sample, encoding="utf-8")
    found = measurements.measure(model, tokenizer, tokens, tokens[:60], tmp_path)
    assert len(found["position_loss"]) == T
    assert found["base_loss"] == pytest.approx(np.mean(found["position_loss"]))
    assert found["head_scores"].keys() == measurements.SCORE_DEFINITIONS.keys()
    assert np.shape(found["ablation"]) == (LAYERS, HEADS)
    assert found["ablation"] == [[0] * HEADS] * LAYERS  # untrained heads write nothing, so nothing is lost
    assert found["neurons"]["contexts"].shape[:2] == found["neurons"]["activations"].shape[:2]
    log = found["training"]["log"]
    assert log["step"] == [10, 20] and log["val_loss"] == [5.5, 4.5]
    assert found["training"]["samples"] == [{"step": 10, "text": "да\u2028нет"}]


def test_the_record_of_training(tmp_path):
    assert read_log(tmp_path) == {} and read_samples(tmp_path) == []
    for losses in (["five"], [""], ["4;5"], ["nan"], ["inf"], ["5" * 200_000]):
        write_log(tmp_path, val_loss=losses)
        with pytest.raises(UserError, match="training_log.csv"):
            read_log(tmp_path)
    (tmp_path / "training_log.csv").write_text("step,val_loss\n10,5.5\n")
    with pytest.raises(UserError, match="training_log.csv is not what train.py writes"):
        read_log(tmp_path)
    write_log(tmp_path, val_loss=[])
    assert read_log(tmp_path) == {}
    for text in ("{", "[" * 100_000):
        (tmp_path / "training_samples.jsonl").write_text(text)
        with pytest.raises(UserError, match="training_samples.jsonl"):
            read_samples(tmp_path)
