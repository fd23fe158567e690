"use strict";
// Arithmetic on vectors and matrices for model.js, in plain loops.
// A matrix (rows, columns) is one Float32Array, row after row.

function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

/** The length of a vector. */
function norm(a) {
  return Math.sqrt(dot(a, a));
}

/**
 * weight (outputs, inputs) times each row of x (T, inputs): (T, outputs).
 *
 * Multiplies four rows of weight with two rows of x at a time, so each number read is used more than once:
 * twice as fast as one row at a time. Where fewer rows are left, the last one is computed again.
 */
function linear(x, weight, inputs) {
  const outputs = weight.length / inputs;
  const T = x.length / inputs;
  const y = new Float32Array(T * outputs);
  for (let row = 0; row < outputs; row += 4) {
    const [row0, row1, row2, row3] = [row, row + 1, row + 2, row + 3].map((r) => Math.min(r, outputs - 1));
    const [w0, w1, w2, w3] = [row0 * inputs, row1 * inputs, row2 * inputs, row3 * inputs]; // where rows begin
    for (let t = 0; t < T; t += 2) {
      const next = Math.min(t + 1, T - 1);
      const [xa, xb] = [t * inputs, next * inputs];
      let a0 = 0, a1 = 0, a2 = 0, a3 = 0; // products with row t of x
      let b0 = 0, b1 = 0, b2 = 0, b3 = 0; // products with the next row
      for (let i = 0; i < inputs; i++) {
        const a = x[xa + i], b = x[xb + i];
        const weight0 = weight[w0 + i], weight1 = weight[w1 + i];
        const weight2 = weight[w2 + i], weight3 = weight[w3 + i];
        a0 += a * weight0;
        a1 += a * weight1;
        a2 += a * weight2;
        a3 += a * weight3;
        b0 += b * weight0;
        b1 += b * weight1;
        b2 += b * weight2;
        b3 += b * weight3;
      }
      const [ya, yb] = [t * outputs, next * outputs];
      y[ya + row0] = a0;
      y[ya + row1] = a1;
      y[ya + row2] = a2;
      y[ya + row3] = a3;
      y[yb + row0] = b0;
      y[yb + row1] = b1;
      y[yb + row2] = b2;
      y[yb + row3] = b3;
    }
  }
  return y;
}

/** exp(score / temperature) over their sum. The largest score is subtracted first: exp cannot overflow. */
function softmax(scores, temperature = 1) {
  let largest = -Infinity;
  for (const score of scores) largest = Math.max(largest, score);
  const y = new Float32Array(scores.length);
  let sum = 0;
  for (let i = 0; i < y.length; i++) {
    const power = Math.exp((scores[i] - largest) / temperature);
    y[i] = power;
    sum += power;
  }
  for (let i = 0; i < y.length; i++) y[i] /= sum;
  return y;
}

/** Numbers from base64: type is Uint8Array, Uint16Array, Uint32Array or Float32Array. */
function from_base64(base64, type) {
  const text = atob(base64.trim());
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  return new type(bytes.buffer);
}

/** The value of each of the 65536 numbers of float16. */
function float16_table() {
  const table = new Float32Array(65536);
  for (let half = 0; half < 65536; half++) {
    const sign = half >> 15 ? -1 : 1;
    const exponent = (half >> 10) & 31;
    const fraction = half & 1023;
    const magnitude = exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24;
    table[half] = sign * magnitude;
  }
  return table;
}

/** The weights by name, from float16 numbers in the order of `tensors`: [[name, count, rows], ...]. */
function unpack_weights(base64, tensors) {
  const halves = from_base64(base64, Uint16Array);
  const table = float16_table();
  const weights = {};
  let at = 0;
  for (const [name, count] of tensors) {
    const values = new Float32Array(count);
    for (let i = 0; i < count; i++) values[i] = table[halves[at++]];
    weights[name] = values;
  }
  return weights;
}

/** The same from pack() in interpretability/snapshots.py: the scales of all rows, then all 8-bit numbers. */
function unpack_rows(base64, tensors) {
  const { buffer } = from_base64(base64, Uint8Array);
  const num_rows = tensors.reduce((sum, [, , rows]) => sum + rows, 0);
  const scales = new Float32Array(buffer, 0, num_rows);
  const numbers = new Int8Array(buffer, 4 * num_rows);
  const weights = {};
  let [at, row] = [0, 0];
  for (const [name, count, rows] of tensors) {
    const values = new Float32Array(count);
    const length = count / rows;
    for (let start = 0; start < count; start += length) {
      const scale = scales[row++];
      for (let i = start; i < start + length; i++) values[i] = scale * numbers[at++];
    }
    weights[name] = values;
  }
  return weights;
}
