"""A solution of the exercise in other words than llm.py."""

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
