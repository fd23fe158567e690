"use strict";
// The model of llm.py in JavaScript: the same names, in the same order.
// A Cache records all activations, for the page to show. Tokens that have not changed are not computed again.
//
// Shapes: T tokens, D = d_model, H heads of size d = D / H. A matrix (rows, columns) is one Float32Array.

const ROTARY_BASE = 10_000;
const NORM_EPS = 1e-6;

/** x / sqrt(mean(x²) + eps) * weight, for each row of x; a row is as long as weight. */
function rms_norm(x, weight) {
  const size = weight.length;
  const y = new Float32Array(x.length);
  for (let row = 0; row < x.length; row += size) {
    let squares = 0;
    for (let i = 0; i < size; i++) squares += x[row + i] * x[row + i];
    const scale = 1 / Math.sqrt(squares / size + NORM_EPS);
    for (let i = 0; i < size; i++) y[row + i] = x[row + i] * scale * weight[i];
  }
  return y;
}

/** The angle by which each pair of features turns at a position: (d / 2). */
function rotary_angles(position, head_size) {
  const angle_of = (_, i) => position * ROTARY_BASE ** ((-2 * i) / head_size);
  return Float64Array.from({ length: head_size / 2 }, angle_of);
}

/** Turn each pair (a, b) = (x[i], x[i + d/2]) to (a cos - b sin, b cos + a sin). direction -1: turn back. */
function rotate(x, cos, sin, direction = 1) {
  const half = x.length / 2;
  const y = new Float32Array(x.length);
  for (let i = 0; i < half; i++) {
    y[i] = x[i] * cos[i] - direction * x[i + half] * sin[i];
    y[i + half] = x[i + half] * cos[i] + direction * x[i] * sin[i];
  }
  return y;
}

function silu(x) {
  return x / (1 + Math.exp(-x));
}

/** The activations of the tokens read so far: in each list, one entry per position. */
class Cache {
  constructor(num_layers) {
    this.ids = [];
    this.embedding = []; // [position] (D)
    this.layers = Array.from({ length: num_layers }, () => ({
      q: [], // [position] (D), the heads side by side; normalised and turned, like k
      k: [],
      v: [],
      weights: [], // [position][head] (position + 1)
      mixed: [], // [position] (D), the mixed values of the heads, side by side
      attention: [], // [position] (D), what attention adds to the residual stream
      activations: [], // [position] (hidden), the neurons of the MLP
      mlp: [], // [position] (D), what the MLP adds to the residual stream
      residual: [], // [position] (D), the residual stream after the layer
    }));
  }

  /** Forget all tokens but the first `length`. */
  cut(length) {
    this.ids.length = length;
    this.embedding.length = length;
    for (const layer of this.layers) {
      for (const list of Object.values(layer)) list.length = length;
    }
  }

  /** Another cache, with the first `length` tokens of this one. */
  fork(length) {
    const other = new Cache(this.layers.length);
    other.ids = this.ids.slice(0, length);
    other.embedding = this.embedding.slice(0, length);
    this.layers.forEach((layer, n) => {
      for (const name in layer) other.layers[n][name] = layer[name].slice(0, length);
    });
    return other;
  }
}

class LLM {
  /** architecture: the arguments of LLM in llm.py. weights: the tensors of its state_dict by name. */
  constructor(architecture, weights) {
    Object.assign(this, architecture); // vocab_size, d_model, num_heads, num_layers, max_seq_len
    this.head_size = this.d_model / this.num_heads;
    this.embedding = weights["embedding.weight"]; // also the output layer
    this.norm_weight = weights["norm.weight"];
    this.blocks = Array.from({ length: this.num_layers }, (_, n) => ({
      attention_norm: weights[`blocks.${n}.attention_norm.weight`],
      qkv_proj: weights[`blocks.${n}.attention.qkv_proj.weight`],
      q_norm: weights[`blocks.${n}.attention.q_norm.weight`],
      k_norm: weights[`blocks.${n}.attention.k_norm.weight`],
      o_proj: weights[`blocks.${n}.attention.o_proj.weight`],
      mlp_norm: weights[`blocks.${n}.mlp_norm.weight`],
      gate_up_proj: weights[`blocks.${n}.mlp.gate_up_proj.weight`],
      down_proj: weights[`blocks.${n}.mlp.down_proj.weight`],
    }));
    this.hidden = this.blocks[0].down_proj.length / this.d_model;

    const positions = Array.from({ length: this.max_seq_len }, (_, position) => position);
    const angles = positions.map((position) => rotary_angles(position, this.head_size));
    this.cos = angles.map((row) => row.map(Math.cos)); // [position] (d / 2)
    this.sin = angles.map((row) => row.map(Math.sin));
  }

  /**
   * Read ids into the cache. Only the tokens from the first difference on are computed.
   *
   * ablated[layer][head]: whether a head adds nothing; [layer][H] is the MLP. A cache is for one such choice.
   * masked: a position that no later token may attend to. patch: {layer, head, from}, a head whose mixed
   * values are from another cache, at all positions; head H is the MLP. Throws RangeError beyond max_seq_len.
   */
  forward(ids, cache, ablated = [], masked = Infinity, patch = null) {
    if (ids.length > this.max_seq_len) {
      throw new RangeError(`${ids.length} tokens do not fit into ${this.max_seq_len}`);
    }
    const D = this.d_model;
    let start = 0;
    while (start < ids.length && ids[start] === cache.ids[start]) start++;
    cache.cut(start);
    const T = ids.length - start;
    if (!T) return cache;

    const x = new Float32Array(T * D); // (T, D), the residual stream
    for (let t = 0; t < T; t++) {
      const vector = this.vector(ids[start + t]);
      x.set(vector, t * D);
      cache.ids.push(ids[start + t]);
      cache.embedding.push(vector);
    }
    const add_to_stream = (y) => {
      for (let i = 0; i < x.length; i++) x[i] += y[i];
    };
    const record = (list, rows) => {
      for (let t = 0; t < T; t++) list[start + t] = rows.slice(t * D, (t + 1) * D);
    };
    this.blocks.forEach((block, n) => {
      const layer = cache.layers[n];
      const normed = rms_norm(x, block.attention_norm);
      const patched = patch?.layer === n ? { head: patch.head, from: patch.from.layers[n] } : null;
      const attention = this.attention(block, layer, normed, start, ablated[n] ?? [], masked, patched);
      record(layer.attention, attention);
      add_to_stream(attention);
      const mlp = this.mlp(block, layer, rms_norm(x, block.mlp_norm), start);
      if (ablated[n]?.[this.num_heads]) mlp.fill(0);
      if (patched?.head === this.num_heads) {
        for (let t = 0; t < T; t++) mlp.set(patched.from.mlp[start + t], t * D);
      }
      record(layer.mlp, mlp);
      add_to_stream(mlp);
      record(layer.residual, x);
    });
    return cache;
  }

  /** A token's vector: its row of the embedding matrix, (D). */
  vector(id) {
    return this.embedding.subarray(id * this.d_model, (id + 1) * this.d_model);
  }

  /** softmax(Q Kᵀ / √d) V for T tokens from `start` on, each with keys up to its own: (T, D) to (T, D). */
  attention(block, layer, x, start, ablated, masked, patched) {
    const { d_model: D, num_heads: H, head_size: d } = this;
    const T = x.length / D;
    const qkv = linear(x, block.qkv_proj, D); // (T, 3 D)
    const all_mixed = new Float32Array(T * D);
    for (let t = 0; t < T; t++) {
      const position = start + t;
      const part = (i) => qkv.subarray((3 * t + i) * D, (3 * t + i + 1) * D);
      layer.q[position] = this.turned(rms_norm(part(0), block.q_norm), position);
      layer.k[position] = this.turned(rms_norm(part(1), block.k_norm), position);
      layer.v[position] = part(2).slice();

      const mixed = new Float32Array(D);
      layer.weights[position] = [];
      for (let h = 0; h < H; h++) {
        const scores = this.scores(layer, h, position);
        if (masked < position) scores[masked] = -Infinity;
        const weights = softmax(scores);
        layer.weights[position][h] = weights;
        if (ablated[h]) continue; // its mixed values stay 0
        if (patched?.head === h) {
          mixed.set(patched.from.mixed[position].subarray(h * d, (h + 1) * d), h * d);
          continue;
        }
        for (let s = 0; s <= position; s++) {
          const value = layer.v[s];
          const weight = weights[s];
          for (let i = h * d; i < (h + 1) * d; i++) mixed[i] += weight * value[i];
        }
      }
      layer.mixed[position] = mixed;
      all_mixed.set(mixed, t * D);
    }
    return linear(all_mixed, block.o_proj, D);
  }

  /** The query of head h at a position times the keys up to there: q kᵀ / √d, (position + 1). */
  scores(layer, h, position) {
    const d = this.head_size;
    const scale = d ** -0.5;
    const q = layer.q[position];
    const scores = new Float32Array(position + 1);
    for (let s = 0; s <= position; s++) {
      const k = layer.k[s];
      let sum = 0;
      for (let i = h * d; i < (h + 1) * d; i++) sum += q[i] * k[i];
      scores[s] = sum * scale;
    }
    return scores;
  }

  /** rotate() for every head of x (D). */
  turned(x, position, direction = 1) {
    const y = new Float32Array(x.length);
    for (let at = 0; at < x.length; at += this.head_size) {
      const head = x.subarray(at, at + this.head_size);
      y.set(rotate(head, this.cos[position], this.sin[position], direction), at);
    }
    return y;
  }

  /** SwiGLU: down(silu(gate(x)) * up(x)), (T, D) to (T, D). Records the activations of the neurons. */
  mlp(block, layer, x, start) {
    const { d_model: D, hidden } = this;
    const T = x.length / D;
    const gate_up = linear(x, block.gate_up_proj, D); // (T, 2 hidden)
    const activations = new Float32Array(T * hidden);
    for (let t = 0; t < T; t++) {
      const gate = 2 * t * hidden; // where the gates of position t begin
      const up = gate + hidden;
      for (let i = 0; i < hidden; i++) {
        activations[t * hidden + i] = silu(gate_up[gate + i]) * gate_up[up + i];
      }
      layer.activations[start + t] = activations.subarray(t * hidden, (t + 1) * hidden);
    }
    return linear(activations, block.down_proj, hidden);
  }

  /** The output layer: residual stream (..., D) to logits (..., vocab_size). */
  logits(residual) {
    return linear(rms_norm(residual, this.norm_weight), this.embedding, this.d_model);
  }

  /** The logits of the token after `position`. */
  predict(cache, position) {
    return this.logits(cache.layers.at(-1).residual[position]);
  }

  /** What head h adds to the residual stream: its own columns of o_proj times its mixed values, (D). */
  head_output(block, layer, h, position) {
    const { d_model: D, head_size: d } = this;
    const mixed = layer.mixed[position];
    const y = new Float32Array(D);
    for (let row = 0; row < D; row++) {
      for (let i = h * d; i < (h + 1) * d; i++) y[row] += block.o_proj[row * D + i] * mixed[i];
    }
    return y;
  }
}

/** The tokens that sample() of llm.py draws from, the likeliest first: [{id, p}], with p as it draws them. */
function candidates(logits, temperature, top_k = 0, top_p = 1) {
  const order = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a]);
  if (temperature === 0) return [{ id: order[0], p: 1 }];
  const chosen = top_k ? order.slice(0, top_k) : order;
  const probabilities = softmax(chosen.map((id) => logits[id]), temperature);

  let total = 0;
  let count = 0;
  while (count < chosen.length && (count === 0 || total < top_p || top_p >= 1)) {
    total += probabilities[count];
    count++;
  }
  return chosen.slice(0, count).map((id, i) => ({ id, p: probabilities[i] / total }));
}

/** The `count` likeliest tokens, the likeliest first: [{id, p}]. */
function likeliest(logits, count) {
  const p = softmax(logits);
  const least = logits.slice().sort().at(-count);
  const ids = Array.from(p.keys()).filter((id) => logits[id] >= least);
  ids.sort((a, b) => logits[b] - logits[a]);
  return ids.slice(0, count).map((id) => ({ id, p: p[id] }));
}

/** Draw the id of one of the candidates, each with its probability. */
function pick(choices) {
  let left = Math.random();
  for (const { id, p } of choices) {
    left -= p;
    if (left < 0) return id;
  }
  return choices[0].id; // the probabilities add up to slightly less than 1
}
