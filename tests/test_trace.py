"""The trace against the model: its logits, hooks on its parts, a model that ends earlier or lacks a head."""

import math

import pytest
import torch
from small_models import HEADS, LAYERS, VOCAB, T, random_ids, small_model, without_head

from interpretability.trace import trace
from llm import LLM


@pytest.fixture(scope="module")
def model() -> LLM:
    return small_model()


def record_with_hooks(model: LLM, layer: int, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the parts of one block take in or give out when the model reads ids, by the names of the trace."""
    block = model.blocks[layer]
    seen = {}

    def output_of(name):
        return lambda module, inputs, output: seen.update({name: output})

    hooks = [
        block.attention.register_forward_hook(output_of("attention_output")),
        block.mlp.register_forward_hook(output_of("mlp_output")),
        block.register_forward_hook(output_of("residual")),
        block.mlp.down_proj.register_forward_pre_hook(lambda _, inputs: seen.update(activations=inputs[0])),
        block.attention_norm.register_forward_hook(output_of("attention_input")),
    ]
    model(ids)
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(hooks)
    return seen


def test_the_trace_is_the_forward_pass(model):
    ids = torch.cat((random_ids(1), random_ids(2)))
    found = trace(model, ids)
    assert torch.allclose(found.logits, model(ids), rtol=0, atol=1e-10)
    assert torch.equal(found.embedding, model.embedding(ids))
    assert len(found.layers) == LAYERS
    for n, layer in enumerate(found.layers):
        seen = record_with_hooks(model, n, ids)
        attention_input = seen.pop("attention_input")
        for name, expected in seen.items():
            assert torch.allclose(getattr(layer, name), expected, rtol=0, atol=1e-10), (n, name)
        assert torch.allclose(layer.head_outputs.sum(1), layer.attention_output)

        assert layer.weights.shape == (2, HEADS, T, T)
        assert torch.allclose(layer.weights.sum(-1), torch.ones(2, HEADS, T).double())
        assert (layer.weights.triu(1) == 0).all()
        # a row of weights from one head's query and keys, in plain Python
        q, k, _ = model.blocks[n].attention.project(attention_input, model.cos.double(), model.sin.double())
        powers = [math.exp((q[1, 1, 5] @ k[1, 1, s]).item() / math.sqrt(8)) for s in range(6)]
        assert layer.weights[1, 1, 5, :6].tolist() == pytest.approx([power / sum(powers) for power in powers])


def test_the_last_layer_of_the_lens_is_the_prediction(model):
    ids = random_ids(2, length=7)
    lens = trace(model, ids).lens
    assert lens.shape == (LAYERS + 1, 1, 7, VOCAB)
    assert torch.allclose(lens[-1], model(ids), rtol=0, atol=1e-10)
    for n in range(LAYERS):  # the earlier entries are predictions of a model that ends there
        shorter = LLM(VOCAB, 16, HEADS, n, T).double()
        state = {name: w for name, w in model.state_dict().items() if name in shorter.state_dict()}
        shorter.load_state_dict(state | {"_extra_state": shorter.get_extra_state()})
        assert torch.allclose(lens[n], shorter(ids), rtol=0, atol=1e-10)


@pytest.mark.parametrize("layer, head", [(0, 0), (1, 1), (2, 0)])
def test_an_ablated_head(model, layer, head):
    ids = random_ids(3)
    expected = without_head(model, layer, head)(ids)
    assert torch.allclose(trace(model, ids, {(layer, head)}).logits, expected, rtol=0, atol=1e-10)
    assert not torch.allclose(trace(model, ids).logits, expected, atol=1e-3)


def test_two_ablated_heads(model):
    ids = torch.arange(5)[None]
    found = trace(model, ids, {(0, 1), (2, 1)}).logits
    assert torch.allclose(found, without_head(without_head(model, 0, 1), 2, 1)(ids), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "ids, ablated",
    [([], ()), ([1] * (T + 1), ()), ([1], {(LAYERS, 0)}), ([1], {(0, HEADS)}), ([1], {(-1, 0)})],
)
def test_what_cannot_be_traced_is_refused(model, ids, ablated):
    with pytest.raises(ValueError):
        trace(model, torch.tensor([ids], dtype=torch.long), ablated)
