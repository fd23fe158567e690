"""The checks of exercise.py: each step of the reader's file against a formula worded unlike llm.py's.

A check takes the reader's module and raises Wrong. It also computes what the usual slips give, and names the
slip if that is what the reader's code returns. Shapes are those of llm.py.
"""

from collections import Counter
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn, randn, tensor

from llm import NORM_EPS, ROTARY_BASE, rotary_tables


class Wrong(Exception):
    """The first place that differs, what is given and expected there, and the likely slip if it is known."""


def expect(what: str, given, expected, slips: dict = {}, tolerance: float = 1e-4) -> None:
    """Raise Wrong unless given equals expected. slips: what usual mistakes give instead, by description."""
    if message := difference(what, given, expected, tolerance):
        likely = [slip for slip, value in slips.items() if not difference("", given, value, tolerance)]
        if " is None, expected" in message:
            likely = ["a return is missing"]
        raise Wrong("\nlikely: ".join([message, *likely[:1]]))


def difference(what: str, given, expected, tolerance: float) -> str:
    """The first place that differs, in words; "" if there is none."""
    both = (given, expected)
    at = "" if what.endswith((")", "]")) else " at "  # code takes an index as it is, a sentence does not
    if all(isinstance(x, Tensor) for x in both) and given.shape == expected.shape:
        if given.dtype != expected.dtype:
            return f"{what} is of type {given.dtype}, expected {expected.dtype}"
        close = torch.isclose(given.double(), expected.double(), 1e-3, tolerance, equal_nan=True)
        places = (~close).nonzero().tolist()
        values = [f"{x[tuple(places[0])].item():.6g}" for x in both if places]
        place = f"{at}{places[0]}" if places and places[0] else ""
        return f"{what}{place} is {values[0]}, expected {values[1]}" if places else ""
    if all(isinstance(x, (tuple, list)) for x in both) and len(given) == len(expected):
        pairs = enumerate(zip(given, expected))
        parts = (difference(f"{what}{at}[{i}]", *pair, tolerance) for i, pair in pairs)
        return next(filter(None, parts), "")
    equal = not any(isinstance(x, (Tensor, tuple, list)) for x in both) and given == expected
    return "" if equal else f"{what} is {in_words(given)}, expected {in_words(expected)}"


def in_words(x) -> str:
    """A value, cut to 90 characters; tensors, also those in a tuple or list, by their shapes."""
    if isinstance(x, Tensor):
        return f"a tensor {tuple(x.shape)}"
    if isinstance(x, (tuple, list)) and any(isinstance(part, Tensor) for part in x):
        return f"({', '.join(in_words(part) for part in x)})"
    return f"{' '.join(str(x).split()):.90}"


def randomized(module: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    """The module without dropout and with random weights; and these by their names, without ".weight"."""
    for parameter in module.eval().requires_grad_(False).parameters():
        parameter.normal_(mean=float(parameter.dim() == 1), std=0.5)
    return module, {name.removesuffix(".weight"): parameter for name, parameter in module.named_parameters()}


# The formulas. x (B, T, D); w: the weights of a module by their names.
def normed(x: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + NORM_EPS) ** -0.5 * weight


def angles(length: int, size: int) -> Tensor:
    """The angle of each pair of features at each position: (length, size / 2)."""
    return torch.outer(torch.arange(length), ROTARY_BASE ** (-2 * torch.arange(size // 2) / size))


def turned(x: Tensor, sign: int = 1) -> Tensor:
    """Features i and i + d / 2 of x (..., T, d) as a complex number, times e^(i angle)."""
    z = torch.complex(*x.tensor_split(2, dim=-1)) * torch.exp(sign * 1j * angles(*x.shape[-2:]))
    return torch.cat((z.real, z.imag), dim=-1)


def attended(
    q, k, v, scale: float = -0.5, ahead: int = 0, axis: int = -1, hidden: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Attention, scores times d^scale. A position sees `ahead` past itself; others have e^score `hidden`."""
    (T, d), S = q.shape[-2:], k.shape[-2]
    e = (torch.einsum("bhtd,bhsd->bhts", q, k) * d**scale).exp()
    e = torch.where(torch.arange(S) <= torch.arange(T)[:, None] + S - T + ahead, e, hidden)
    return e / e.sum(axis, keepdim=True) @ v, e / e.sum(axis, keepdim=True)


def projected(w: dict, x: Tensor, H: int, norm=normed, turn=turned) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = torch.einsum("btc,phdc->pbhtd", x, w["qkv_proj"].view(3, H, -1, x.shape[-1]))
    return turn(norm(q, w["q_norm"])), turn(norm(k, w["k_norm"])), v


def same(x: Tensor, weight: Tensor) -> Tensor:
    return x


def block(w: dict, x: Tensor, H: int, before=normed, after=same, streams=(same, same)) -> Tensor:
    """before, after: the norms. streams: what attention and the MLP add to, of x."""
    of_attention = {name.removeprefix("attention."): weight for name, weight in w.items()}
    y = attended(*projected(of_attention, before(x, w["attention_norm"]), H))[0].transpose(1, 2).flatten(2)
    x = after(streams[0](x, w["attention_norm"]) + y @ w["attention.o_proj"].T, w["attention_norm"])
    gate, up = (before(x, w["mlp_norm"]) @ w["mlp.gate_up_proj"].T).tensor_split(2, -1)
    found = gate / (1 + (-gate).exp()) * up @ w["mlp.down_proj"].T
    return after(streams[1](x, w["mlp_norm"]) + found, w["mlp_norm"])


# fmt: off
def check_merge(mine: ModuleType) -> None:
    for words in ("мама мам", "а б а б вг", "ааааа баа", "ода год да", "да ода год"):
        pieces = [list(word) for word in words.split()]
        pairs, flat = [pair for piece in pieces for pair in zip(piece, piece[1:])], sum(pieces, [])
        counted = (pairs, zip(flat, flat[1:]), pairs[::-1])
        right, across, last = (Counter(each).most_common(1)[0][0] for each in counted)
        spaced = ["".join(f" {token} " for token in piece) for piece in pieces]
        merged = lambda a, b, most=-1: (
            (a, b), [each.replace(f" {a}  {b} ", f" {a}{b} ", most).split() for each in spaced])
        expect(f"merge of the letters of {words!r}", mine.merge([*map(list, pieces)]), merged(*right), {
            "pairs are counted across the end of a piece": merged(*across),
            "of equally frequent pairs the last is taken, not the first": merged(*last),
            "only the first place in a piece is joined": merged(*right, 1)})


def check_windows(mine: ModuleType) -> None:
    ids = torch.arange(13) ** 2
    for count, length in ((13, 3), (12, 2)):
        windows = mine.TextDataset(ids[:count].numpy().astype("uint16"), 4)
        expect(f"the length for {count} tokens and max_seq_len 4", windows.__len__(), length, {
            "the last target needs one token more": count // 4,
            "the windows overlap: one begins at every token": count - 4})
        cut = lambda step=4, ahead=1: [
            (ids[i : i + 4], ids[i + ahead :][:4]) for i in range(0, step * length, step)]
        items = [windows[i] for i in range(length)]
        expect("the windows", items, cut(), {
            "the targets are the inputs, not the tokens after them": cut(ahead=0),
            "the windows overlap: window i begins at i * max_seq_len": cut(step=1)})


def check_softmax(mine: ModuleType) -> None:
    x = randn(2, 3, 4)
    x = x - x.amax(-1, keepdim=True)  # so a slip is the same with the largest x subtracted and without
    expect("softmax(x)", mine.softmax(x.clone()), F.softmax(x, -1), {
        "the softmax is over the wrong axis: each row of the last axis must sum to 1": F.softmax(x, -2),
        "divided by the sum of everything": x.exp() / x.exp().sum(), "not divided by the sum": x.exp()})
    far = tensor([[1e3, 1e3], [-1e3, -1e3]])
    expect("softmax of 1000s and -1000s", mine.softmax(far), tensor([[0.5, 0.5]] * 2), {
        "exp(1000) is infinite: subtract the largest x first": far * torch.nan,
        "subtract the largest x of each row, not of all": tensor([[0.5, 0.5], [torch.nan, torch.nan]])})


def check_cross_entropy(mine: ModuleType) -> None:
    logits, targets = randn(2, 3, 5) * 2, tensor([[4, 0, 2], [1, 1, 3]])
    nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    expect("the loss", mine.cross_entropy(logits.clone(), targets), nats.mean(), {
        "the sign: the loss is minus the logarithm": -nats.mean(),
        "it is the sum, not the mean over all tokens": nats.sum(),
        "it is divided by B, not by the number of all tokens": nats.sum() / 2,
        "bits, not nats: take the natural logarithm": nats.mean() / tensor(2).log(),
        "the softmax is missing": -logits.gather(-1, targets[..., None]).mean()})
    loss = mine.cross_entropy(tensor([[[0.0, 1e3]]]), tensor([[0]]))
    expect("the loss at logits [0, 1000] of target 0", loss, tensor(1e3), {
        "exp(1000) is infinite: use logsumexp": tensor(torch.nan),
        "the logarithm of 0: use logsumexp": tensor(torch.inf)})


def check_norm(mine: ModuleType) -> None:
    module, w = randomized(mine.RMSNorm(4))
    for what, factor in (("RMSNorm(x)", 1), ("RMSNorm of a tiny x", 1e-5), ("RMSNorm of zeros", 0)):
        x, weight = randn(2, 3, 4) * factor, w["weight"]
        size = x.square().mean(-1, keepdim=True)
        expect(what, module(x.clone()), normed(x, weight), {
            "the weight is missing": normed(x), "the root is missing": x / (size + NORM_EPS) * weight,
            "the mean is subtracted, as LayerNorm does": normed(x - x.mean(-1, keepdim=True), weight),
            "the mean is over everything, not over the last axis":
                x / (x.square().mean() + NORM_EPS).sqrt() * weight,
            "the sum is taken, not the mean": x / (4 * size + NORM_EPS).sqrt() * weight,
            "eps is missing": x / size.sqrt() * weight,
            "eps is not NORM_EPS": x / (size + torch.finfo(x.dtype).eps).sqrt() * weight,
            "eps belongs inside the root": x / (size.sqrt() + NORM_EPS) * weight})


def check_rotary(mine: ModuleType) -> None:
    tables = lambda angle: (angle.cos(), angle.sin())
    cos, sin = tables(angles(5, 8))
    expect("rotary_tables(5, 8)", mine.rotary_tables(5, 8), (cos, sin), {
        "the positions must begin at 0": tables(angles(6, 8)[1:]),
        "the exponent of pair i must be -2i / head_size": tables(angles(5, 16)[:, :4]),
        "a pair turns together, so the tables must have one column for each pair":
            tables(angles(5, 8).repeat(1, 2))})
    x = randn(2, 3, 5, 8)
    a, b, even, odd = *x.chunk(2, -1), x[..., ::2], x[..., 1::2]
    expect("rotate(x, cos, sin)", mine.rotate(x.clone(), cos, sin), turned(x), {
        "it turns backwards: a must become a cos - b sin": turned(x, -1),
        "the minus is missing: a must become a cos - b sin":
            torch.cat((a * cos + b * sin, b * cos + a * sin), -1),
        "neighbouring features are paired: a pair must be i and i + d / 2, half a head apart": torch.stack(
            (even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)})


def check_attention(mine: ModuleType) -> None:
    q, k, v = randn(3, 2, 3, 5, 4)
    calls = (("attention(q, k, v)", 5), ("attention with q (B, H, 2, d), the last 2 of 5 positions", 2))
    for what, T in calls:
        q = q[:, :, -T:]
        late = attended(q, k, v, ahead=5)[1] * (attended(q, k, v)[1] > 0)
        expect(what, mine.attention(q.clone(), k.clone(), v.clone()), attended(q, k, v), {
            "the mask is off by one: a position sees the next": attended(q, k, v, ahead=1),
            "the mask is off by one: a position must see itself": attended(q, k, v, ahead=-1),
            "the mask is missing: a position sees its future": attended(q, k, v, ahead=5),
            "query t is at position S - T + t, so the mask must begin there": attended(q, k, v, ahead=T - 5),
            "the scale 1 / sqrt(d) is missing": attended(q, k, v, scale=0),
            "the softmax is over the wrong axis: the weights of a query must sum to 1":
                attended(q, k, v, axis=-2),
            "the mask comes after the softmax, so the weights of a query do not sum to 1": (late @ v, late),
            "a hidden score of 0 still has the weight e^0: use minus infinity":
                attended(q, k, v, hidden=1.0)})


def check_heads(mine: ModuleType) -> None:
    (module, w), x, tables = randomized(mine.Attention(12, 3)), randn(2, 5, 12), rotary_tables(5, 4)
    q, k, v = projected(w, x, 3)
    reshaped = lambda part: part.transpose(1, 2).reshape(part.shape)
    expect("project(x, cos, sin)", module.project(x.clone(), *tables), (q, k, v), {
        "queries and keys are not normalised": projected(w, x, 3, norm=same),
        "queries and keys are not turned": projected(w, x, 3, turn=lambda x: x),
        "the values must not be turned": (q, k, turned(v)),
        "reshape alone mixes positions: make it (B, T, H, d), then transpose": (
            *projected(w, x, 3, norm=lambda part, weight: normed(reshaped(part), weight))[:2], reshaped(v))})
    y = attended(q, k, v)[0]
    expect("Attention(x)", module(x.clone(), *tables), y.transpose(1, 2).flatten(2) @ w["o_proj"].T, {
        "o_proj is missing": y.transpose(1, 2).flatten(2),
        "transpose to (B, T, H, d) before the heads are laid side by side":
            y.reshape(2, 5, 12) @ w["o_proj"].T})


def check_mlp(mine: ModuleType) -> None:
    (module, w), x = randomized(mine.MLP(8)), randn(2, 3, 8)
    gate, up = (x @ w["gate_up_proj"].T).tensor_split(2, -1)
    right = gate / (1 + (-gate).exp()) * up
    expect("activations(x)", module.activations(x.clone()), right, {
        "silu is missing": gate * up, "up is missing": F.silu(gate),
        "gate and up are exchanged": gate * F.silu(up), "relu is in place of silu": gate.relu() * up,
        "that is the sigmoid; silu(x) is x * sigmoid(x)": gate.sigmoid() * up})
    expect("MLP(x)", module(x.clone()), right @ w["down_proj"].T, {"down_proj is missing": right})


def check_block(mine: ModuleType) -> None:
    (module, w), x, tables = randomized(mine.Block(12, 3, 1.0)), randn(2, 5, 12), rotary_tables(5, 4)
    none = lambda x, _: x * 0
    expect("Block(x)", module(x.clone(), *tables), block(w, x, 3), {
        "the residual stream is missing: add what each part finds to x":
            block(w, x, 3, streams=(none, none)),
        "what attention finds is not added to x": block(w, x, 3, streams=(none, same)),
        "what the MLP finds is not added to h": block(w, x, 3, streams=(same, none)),
        "what a part finds is added to norm(x): add it to x": block(w, x, 3, streams=(normed, normed)),
        "the norms are missing": block(w, x, 3, before=same),
        "the norms must come before attention and MLP, not after":
            block(w, x, 3, before=same, after=normed)})
    expect("Block(x) in training with dropout 1", module.train()(x.clone(), *tables), x, {
        "dropout is missing": block(w, x, 3),
        "dropout of what attention finds is missing":
            block(w | {"mlp.down_proj": w["mlp.down_proj"] * 0}, x, 3),
        "dropout of what the MLP finds is missing":
            block(w | {"attention.o_proj": w["attention.o_proj"] * 0}, x, 3)})


def check_model(mine: ModuleType) -> None:
    (module, w), ids = randomized(mine.LLM(7, 12, 3, 2, 5, 1.0)), tensor([[3, 1, 4, 1, 5], [6, 5, 0, 2, 2]])
    blocks = [{name[9:]: each for name, each in w.items() if name.startswith(f"blocks.{i}.")} for i in (0, 1)]
    first = block(blocks[0], w["embedding"][ids], 3)
    right = block(blocks[1], first, 3)
    expect("residual(input_ids)", module.residual(ids), right, {
        "dropout is for training alone: F.dropout() needs self.training": right * 0,
        "only one block is used": first,
        "each block must read what the one before it returns": block(blocks[1], w["embedding"][ids], 3)})
    logits = normed(right, w["norm"]) @ w["embedding"].T
    expect("logits(x)", module.logits(right), logits, {
        "the last norm is missing": right @ w["embedding"].T, "a softmax is applied": logits.softmax(-1)})
    expect("LLM(input_ids)", module(ids), logits, {
        "every position must predict, not only the last": logits[:, -1]})
    raised = "nothing"
    try:
        module(ids[:, [0, 0, 1, 2, 3, 4]])
    except Exception as error:
        raised = type(error).__name__
    expect("what LLM raises for 6 tokens if max_seq_len is 5", raised, "ValueError")
    module.requires_grad_(True)(ids).square().sum().backward()
    stuck = [name for name, each in module.named_parameters() if each.grad is None or not each.grad.any()]
    expect("the list of weights that get no gradient", stuck, [], {
        "detach(), no_grad(), .data or .item() is in the way": stuck})
    expect("residual(input_ids) in training with dropout 1", module.train().residual(ids), right * 0, {
        "dropout of the embedding is missing": w["embedding"][ids]})


def check_sample(mine: ModuleType) -> None:
    p = tensor([0.3, 0.1, 0.4, 0.2])
    ranked = p.sort(descending=True)[0]
    # How often each token is drawn from the `count` likeliest, with probabilities in proportion to p^power
    chances = lambda power, count=4: F.normalize(p**power * (p >= ranked[count - 1]), 1, dim=0)
    for options, right, slips in (
        ((0.0,), chances(1, 1), {}),
        ((1.0,), chances(1), {"the likeliest is always taken, not drawn": chances(1, 1)}),
        ((0.5,), chances(2), {
            "divide by the temperature": chances(0.5), "the temperature is not used": chances(1)}),
        ((1.0, 2), chances(1, 2), {
            "top_k keeps one too many": chances(1, 3), "top_k is not used": chances(1)}),
        ((1.0, 0, 0.6), chances(1, 2), {
            "the token that crosses top_p must stay": chances(1, 1), "top_p is not used": chances(1)}),
        ((0.5, 0, 0.5), chances(2, 1), {"the temperature must come before top_p": chances(2, 2)}),
        ((1.0, 3, 0.75), chances(1, 2), {
            "top_p is a share of what top_k leaves: make that sum to 1 again": chances(1, 3)}),
    ):
        generators = [torch.Generator().manual_seed(7) for _ in range(2)]
        draws = [mine.sample(p.log().repeat(3000, 1), *options, generator=each) for each in generators]
        for tokens in draws:
            expect("sample(logits (3000, 4), ...)", in_words(tokens), "a tensor (3000,)")
        slips["the place in sorted order is returned, not the token id"] = right.sort(descending=True)[0]
        shares = torch.bincount(draws[0], minlength=4) / 3000
        what = f"with (temperature, top_k, top_p) = {options}, the share of each token"
        expect(what, shares, right, slips, tolerance=0.04)
        expect("a second draw with the same generator", draws[1], draws[0])


def check_adam(mine: ModuleType) -> None:
    p = randn(2, 3)
    m = v = p * 0
    given, averages = [p.clone(), p.clone()], [(p * 0, p * 0), (p * 0, p * 0)]  # equal, with equal gradients
    for step, g in enumerate(randn(3, 2, 3), start=1):
        for each in given:
            each.grad = g.clone()
        mine.adam_step(given, averages, step, 0.1, (0.8, 0.9), 0.1)
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        m_hat, v_hat = m / (1 - 0.8**step), v / (1 - 0.9**step)
        right = p - 0.1 * m_hat / (v_hat.sqrt() + 0.1)
        for which, each in zip(("the first p", "the second p"), given):
            expect(f"{which} after step {step}", each, right, {
                "the bias of m and v is not corrected: divide by 1 - beta^step":
                    p - 0.1 * m / (v.sqrt() + 0.1),
                "the bias of m is not corrected": p - 0.1 * m / (v_hat.sqrt() + 0.1),
                "the bias of v is not corrected": p - 0.1 * m_hat / (v.sqrt() + 0.1),
                "the root of v is missing": p - 0.1 * m_hat / (v_hat + 0.1),
                "the step goes uphill: subtract it": p + 0.1 * m_hat / (v_hat.sqrt() + 0.1),
                "it has not changed: change every p, in place": p})
            expect(f"the grad of {which} after the step", each.grad, None, {
                "it is not reset, so the next backward() adds to it": g})
        p = right
