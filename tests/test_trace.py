"""The recorded activations against the model: hooks on its parts, and a model that ends earlier."""

import math

import pytest
import torch
from small_models import HEADS, LAYERS, VOCAB, T, random_ids, small_model, trace

from interpretability.trace import run_layers
from llm import LLM


@pytest.fixture(scope="module")
def model() -> LLM:
    return small_model()


def record_with_hooks(model: LLM, layer: int, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the parts of one block take in or give out when the model reads ids, by the names of Layer."""
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


def test_the_activations_are_those_of_the_forward_pass(model):
    ids = torch.cat((random_ids(1), random_ids(2)))
    layers = list(run_layers(model, ids))
    assert torch.allclose(model.logits(layers[-1].residual), model(ids), rtol=0, atol=1e-10)
    assert len(layers) == LAYERS
    for n, layer in enumerate(layers):
        seen = record_with_hooks(model, n, ids)
        attention_input, attention_output = seen.pop("attention_input"), seen.pop("attention_output")
        for name, expected in seen.items():
            assert torch.allclose(getattr(layer, name), expected, rtol=0, atol=1e-10), (n, name)
        assert torch.allclose(layer.head_outputs.sum(1), attention_output, rtol=0, atol=1e-10)

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


def test_a_head_adds_what_the_model_without_it_lacks(model):
    ids = random_ids(3)
    found, without = trace(model, ids), trace(model, ids, {(1, 1)})
    assert torch.equal(found.streams[1], without.streams[1])
    heads = found.layers[1].head_outputs
    assert torch.allclose(heads[:, 0], without.layers[1].head_outputs.sum(1), rtol=0, atol=1e-10)
    assert heads[:, 1].abs().max() > 0.1


def test_a_text_that_is_too_long_is_refused(model):
    with pytest.raises(ValueError, match="window"):
        next(run_layers(model, random_ids(1, length=T + 1)))
