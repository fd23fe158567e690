"use strict";
// Sections 4 to 6: the neurons, what each layer adds to the residual stream, and the prediction.

// 4. MLP

const mlp_parts = add_section(
  "mlp",
  "4. MLP",
  "After attention, the MLP works on each position alone. Each neuron compares the vector there with a " +
    "pattern. The better it matches, the more of the neuron's own vector is added. Below are the neurons " +
    "most active for the chosen token, in the layer of the chosen head, each with the places in a sample " +
    "of the training text where it is most active: at the token in bold. An activation far below 0 is as " +
    "strong as one far above it.",
  `down(silu(gate(x)) · up(x)): (T, ${D}) → (T, ${hidden}) → (T, ${D})`,
  "neurons",
);

// For each neuron of each layer, its most active places in a sample of training text, the most active first
const [, neurons_per_layer, places_per_neuron, context_length] = data.neurons.shape; // layers come first
const neuron_contexts = from_base64(data.neurons.contexts, Uint32Array); // token ids
const neuron_activations = from_base64(data.neurons.activations, Float32Array);

function draw_mlp() {
  const activations = cache.layers[state.layer].activations[state.at];
  const neurons = Array.from(activations.keys());
  neurons.sort((a, b) => Math.abs(activations[b]) - Math.abs(activations[a])); // the most active first
  const lines = neurons.slice(0, 6).flatMap((neuron) => neuron_lines(neuron, activations[neuron]));
  mlp_parts.neurons.replaceChildren(
    el("p", {}, `Layer ${state.layer + 1}, ${label_at(state.at)}.`),
    box("neurons", 0, table(lines, 18, ["neuron", "activation here", "activation there", "training text"])),
    el("p", { class: "legend" }, model === final_model ? "\u00a0" :
      "The places were found with the finished model, not with that of this step."),
  );
}

/** The places of a neuron in the text, a line each. The first also has the neuron and its activation here. */
function neuron_lines(neuron, activation) {
  const lines = [];
  for (let i = 0; i < places_per_neuron; i++) {
    const place = (state.layer * neurons_per_layer + neuron) * places_per_neuron + i;
    const ids = neuron_contexts.subarray(place * context_length, (place + 1) * context_length);
    const labels = Array.from(ids, (id) => tokenizer.label(id));
    const text = el("span", {}, labels.slice(0, -1).join(""), el("b", {}, labels.at(-1)));
    const [name, here] = i ? ["", ""] : [String(neuron), format_number(activation)];
    lines.push([name, here, format_number(neuron_activations[place]), text]);
  }
  return lines;
}

// 5. The residual stream

const stream_parts = add_section(
  "stream",
  "5. The residual stream",
  "The vector of a token passes through all layers, and each attention and each MLP adds a vector to it. " +
    "The map shows the length of each added vector for each token. The logit lens shows what the model " +
    "would predict if it ended after a given layer: read down to see the prediction form. The last row is " +
    "the prediction itself.",
  `x ← x + attention(norm(x)); x ← x + MLP(norm(x)), x (T, ${D}); lens: norm(x) · embeddingᵀ, (T, ${V})`,
  "sizes",
  "lens",
);

/** The logit lens at a position: the logits (V) after the embedding and after each layer. */
function logit_lens(position) {
  const vectors = [cache.embedding[position], ...cache.layers.map((layer) => layer.residual[position])];
  const stream = new Float32Array((L + 1) * D);
  vectors.forEach((vector, n) => stream.set(vector, n * D));
  const logits = model.logits(stream); // (L + 1, V)
  return vectors.map((_, n) => logits.subarray(n * V, (n + 1) * V));
}

/** lens: the logit lens at the chosen token. */
function draw_stream(lens) {
  const lengths = cache.layers.flatMap((layer) => [layer.attention.map(norm), layer.mlp.map(norm)]);
  const names = cache.layers.flatMap((_, n) => [`attention ${n + 1}`, `MLP ${n + 1}`]);
  const here = lengths.map((row, n) => `${names[n]} ${format_number(row[state.at])}`).join(", ");
  const strong = largest(lengths);
  stream_parts.sizes.replaceChildren(
    legend("0", format_number(strong)),
    strips(lengths, names, strong),
    el("p", { class: "note" }, `At ${label_at(state.at)}: ${here}.`),
  );

  const cell = ({ id, p }) => el("td", { style: shade(p) }, `${tokenizer.label(id)} ${format_percent(p)}`);
  const lines = lens.map((logits, n) => [
    n ? `layer ${n}` : "embedding",
    ...likeliest(logits, 5).map(cell),
  ]);
  const head = ["after", "likeliest", "2nd", "3rd", "4th", "5th"];
  stream_parts.lens.replaceChildren(box("logit lens", 0, table(lines, 0, head)));
}

// 6. Prediction

const prediction_parts = add_section(
  "prediction",
  "6. Prediction",
  "The chosen token's vector after the last layer is multiplied with the vector of every token, and " +
    "softmax turns the products into probabilities. A temperature below 1 sharpens them, one above 1 " +
    "flattens them. Top-k keeps the k likeliest tokens; top-p keeps the fewest tokens whose probabilities " +
    "sum to at least p. The next token is drawn from what is left.",
  `softmax(norm(x) · embeddingᵀ / temperature): (${D},) → (${V},)`,
  "sliders",
  "candidates",
);

function prediction() {
  return candidates(model.predict(cache, state.at), state.temperature, state.top_k, state.top_p);
}

function draw_prediction() {
  const choices = prediction();
  const lines = choices.slice(0, 12).map(({ id, p }) => [tokenizer.label(id), format_percent(p), bar(p)]);
  const noun = choices.length === 1 ? "token" : "tokens";
  prediction_parts.candidates.replaceChildren(
    table(lines, 12),
    el("p", {}, `After ${label_at(state.at)}; ${format_count(choices.length)} ${noun} to draw from.`),
  );
}

/** A slider that sets state[name]. */
function slider(name, text, min, max, step) {
  const shown = el("output", {}, String(state[name]));
  const oninput = (event) => {
    state[name] = Number(event.target.value);
    shown.textContent = String(state[name]);
    draw_prediction();
  };
  const input = el("input", { type: "range", id: name, min, max, step, value: state[name], oninput });
  return el("label", {}, text + " ", input, shown);
}

prediction_parts.sliders.append(
  slider("temperature", "temperature", 0, 2, 0.05),
  slider("top_k", "top-k (0: all)", 0, 100, 1),
  slider("top_p", "top-p", 0.05, 1, 0.05),
  el("button", { id: "draw", onclick: () => extend(1) }, "draw a token"),
  " ",
  el("button", { id: "continue", onclick: () => extend(30) }, "continue"),
);

let next_draw; // the frame that draws the next token

/** Append `count` tokens, drawn one per frame. Stops when the text is changed or the window is full. */
function extend(count, text = state.tokens) {
  cancelAnimationFrame(next_draw); // of a click before
  if (state.tokens !== text || state.ids.length >= max_seq_len) return;
  state.at = state.ids.length - 1;
  const id = pick(prediction());
  const piece = tokenizer.decode([id]);
  state.tokens.push({ id, piece: piece.includes("\ufffd") ? "" : piece }); // part of a character: no merges
  state.ids.push(id);
  state.at++;
  document.getElementById("text").value = tokenizer.decode(state.ids);
  run();
  if (count > 1) next_draw = requestAnimationFrame(() => extend(count - 1, text));
}
