"""The model against formulas written out here in plain Python and float64."""

import math

import pytest
import torch
from torch.nn import functional as F

from llm import LLM, Cache, RMSNorm, attention, rotary_tables, rotate, sample
from support.numpy_decoder import fastest_step, numpy_step

VOCAB = 50


def small_model(num_layers: int = 2) -> LLM:
    """A model with 2 heads of 6 features, none of whose weights is zero."""
    torch.manual_seed(0)
    model = LLM(VOCAB, d_model=12, num_heads=2, num_layers=num_layers, max_seq_len=16).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(1))


# The formulas, on lists of float64 numbers


def norm(x: list[float], weight: list[float]) -> list[float]:
    rms = math.sqrt(sum(a * a for a in x) / len(x) + 1e-6)
    return [a / rms * w for a, w in zip(x, weight)]


def product(matrix: list[list[float]], x: list[float]) -> list[float]:
    return [sum(a * b for a, b in zip(row, x)) for row in matrix]


def turned(x: list[float], position: int) -> list[float]:
    """Each pair (a, b), as a complex number a + bi, times e^(i * position * 10000^(-2 pair / size))."""
    half = len(x) // 2
    pairs = [complex(x[i], x[i + half]) for i in range(half)]
    angles = [position * 10000 ** (-i / half) for i in range(half)]
    pairs = [z * complex(math.cos(t), math.sin(t)) for z, t in zip(pairs, angles)]
    return [z.real for z in pairs] + [z.imag for z in pairs]


def attended(queries: list, keys: list, values: list) -> list:
    """For each position t of one head: values up to t, weighed by the softmax of its products with keys."""
    out = []
    for t, q in enumerate(queries):
        scores = [sum(a * b for a, b in zip(q, k)) / math.sqrt(len(q)) for k in keys[: t + 1]]
        exps = [math.exp(s) for s in scores]
        out.append([sum(e * v[i] for e, v in zip(exps, values)) / sum(exps) for i in range(len(q))])
    return out


def forward(model: LLM, ids: list[int]) -> list[list[float]]:
    """The logits at each position, from the model's weights by the formulas alone."""
    w = {name: each.double().tolist() for name, each in model.state_dict().items() if torch.is_tensor(each)}
    D, H = model.d_model, model.num_heads
    d = D // H
    stream = [list(w["embedding.weight"][i]) for i in ids]
    for n in range(model.num_layers):
        p = f"blocks.{n}."
        heads = [[], []], [[], []], [[], []]  # queries, keys, values of each head, at each position
        for t, x in enumerate(stream):
            qkv = product(w[p + "attention.qkv_proj.weight"], norm(x, w[p + "attention_norm.weight"]))
            for h in range(H):
                q, k, v = (qkv[part * D + h * d : part * D + (h + 1) * d] for part in range(3))
                heads[0][h].append(turned(norm(q, w[p + "attention.q_norm.weight"]), t))
                heads[1][h].append(turned(norm(k, w[p + "attention.k_norm.weight"]), t))
                heads[2][h].append(v)
        mixed = [attended(*(part[h] for part in heads)) for h in range(H)]
        for t, x in enumerate(stream):
            y = product(w[p + "attention.o_proj.weight"], [a for h in range(H) for a in mixed[h][t]])
            x = [a + b for a, b in zip(x, y)]
            hidden = product(w[p + "mlp.gate_up_proj.weight"], norm(x, w[p + "mlp_norm.weight"]))
            gate, up = hidden[: len(hidden) // 2], hidden[len(hidden) // 2 :]
            y = product(w[p + "mlp.down_proj.weight"], [g / (1 + math.exp(-g)) * u for g, u in zip(gate, up)])
            stream[t] = [a + b for a, b in zip(x, y)]
    return [product(w["embedding.weight"], norm(x, w["norm.weight"])) for x in stream]


def test_whole_forward_pass_equals_the_formulas():
    model, ids = small_model(), tokens(1, 11)
    expected = torch.tensor(forward(model, ids[0].tolist()), dtype=torch.float64)
    assert torch.allclose(model.double()(ids)[0], expected, atol=1e-5)  # rotary tables are float32
    assert torch.allclose(model.float()(ids)[0].double(), expected, atol=1e-4)


def test_rmsnorm_equals_its_formula():
    module, x = RMSNorm(7), torch.randn(5, 7) * 3
    module.weight.data = torch.randn(7)
    expected = [norm(row, module.weight.tolist()) for row in x.double().tolist()]
    assert torch.allclose(module(x).double(), torch.tensor(expected, dtype=torch.float64), atol=1e-5)


def test_rotation_equals_complex_multiplication():
    cos, sin = rotary_tables(20, 8)
    x = torch.randn(20, 8)
    expected = [turned(row, position) for position, row in enumerate(x.double().tolist())]
    assert torch.allclose(rotate(x, cos, sin).double(), torch.tensor(expected, dtype=torch.double), atol=1e-5)


def test_rotated_products_depend_on_distance_alone():
    cos, sin = rotary_tables(64, 8)
    q, k = torch.randn(8), torch.randn(8)
    at = [rotate(q, cos[t], sin[t]) @ rotate(k, cos[t - 5], sin[t - 5]) for t in (5, 17, 63)]
    assert torch.allclose(at[0], at[1], atol=1e-4) and torch.allclose(at[0], at[2], atol=1e-4)
    assert not torch.allclose(at[0], rotate(q, cos[9], sin[9]) @ rotate(k, cos[0], sin[0]), atol=1e-2)


@pytest.mark.parametrize("T, S", [(1, 1), (7, 7), (1, 7), (3, 7), (300, 300)])
def test_attention_is_that_of_pytorch(T, S):
    q, k, v = torch.randn(2, 3, T, 8), torch.randn(2, 3, S, 8), torch.randn(2, 3, S, 8)
    mixed, weights = attention(q, k, v)
    past = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    assert torch.allclose(mixed, F.scaled_dot_product_attention(q, k, v, attn_mask=past), atol=1e-5)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 3, T), atol=1e-5)
    assert not weights.triu(S - T + 1).any()  # nothing from the future
    if T == S == 7:
        one_head = attended(*(x[0, 0].double().tolist() for x in (q, k, v)))
        assert torch.allclose(mixed[0, 0].double(), torch.tensor(one_head, dtype=torch.float64), atol=1e-5)


def test_a_long_window_read_in_pieces_is_the_same():
    model, ids = LLM(VOCAB, d_model=12, num_heads=2, num_layers=2, max_seq_len=400).eval(), tokens(2, 400)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        cache = Cache(model, 2)
        pieces = [model.logits(model.residual(piece, cache)) for piece in ids.split([300, 60, 1, 39], dim=1)]
        assert torch.allclose(torch.cat(pieces, dim=1), model(ids), atol=1e-4)


def test_a_change_moves_no_logit_before_it():
    model, ids = small_model(), tokens(1, 12)
    before = model(ids)
    for t in range(12):
        changed = ids.clone()
        changed[0, t] = (ids[0, t] + 1) % VOCAB
        after = model(changed)
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.allclose(after[:, t], before[:, t])


def test_the_gradient_reaches_every_parameter_and_no_future_token():
    model = small_model()
    x = model.embedding(tokens(1, 8)).detach().requires_grad_()
    model.embedding.forward = lambda ids: x
    model(tokens(1, 8))[0, 4].sum().backward()
    reached = x.grad[0].abs().sum(-1) > 0
    assert reached[:5].all() and not reached[5:].any()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("pieces", [[12], [1] * 12, [5, 1, 6], [3, 4, 5]])
def test_cached_logits_equal_uncached_ones(pieces):
    model, ids = small_model(), tokens(2, 12)
    cache, got = Cache(model, 2), []
    with torch.no_grad():
        for piece in ids.split(pieces, dim=1):
            got.append(model.logits(model.residual(piece, cache)))
        assert torch.allclose(torch.cat(got, dim=1), model(ids), atol=1e-5)


def test_the_decoder_in_numpy_gives_the_logits_of_the_model():
    model, ids = small_model(), tokens(2, 12)
    cache, other = Cache(model, 2), Cache(model, 2)
    step = numpy_step(model)
    with torch.no_grad():
        for piece in ids.split([4, 1, 1, 5, 1], dim=1):
            expected = model.logits(model.residual(piece, other))[:, -1]
            assert torch.allclose(step(piece, cache), expected, atol=1e-5)
            assert cache.length == other.length
            assert all(torch.allclose(*kept, atol=1e-5) for kept in zip(cache.layers, other.layers))


@pytest.mark.parametrize("count", [2, 5])  # in numpy, and in PyTorch
def test_generation_equals_feeding_the_whole_text_back(count):
    model, ids = small_model(), tokens(count, 3)
    step = fastest_step(model, count)
    assert (step is None) == (count == 5)
    stream, text = model.generate(ids, temperature=0, step=step), ids
    for _ in range(13):  # to the end of the window
        expected = model(text)[:, -1].argmax(-1)
        assert torch.equal(next(stream), expected)
        text = torch.cat((text, expected[:, None]), dim=1)
    for _ in range(40):  # past it, the last tokens are the context
        token = next(stream)
        assert token.shape == (count,) and (token < VOCAB).all()


def test_a_prompt_longer_than_the_window_is_continued_from_its_end():
    model, ids = small_model(), tokens(1, 100)
    assert torch.equal(next(model.generate(ids, temperature=0)), model(ids[:, -16:])[:, -1].argmax(-1))


def test_too_many_tokens_are_refused():
    with pytest.raises(ValueError, match="17 tokens do not fit.*16"):
        small_model()(tokens(1, 17))


def test_sampling_draws_from_the_distribution_it_names():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    generator = torch.Generator().manual_seed(0)

    def shares(*settings):
        drawn = sample(logits.expand(40_000, 4), *settings, generator=generator)
        return (torch.bincount(drawn, minlength=4) / 40_000).tolist()

    assert shares(1.0) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.015)
    assert shares(1.0, 2) == pytest.approx([0.625, 0.375, 0, 0], abs=0.015)
    assert shares(1.0, 0, 0.6) == pytest.approx([0.625, 0.375, 0, 0], abs=0.015)  # 0.5 is not yet 0.6
    squares = [0.25, 0.09, 0.0225, 0.0025]  # their sum is 0.365
    assert shares(0.5) == pytest.approx([square / 0.365 for square in squares], abs=0.015)
    assert shares(0) == [1, 0, 0, 0]
    assert shares(1e-60) == shares(1e-40) == shares(1.0, 0, 1e-50) == [1, 0, 0, 0]  # limits, not errors


def test_the_state_dict_brings_the_model_back(tmp_path):
    model = small_model()
    torch.save(model.state_dict(), tmp_path / "parameters.pt2")
    loaded = LLM.load(tmp_path / "parameters.pt2")
    assert loaded.get_extra_state() == model.get_extra_state() and not loaded.training
    assert torch.equal(loaded(tokens(2, 9)), model(tokens(2, 9)))


def test_weights_of_another_architecture_are_named():
    with pytest.raises(ValueError, match="num_layers=3 and not 2"):
        small_model().load_state_dict(small_model(num_layers=3).state_dict())


def test_what_is_no_model_is_refused(tmp_path):
    path = tmp_path / "parameters.pt2"
    with pytest.raises(FileNotFoundError):
        LLM.load(path)
    state = small_model().state_dict()
    wrong = [
        b"",
        b"not a file of torch",
        {"a": torch.zeros(3)},
        [1, 2],
        {**state, "_extra_state": {**state["_extra_state"], "num_heads": 5}},
        {**state, "_extra_state": {**state["_extra_state"], "vocab_size": 10**15}},
        {**state, "norm.weight": torch.full((12,), math.nan)},
        {name: value for name, value in state.items() if name != "norm.weight"},
    ]
    for content in wrong:
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(ValueError, match="parameters.pt2"):
            LLM.load(path)
