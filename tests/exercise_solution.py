"""A solution of the exercise in other words than llm.py, and the slips that its checks name."""

# What stands in place of each ... of the stubs, in their order
SOLUTION = """
counts = Counter()
for piece in pieces:
    counts.update(zip(piece, piece[1:]))
pair = max(counts, key=counts.get)
merged = []
for piece in pieces:
    tokens = []
    for token in piece:
        if tokens and (tokens[-1], token) == pair:
            tokens[-1] += token
        else:
            tokens.append(token)
    merged.append(tokens)
return pair, merged
---
return max(0, (len(self.tokens) - 1) // self.max_seq_len)
---
begin = index * self.max_seq_len
window = torch.tensor(self.tokens[begin : begin + self.max_seq_len + 1].astype(np.int64))
return window[:-1], window[1:]
---
powers = torch.exp(x - x.max(dim=-1, keepdim=True).values)
return powers / powers.sum(dim=-1, keepdim=True)
---
shifted = logits - logits.amax(dim=-1, keepdim=True)
log_shares = shifted - torch.log(shifted.exp().sum(dim=-1, keepdim=True))
of_targets = torch.take_along_dim(log_shares, targets.unsqueeze(-1), dim=-1)
return -of_targets.mean()
---
mean_square = (x * x).mean(dim=-1, keepdim=True)
return self.weight * (x / torch.sqrt(mean_square + NORM_EPS))
---
pair = torch.arange(head_size // 2)
speed = torch.exp(-math.log(ROTARY_BASE) * 2 * pair / head_size)
angle = torch.arange(length).unsqueeze(1) * speed
return torch.cos(angle), torch.sin(angle)
---
half = x.shape[-1] // 2
a, b = x[..., :half], x[..., half:]
return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
---
scores = torch.einsum("bhtd,bhsd->bhts", q, k) / math.sqrt(q.shape[-1])
key_place = torch.arange(k.shape[2], device=k.device)
query_place = key_place[-q.shape[2] :].unsqueeze(1)
scores = scores.masked_fill(key_place > query_place, -math.inf)
weights = softmax(scores)
return torch.einsum("bhts,bhsd->bhtd", weights, v), weights
---
parts = self.qkv_proj(x).chunk(3, dim=-1)
q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
q, k = self.q_norm(q), self.k_norm(k)
return rotate(q, cos, sin), rotate(k, cos, sin), v
---
mixed, _ = attention(*self.project(x, cos, sin))
B, H, T, d = mixed.shape
return self.o_proj(mixed.permute(0, 2, 1, 3).reshape(B, T, H * d))
---
gate, up = self.gate_up_proj(x).tensor_split(2, dim=-1)
return gate * torch.sigmoid(gate) * up
---
return self.down_proj(self.activations(x))
---
found = self.attention(self.attention_norm(x), cos, sin)
middle = x + self.dropout(found)
return middle + self.dropout(self.mlp(self.mlp_norm(middle)))
---
return self.logits(self.residual(input_ids))
---
stream = F.dropout(self.embedding(input_ids), self.dropout, self.training)
cos, sin = self.rotary(0, input_ids.shape[1])
for layer in self.blocks:
    stream = layer(stream, cos, sin)
return stream
---
return self.norm(x) @ self.embedding.weight.t()
---
if temperature == 0:
    return logits.argmax(dim=-1)
scores, tokens = torch.sort(logits, dim=-1, descending=True)
if top_k:
    scores, tokens = scores[:, :top_k], tokens[:, :top_k]
shares = softmax(scores / temperature)
before = shares.cumsum(dim=-1) - shares
shares = torch.where(before < top_p, shares, 0.0)
place = torch.multinomial(shares, 1, generator=generator)
return torch.take_along_dim(tokens, place, dim=-1)[:, 0]
---
for p, (m, v) in zip(parameters, averages):
    m.copy_(betas[0] * m + (1 - betas[0]) * p.grad)
    v.copy_(betas[1] * v + (1 - betas[1]) * p.grad**2)
    m_hat = m / (1 - betas[0] ** step)
    v_hat = v / (1 - betas[1] ** step)
    p.sub_(rate * m_hat / (v_hat.sqrt() + eps))
    p.grad = None
"""

# The step, what a learner writes otherwise, and what the check says about it
SLIPS = [
    ("merge", "counts.update(zip(piece, piece[1:]))",
     "counts.update(zip(sum(pieces, []), sum(pieces, [])[1:]))", "across the end"),
    ("merge", "max(counts, key=counts.get)", "max(reversed(counts), key=counts.get)", "the last is taken"),
    ("merge", "if tokens and (", "if not any(''.join(pair) in t for t in tokens) and tokens and (",
     "only the first place"),
    ("merge", "key=counts.get", "key=lambda pair: (counts[pair], pair)",
     "merge of the letters of 'да ода год' at [0][0] is о, expected д"),
    ("windows", "(len(self.tokens) - 1)", "len(self.tokens)", "the last target needs one token more"),
    ("windows", "window[:-1], window[1:]", "window[:-1], window[:-1]", "the targets are the inputs"),
    ("windows", "begin = index * self.max_seq_len", "begin = index", "the windows overlap"),
    ("windows", ".astype(np.int64)", ".astype(np.int32)", "torch.int32"),
    ("windows", "return max(", "max(", "is None, expected 3\nlikely: a return is missing"),
    ("windows", "- 1) // self", "- 1) / self", "12 tokens and max_seq_len 4 is 2.75, expected 2"),
    ("windows", "return window[", "window[", "(a tensor (4,), a tensor (4,))\nlikely: a return is missing"),
    ("windows", "window[1:]", "window[1:], window", "the windows at [0] is (a tensor (4,), a tensor (4,), a"),
    ("softmax", "powers.sum(dim=-1,", "powers.sum(dim=-2,", "each row of the last axis must sum to 1"),
    ("softmax", "powers.sum(dim=-1, keepdim=True)", "powers.sum()", "the sum of everything"),
    ("softmax", "x - x.max(dim=-1, keepdim=True).values", "x", "subtract the largest x"),
    ("cross_entropy", "-of_targets.mean()", "-of_targets.sum()", "the sum, not the mean"),
    ("cross_entropy", "-of_targets.mean()", "of_targets.mean()", "the sign"),
    ("cross_entropy", "-of_targets.mean()", "-of_targets.mean() / math.log(2)", "bits, not nats"),
    ("cross_entropy", "-of_targets.mean()", "-of_targets.sum() / len(targets)", "divided by B"),
    ("cross_entropy", "logits - logits.amax(dim=-1, keepdim=True)", "logits", "use logsumexp"),
    ("norm", "self.weight * (x /", "(x /", "the weight is missing"),
    ("norm", "mean_square = (", "x = x - x.mean(dim=-1, keepdim=True)\nmean_square = (", "LayerNorm"),
    ("norm", "mean(dim=-1, keepdim=True)", "mean()", "the mean is over everything"),
    ("norm", "(x * x).mean(", "(x * x).sum(", "the sum is taken, not the mean"),
    ("norm", "mean_square + NORM_EPS", "mean_square + torch.finfo(x.dtype).eps", "eps is not NORM_EPS"),
    ("norm", "mean_square = (", "return F.rms_norm(x, (x.shape[-1],), self.weight)\nmean_square = (",
     "RMSNorm of a tiny x at [0, 0, 0] is"),
    ("norm", "torch.sqrt(mean_square + NORM_EPS)", "(mean_square + NORM_EPS)", "the root is missing"),
    ("norm", "mean_square + NORM_EPS", "mean_square", "eps is missing"),
    ("norm", "torch.sqrt(mean_square + NORM_EPS)", "(torch.sqrt(mean_square) + NORM_EPS)",
     "eps belongs inside"),
    ("rotary", "torch.cos(angle), torch.sin(angle)",
     "torch.cos(angle).repeat(1, 2), torch.sin(angle).repeat(1, 2)", "must have one column for each pair"),
    ("rotary", "torch.cos(angle), torch.sin(angle)", "torch.cos(angle), torch.sin(angle), angle",
     "is (a tensor (5, 4), a tensor (5, 4), a tensor (5, 4)), expected (a tensor (5, 4), a tensor (5, 4))"),
    ("rotary", "torch.arange(length)", "torch.arange(1, length + 1)", "must begin at 0"),
    ("rotary", "* 2 * pair", "* pair", "must be -2i / head_size"),
    ("rotary", "a * cos - b * sin, b * cos + a * sin", "a * cos + b * sin, b * cos - a * sin",
     "a must become a cos - b sin"),
    ("rotary", "a * cos - b * sin", "a * cos + b * sin", "the minus is missing: a must become"),
    ("rotary", "a, b = x[..., :half], x[..., half:]\n"
     "return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)",
     "a, b = x[..., ::2], x[..., 1::2]\n"
     "return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)",
     "a pair must be i and i + d / 2"),
    ("attention", "key_place > query_place", "key_place > query_place + 1", "a position sees the next"),
    ("attention", "key_place > query_place", "key_place >= query_place", "a position must see itself"),
    ("attention", " / math.sqrt(q.shape[-1])", "", "the scale 1 / sqrt(d) is missing"),
    ("attention", "softmax(scores)", "scores.softmax(dim=-2)", "the weights of a query must sum to 1"),
    ("attention", "key_place > query_place", "key_place > math.inf", "the mask is missing"),
    ("attention", "key_place[-q.shape[2] :]", "key_place[: q.shape[2]]", "the mask must begin there"),
    ("attention", ", -math.inf)", ", 0)", "use minus infinity"),
    ("attention", "scores = scores.masked_fill(key_place > query_place, -math.inf)\n"
     "weights = softmax(scores)",
     "weights = softmax(scores).masked_fill(key_place > query_place, 0)", "the mask comes after the softmax"),
    ("attention", "v), weights", "v)",
     "is a tensor (2, 3, 5, 4), expected (a tensor (2, 3, 5, 4), a tensor (2, 3, 5, 5))"),
    ("attention", "v), weights", "v), weights, weights", "5), a tensor (2, 3, 5, 5)), expected (a tensor"),
    ("attention", "v), weights", "v), weights.double()", "[1] is of type torch.float64, expected"),
    ("heads", "self.q_norm(q), self.k_norm(k)", "q, k", "not normalised"),
    ("heads", "rotate(q, cos, sin), rotate(k, cos, sin), v", "q, k, v", "not turned"),
    ("heads", "cos, sin), v", "cos, sin), rotate(v, cos, sin)", "the values must not be turned"),
    ("heads", "part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)",
     "part.reshape(len(x), self.num_heads, x.shape[1], -1)", "reshape alone mixes positions"),
    ("heads", "cos, sin), v", "cos, sin)", "is (a tensor (2, 3, 5, 4), a tensor (2, 3, 5, 4)), expected"),
    ("heads", "mixed.permute(0, 2, 1, 3).reshape", "mixed.reshape", "before the heads are laid side by side"),
    ("heads", "self.o_proj(mixed", "(mixed", "o_proj is missing"),
    ("mlp", "gate * torch.sigmoid(gate)", "gate", "silu is missing"),
    ("mlp", "gate, up = self", "up, gate = self", "exchanged"),
    ("mlp", "gate * torch.sigmoid(gate)", "torch.sigmoid(gate)", "that is the sigmoid"),
    ("mlp", "gate * torch.sigmoid(gate)", "torch.relu(gate)", "relu is in place of silu"),
    ("mlp", "torch.sigmoid(gate) * up", "torch.sigmoid(gate)", "up is missing"),
    ("block", "found = self.attention(self.attention_norm(x), cos, sin)\n"
     "middle = x + self.dropout(found)\nreturn middle +",
     "middle = self.dropout(self.attention(self.attention_norm(x), cos, sin))\nreturn",
     "the residual stream is missing"),
    ("block", "found = self", "x = self.attention_norm(x + self.attention(x, cos, sin))\n"
     "return self.mlp_norm(x + self.mlp(x))\nfound = self", "must come before attention and MLP"),
    ("block", "found = self", "x = x + self.attention(x, cos, sin)\nreturn x + self.mlp(x)\nfound = self",
     "the norms are missing"),
    ("block", "self.dropout(", "(", "dropout is missing"),
    ("block", "x + self.dropout", "self.dropout", "what attention finds is not added to x"),
    ("block", "middle + self.dropout", "self.dropout", "what the MLP finds is not added to h"),
    ("block", "found = self", "x = self.attention_norm(x)\n"
     "h = self.mlp_norm(x + self.attention(x, cos, sin))\nreturn h + self.mlp(h)\nfound = self",
     "added to norm(x)"),
    ("block", "self.dropout(found)", "found", "dropout of what attention finds is missing"),
    ("block", "self.dropout(self.mlp", "(self.mlp", "dropout of what the MLP finds is missing"),
    ("model", "for layer in self.blocks:", "for layer in self.blocks[:1]:", "only one block is used"),
    ("model", "    stream = layer(stream, cos, sin)\nreturn stream",
     "    out = layer(stream, cos, sin)\nreturn out", "each block must read"),
    ("model", "F.dropout(self.embedding(input_ids), self.dropout, self.training)",
     "self.embedding(input_ids)", "dropout of the embedding is missing"),
    ("model", "self.dropout, self.training)", "self.dropout)", "dropout is for training alone"),
    ("model", "self.norm(x) @", "x @", "the last norm is missing"),
    ("model", "self.norm(x) @ self.embedding.weight.t()", "softmax(self.norm(x) @ self.embedding.weight.t())",
     "a softmax is applied"),
    ("model", "self.residual(input_ids))", "self.residual(input_ids)[:, -1])",
     "must predict, not only the last"),
    ("model", "self.rotary(0, input_ids.shape[1])", "self.rotary(1, input_ids.shape[1] + 1)",
     "6 tokens do not fit"),
    ("model", "stream = F.dropout",
     "if input_ids.shape[1] >= self.max_seq_len:\n    raise ValueError('full')\nstream = F.dropout",
     "ValueError: full"),
    ("model", "stream = F.dropout", "input_ids = input_ids[:, : self.max_seq_len]\nstream = F.dropout",
     "what LLM raises for 6 tokens if max_seq_len is 5 is nothing, expected ValueError"),
    ("model", "self.rotary(0, input_ids.shape[1])", "(t[: input_ids.shape[1]] for t in (self.cos, self.sin))",
     "if max_seq_len is 5 is RuntimeError, expected ValueError"),
    ("model", "softmax(scores)", "softmax(scores.detach())", "q_norm.weight"),
    ("model", "return self.down_proj(", "with torch.no_grad(): return self.down_proj(", "no_grad()"),
    ("model", "powers = torch.exp(x - x.max(dim=-1, keepdim=True).values)",
     "powers = torch.from_numpy(np.exp(x.numpy()))", "Can't call numpy()"),
    ("model", "found = self", "x += self.attention(self.attention_norm(x), cos, sin)\n"
     "x += self.mlp(self.mlp_norm(x))\nreturn x\nfound = self", "modified by an inplace operation"),
    ("sample", "scores / temperature", "scores * temperature", "divide by the temperature"),
    ("sample", "scores / temperature", "scores", "the temperature is not used"),
    ("sample", "scores[:, :top_k], tokens[:, :top_k]", "scores[:, : top_k + 1], tokens[:, : top_k + 1]",
     "one too many"),
    ("sample", "before < top_p", "before + shares <= top_p", "the token that crosses top_p must stay"),
    ("sample", "torch.take_along_dim(tokens, place, dim=-1)", "place", "the place in sorted order"),
    ("sample", "generator=generator", "generator=None", "the same generator"),
    ("sample", "torch.multinomial(shares, 1, generator=generator)", "shares.argmax(-1, keepdim=True)",
     "not drawn"),
    ("sample", "before = shares.cumsum(dim=-1) - shares",
     "before = softmax(scores).cumsum(dim=-1) - softmax(scores)", "the temperature must come before top_p"),
    ("sample", "return torch.take", "torch.take",
     "is None, expected a tensor (3000,)\nlikely: a return is missing"),
    ("sample", "dim=-1)[:, 0]", "dim=-1)[:, 0].tolist()", "expected a tensor (3000,)"),
    ("sample", "    scores, tokens = scores[:, :top_k], tokens[:, :top_k]\n"
     "shares = softmax(scores / temperature)",
     "    tokens = tokens[:, :top_k]\nshares = softmax(scores / temperature)[:, : top_k or None]",
     "top_p is a share of what top_k leaves"),
    ("adam", "m_hat = m / (1 - betas[0] ** step)\n    v_hat = v / (1 - betas[1] ** step)",
     "m_hat, v_hat = m, v", "bias of m and v"),
    ("adam", "m_hat = m / (1 - betas[0] ** step)", "m_hat = m", "the bias of m is not corrected"),
    ("adam", "v_hat = v / (1 - betas[1] ** step)", "v_hat = v", "the bias of v is not corrected"),
    ("adam", "v_hat.sqrt()", "v_hat", "the root of v is missing"),
    ("adam", "p.sub_(", "p.add_(", "uphill"),
    ("adam", "p.grad = None", "pass", "the next backward() adds to it"),
    ("adam", "    p.grad = None", "p.grad = None", "the next backward() adds to it"),
    ("adam", "    p.grad = None", "    p.grad = None\n    return", "change every p"),
    ("adam", "p.sub_(rate", "p = p - (rate", "in place"),
]  # fmt: skip
