"""The loss in chunks against PyTorch's cross-entropy."""

import pytest
import torch
import torch.nn.functional as F
from small_models import small_model

import llm
from llm import LLM
from support.loss import OutputLoss, TrainingLoss


@pytest.mark.parametrize("chunk_rows", [1, 10, 37, 512])
def test_value_and_gradients_are_those_of_cross_entropy(chunk_rows):
    torch.manual_seed(0)
    x = torch.randn(37, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(50, (37,))
    expected = F.cross_entropy(x @ weight.T, targets)
    loss = OutputLoss.apply(x, weight, targets, chunk_rows, True)
    assert torch.allclose(loss, expected, rtol=1e-12)
    # times 3, so that the gradient that comes from above counts
    gradients = torch.autograd.grad(3 * loss, (x, weight))
    for ours, theirs in zip(gradients, torch.autograd.grad(3 * expected, (x, weight))):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-14)


def test_the_loss_of_a_model_is_the_cross_entropy_of_its_logits():
    model = small_model()
    ids = torch.randint(model.vocab_size, (3, 9))
    input_ids, target_ids = ids[:, :-1], ids[:, 1:]
    expected = F.cross_entropy(model(input_ids).flatten(0, 1), target_ids.flatten())
    theirs = torch.autograd.grad(expected, list(model.parameters()))
    loss_of = TrainingLoss(model, torch.float32)
    loss = loss_of(input_ids, target_ids)
    assert torch.allclose(loss, expected, rtol=1e-5)
    for ours, gradient in zip(torch.autograd.grad(loss, list(model.parameters())), theirs):
        assert torch.allclose(ours, gradient, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(loss_of(input_ids, target_ids), loss)
    in_bf16 = TrainingLoss(model, torch.bfloat16)(input_ids, target_ids)
    assert torch.allclose(in_bf16, expected, rtol=0.02) and not torch.equal(in_bf16, expected)


def test_attention_is_written_out_on_a_cpu_and_fused_in_long_windows(monkeypatch):
    used = []

    def written_out(q, k, v):
        used.append("written out")
        return torch.zeros_like(q), None

    def fused(q, k, v, is_causal):
        used.append("fused")
        return torch.zeros_like(q)

    monkeypatch.setattr(llm, "attention", written_out)
    monkeypatch.setattr(llm.F, "scaled_dot_product_attention", fused)
    model = LLM(vocab_size=50, d_model=16, num_heads=2, num_layers=2, max_seq_len=300)
    for length in (5, 300):
        ids = torch.arange(length)[None] % model.vocab_size
        for dtype in (torch.bfloat16, torch.float32):
            TrainingLoss(model, dtype)(ids, ids)
    assert used == ["written out"] * 2 * model.num_layers + ["fused"] * 2 * model.num_layers
