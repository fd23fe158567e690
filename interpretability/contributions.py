"""Direct contributions: what each head and MLP writes into the score, and what each head looks at.

Patching asks what the score owes to a part by any way. A contribution counts only what the part itself writes
at the last position.

Shapes in the comments: B pairs of T tokens, D = d_model, H heads, L layers.
"""

import torch
from torch import Tensor

from interpretability.case_pairs import Pair
from interpretability.patching import Batch, Part, at_last, pair_batches, ratio, scores
from interpretability.trace import run_layers
from llm import LLM, NORM_EPS


@torch.no_grad()
def contributions(model: LLM, input_ids: Tensor, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
    """What the embedding, each head and each MLP adds to the score: name -> (B,). Their sum is the score.

    The output layer is linear if the scale of the final norm is held at its value. Then the score is the
    product of the stream at the last position and one vector, and the stream is a sum over the parts (Elhage
    et al. 2021, "A Mathematical Framework for Transformer Circuits"). Also returns each head's attention
    weight from the last position to the deciding word (L, H, B).
    """
    deciding = torch.zeros_like(input_ids, dtype=torch.bool)  # (B, T)
    for row, pair in enumerate(batch.pairs):
        deciding[row, pair.deciding_positions()] = True

    written = {"embedding": at_last(model.embedding(input_ids), batch)}  # name -> (B, D)
    looks = []
    for i, layer in enumerate(run_layers(model, input_ids)):
        for head in range(model.num_heads):
            written[str(Part("head", i, head))] = at_last(layer.head_outputs[:, head], batch)
        written[str(Part("mlp", i))] = at_last(layer.mlp_output, batch)
        from_last = at_last(layer.weights.transpose(1, 2), batch)  # (B, H, T)
        looks.append((from_last * deciding[:, None]).sum(-1).T)  # (H, B)

    stream = at_last(layer.residual, batch)  # (B, D)
    scale = (stream.square().mean(-1, keepdim=True) + NORM_EPS).rsqrt()  # of the final norm
    difference = model.embedding(batch.clean_token) - model.embedding(batch.corrupt_token)  # (B, D)
    reader = difference * model.norm.weight * scale
    return {name: (vector * reader).sum(-1) for name, vector in written.items()}, torch.stack(looks)


def direct_shares(model: LLM, pairs: list[Pair]) -> tuple[dict[str, dict], dict[str, float]]:
    """Each part's share in the difference between clean and corrupt score, and where each head looks.

    The shares of all parts sum to 1. Returns name -> ratio(), and name -> mean attention weight on the clean
    sentences.
    """
    differences, totals, looks = [], [], []
    for batch in pair_batches(pairs, "direct contributions"):
        clean, weights = contributions(model, batch.clean_ids, batch)
        corrupt, _ = contributions(model, batch.corrupt_ids, batch)
        differences.append({name: clean[name] - corrupt[name] for name in clean})
        totals.append(scores(model, batch.clean_ids, batch) - scores(model, batch.corrupt_ids, batch))
        looks.append(weights)
    total = torch.cat(totals).double().numpy()
    shares = {}
    for name in differences[0]:
        shares[name] = ratio(torch.cat([each[name] for each in differences]).double().numpy(), total)
    mean_look = torch.cat(looks, dim=-1).mean(-1)  # (L, H)
    names = {(i, h): str(Part("head", i, h)) for i in range(model.num_layers) for h in range(model.num_heads)}
    return shares, {name: mean_look[place].item() for place, name in names.items()}
