"""What is measured inside a model against separate computations: plain loops, the model itself, attention built by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import inside
from cli import UserError
from dataset import EOS, train_tokenizer
from llm import LLM

VOCAB, T, HEADS, LAYERS = 40, 12, 2, 3


@pytest.fixture(scope="module")
def model() -> LLM:
    """In float64, none of its weights zero."""
    torch.manual_seed(0)
    model = LLM(VOCAB, d_model=16, num_heads=HEADS, num_layers=LAYERS, max_seq_len=T).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.fixture(scope="module")
def text() -> np.ndarray:
    """Tokens that repeat often enough for every score to have something to count."""
    return np.random.default_rng(0).integers(8, size=200).astype(np.uint16)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Мама мыла раму. Папа читал газету. " * 20], 300)


def without(model: LLM, layer: int, head: int) -> LLM:
    """A copy of the model in which the columns of o_proj that belong to the head are zero."""
    changed = LLM(**model.get_extra_state()).double().eval()
    changed.load_state_dict(model.state_dict())
    d = model.d_model // model.num_heads
    with torch.no_grad():
        changed.blocks[layer].attention.o_proj.weight[:, head * d : (head + 1) * d] = 0
    return changed


def mean_losses(model: LLM, windows: list[np.ndarray]) -> list[float]:
    """The mean loss at each place of the windows, token by token."""
    total = [0.0] * (len(windows[0]) - 1)
    for window in windows:
        ids = torch.tensor(window.astype(np.int64))
        for t in range(len(total)):
            logits = model(ids[None, : t + 1])[0, -1].tolist()
            total[t] += math.log(sum(math.exp(a) for a in logits)) - logits[ids[t + 1]]
    return [a / len(windows) for a in total]


# One text


def test_the_trace_is_the_forward_pass(model):
    ids = torch.randint(VOCAB, (T,), generator=torch.Generator().manual_seed(1))
    found = inside.trace(model, ids)
    assert torch.allclose(found.logits, model(ids[None])[0], rtol=0, atol=1e-10)
    met = found.layers
    assert met.weights.shape == (LAYERS, HEADS, T, T)
    assert torch.allclose(met.weights.sum(-1), torch.ones(LAYERS, HEADS, T).double())
    assert (met.weights.triu(1) == 0).all()
    # every stage is what a hook on the model's own part sees there
    x = model.embedding(ids)
    assert torch.equal(found.embedding, x)
    for n, block in enumerate(model.blocks):
        seen = {}
        parts = {"attention_input": block.attention_norm, "attention_output": block.attention, "mlp_input": block.mlp_norm}
        parts |= {"mlp_output": block.mlp, "residual": block, "activations": block.mlp.down_proj}
        hooks = [
            part.register_forward_hook(
                lambda _, given, out, name=name: seen.update({name: given[0][0] if name == "activations" else out[0]})
            )
            for name, part in parts.items()
        ]
        model(ids[None])
        for hook in hooks:
            hook.remove()
        assert len(seen) == len(parts)
        for name, expected in seen.items():
            assert torch.allclose(getattr(met, name)[n], expected, rtol=0, atol=1e-10), (n, name)
        assert torch.allclose(met.written[n].sum(0), met.attention_output[n])
        assert torch.allclose(met.scores[n].masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(-1), met.weights[n])
        q, k = met.q[n, 1, 5], met.k[n, 1, 3]
        assert met.scores[n, 1, 5, 3].item() == pytest.approx((q @ k).item() / math.sqrt(8))


def test_the_last_layer_of_the_lens_is_the_prediction(model):
    ids = torch.randint(VOCAB, (7,), generator=torch.Generator().manual_seed(2))
    lens = inside.trace(model, ids).lens
    assert lens.shape == (LAYERS + 1, 7, VOCAB)
    assert torch.allclose(lens[-1], model(ids[None])[0], rtol=0, atol=1e-10)
    for n in range(LAYERS):  # the layers before see the model that ends there
        shorter = LLM(VOCAB, 16, HEADS, n, T).double()
        state = {name: w for name, w in model.state_dict().items() if name in shorter.state_dict()}
        shorter.load_state_dict(state | {"_extra_state": shorter.get_extra_state()})
        assert torch.allclose(lens[n], shorter(ids[None])[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("layer, head", [(0, 0), (1, 1), (2, 0)])
def test_a_head_switched_off(model, layer, head):
    ids = torch.randint(VOCAB, (T,), generator=torch.Generator().manual_seed(3))
    expected = without(model, layer, head)(ids[None])[0]
    assert torch.allclose(inside.trace(model, ids, {(layer, head)}).logits, expected, rtol=0, atol=1e-10)
    assert not torch.allclose(inside.trace(model, ids).logits, expected, atol=1e-3)


def test_two_heads_switched_off(model):
    ids = torch.arange(5)
    found = inside.trace(model, ids, {(0, 1), (2, 1)}).logits
    assert torch.allclose(found, without(without(model, 0, 1), 2, 1)(ids[None])[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "ids, off", [([], ()), ([1] * (T + 1), ()), ([1], {(LAYERS, 0)}), ([1], {(0, HEADS)}), ([1], {(-1, 0)})]
)
def test_what_cannot_be_traced_is_refused(model, ids, off):
    with pytest.raises(ValueError):
        inside.trace(model, torch.tensor(ids, dtype=torch.long), off)


# Much text


@pytest.mark.parametrize("length, most, overlap", [(200, 60, True), (200, 60, False), (20, 1000, True), (20, 1000, False)])
def test_windows_are_pieces_of_the_text(length, most, overlap):
    tokens = np.arange(length, dtype=np.uint16)
    starts = inside.windows(tokens, T, most, overlap)[:, 0].tolist()
    assert inside.windows(tokens, T, most, overlap).tolist() == [list(range(s, s + T + 1)) for s in starts]
    assert len(set(starts)) == len(starts) == min(most // T, length - T if overlap else (length - 1) // T)
    assert starts[0] == 0 and (len(starts) == 1 or starts[-1] == length - T - 1)
    if not overlap:
        assert all(b - a >= T for a, b in zip(starts, starts[1:]))


def test_a_text_shorter_than_the_window(model):
    assert inside.windows(np.arange(5), T, 100, True).tolist() == [[0, 1, 2, 3, 4]]
    assert len(inside.loss_by_position(model, np.array([1, 2]))) == 1
    with pytest.raises(ValueError):
        inside.loss_by_position(model, np.array([1]))


def test_loss_by_position_against_a_plain_loop(model, text):
    short = text[: T + 20]
    expected = mean_losses(model, [short[s : s + T + 1] for s in range(20)])  # all the windows that there are
    assert inside.loss_by_position(model, short) == pytest.approx(expected, abs=1e-6)


def test_ablation_losses_against_a_model_without_the_head(model, text):
    short = text[: T + 5]
    pieces = [short[s : s + T + 1] for s in range(5)]
    base = sum(mean_losses(model, pieces)) / T
    found = inside.ablation_losses(model, short)
    for layer in range(LAYERS):
        for head in range(HEADS):
            rise = sum(mean_losses(without(model, layer, head), pieces)) / T - base
            assert abs(rise) > 1e-4
            assert found[layer][head] == pytest.approx(rise, abs=1e-6)


def plain_scores(weights, ids, eos) -> dict[str, float]:
    """The scores of one head from its definitions, in loops over weights [window][query][key] and ids [window][place]."""
    looks = {name: [] for name in inside.DEFINITIONS}
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
    found = inside.head_scores(model, short, eos=eos)
    traces = [inside.trace(model, ids).layers.weights for ids in pieces]
    ids = [piece.tolist() for piece in pieces]
    for layer in range(LAYERS):
        for head in range(HEADS):
            expected = plain_scores([w[layer, head].tolist() for w in traces], ids, eos=eos)
            assert {name: score["values"][layer][head] for name, score in found.items()} == pytest.approx(expected, abs=1e-6)
    equal = [[[1 / (t + 1)] * (t + 1) + [0] * (T - t - 1) for t in range(T)]] * len(ids)
    expected = plain_scores(equal, ids, eos=eos)
    assert {name: score["equal"] for name, score in found.items()} == pytest.approx(expected, abs=1e-6)
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
    assert inside.score_weights(weights, IDS, eos=0)[name].tolist() == pytest.approx([score], abs=1e-6)


def test_a_model_built_to_look_at_the_previous_token():
    """Queries and keys that are the same for every token, turned by rotary positions so that they meet one place apart."""
    model = LLM(VOCAB, d_model=8, num_heads=1, num_layers=1, max_seq_len=8).double().eval()
    with torch.no_grad():
        model.embedding.weight[:, 0] = 100  # the same for all tokens, and so much that the norm leaves only it
        qkv = model.blocks[0].attention.qkv_proj.weight.zero_()
        angles = 10000.0 ** (-torch.arange(0, 8, 2).double() / 8)
        qkv[0:4, 0], qkv[4:8, 0] = angles.cos(), -angles.sin()  # the query turned back by one place
        qkv[8:12, 0] = 1
        model.blocks[0].attention.q_norm.weight.mul_(100)  # sharp
    scores = inside.head_scores(model, np.arange(9), eos=3)
    assert scores["previous token"]["values"][0][0] == pytest.approx(1, abs=1e-2)
    assert scores["spread"]["values"][0][0] == pytest.approx(1, abs=5e-2)


def test_scores_where_there_is_nothing_to_count():
    weights = torch.ones(1, 1, 1, 1)
    scores = inside.score_weights(weights, torch.tensor([[4]]), eos=0)
    assert scores.pop("spread").item() == 1
    assert all(score.item() == 0 for score in scores.values())


@pytest.mark.parametrize("length", [200, T + 1])
def test_neuron_contexts_against_brute_force(model, text, length, monkeypatch):
    monkeypatch.setattr(inside, "BATCH_TOKENS", 30)  # several batches
    tokens = np.random.default_rng(1).integers(VOCAB, size=length).astype(np.uint16)
    contexts, values = inside.neuron_contexts(model, tokens, count=3, before=4)
    hidden = model.blocks[0].mlp.down_proj.in_features
    assert contexts.shape == (LAYERS, hidden, 3, 5) and contexts.dtype == np.uint16 and values.shape == (LAYERS, hidden, 3)
    places = []  # (context, activations (LAYERS, hidden)) of every place with four tokens before it in its window
    for window in inside.windows(tokens, T, 60_000, overlap=False)[:, :-1]:
        activations = inside.trace(model, window).layers.activations
        places += [(window[t - 4 : t + 1].tolist(), activations[:, t]) for t in range(4, T)]
    every = torch.stack([activations for _, activations in places]).numpy()
    for layer in range(LAYERS):
        for neuron in range(hidden):
            order = sorted(range(len(places)), key=lambda i: -abs(every[i, layer, neuron]))[:3]
            assert values[layer, neuron] == pytest.approx(every[order, layer, neuron], rel=1e-5)
            assert contexts[layer, neuron].tolist() == [places[i][0] for i in order]


# What the page gets


def test_measure_gives_all_that_the_page_shows(tokenizer, tmp_path):
    torch.manual_seed(0)
    model = LLM(tokenizer.get_vocab_size(), 16, HEADS, LAYERS, T).eval()
    tokens = np.random.default_rng(0).integers(model.vocab_size, size=300).astype(np.uint16)
    (tmp_path / "training_log.csv").write_text("step,val_loss\n10,5.5\n20,4.5\n")
    (tmp_path / "training_samples.jsonl").write_text('{"step": 10, "text": "да\u2028нет"}\n', encoding="utf-8")
    found = inside.measure(model, tokenizer, tokens, tokens[:60], tmp_path)
    assert len(found["position_loss"]) == T
    assert found["base_loss"] == pytest.approx(np.mean(found["position_loss"]))
    assert found["head_scores"].keys() == inside.DEFINITIONS.keys()
    assert np.shape(found["ablation"]) == (LAYERS, HEADS)
    assert found["ablation"] == [[0] * HEADS] * LAYERS  # before training the heads write nothing, so nothing is lost
    assert found["neurons"]["contexts"].shape[:2] == found["neurons"]["activations"].shape[:2]
    assert found["training"]["log"] == {"step": [10, 20], "val_loss": [5.5, 4.5]}
    assert found["training"]["samples"] == [{"step": 10, "text": "да\u2028нет"}]


def test_the_record_of_training(tmp_path):
    assert inside.read_training(tmp_path) == {"log": {}, "samples": []}
    (tmp_path / "training_log.csv").write_text("step,val_loss\n10,five\n")
    with pytest.raises(UserError, match="training_log.csv"):
        inside.read_training(tmp_path)
    (tmp_path / "training_log.csv").unlink()
    (tmp_path / "training_samples.jsonl").write_text("{")
    with pytest.raises(UserError, match="training_samples.jsonl"):
        inside.read_training(tmp_path)


def test_token_labels_show_white_space(tokenizer):
    def shown(text):
        return "".join(inside.token_label(tokenizer, i) for i in tokenizer.encode(text).ids)

    assert shown("a b\n\tc") == "a·b↵⇥c"
    assert inside.token_label(tokenizer, tokenizer.token_to_id(EOS)) == EOS
    assert "�" in shown("日")


@pytest.mark.parametrize("text", ["Мама мыла раму.", "", "$x$ \\frac{ <b>"])
def test_attention_png_is_a_picture(tokenizer, tmp_path, text):
    from matplotlib.image import imread

    model = LLM(tokenizer.get_vocab_size(), 16, HEADS, LAYERS, 64).eval()
    inside.attention_png(model, tokenizer, text, tmp_path / "heads.png")
    assert [path.name for path in tmp_path.iterdir()] == ["heads.png"]
    height, width, _ = imread(tmp_path / "heads.png").shape
    assert 500 < width < 6100 and 500 < height < 6100


def test_attention_png_refuses_a_text_longer_than_the_window(model, tokenizer, tmp_path):
    with pytest.raises(UserError, match="at once"):
        inside.attention_png(model, tokenizer, "Мама мыла раму. " * 50, tmp_path / "heads.png")
    assert not list(tmp_path.iterdir())
