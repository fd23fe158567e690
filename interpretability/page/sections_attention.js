"use strict";
// Section 3: the attention weights of all heads, and the row of one query computed step by step.

const attention_parts = add_section(
  "attention",
  "3. Attention",
  "Attention moves information from earlier tokens to later ones. In each head, the query of a token is " +
    "compared with the keys of all tokens up to it. The better a key matches, the more of that token's " +
    "value is added. In a map, each row is a token with its query, and each column a token it attends to. " +
    "Choose a head and a token to see that row computed below. Switch a head off, and it adds nothing: the " +
    "prediction changes.",
  `softmax(Q Kᵀ / √${d}) V in each of ${H} heads in ${L} layers; Q, K, V (T, ${d}); Q Kᵀ (T, T)`,
  "two",
  "vectors",
  "worked",
);

// The maps

/** The weight of a head for query y and key x. */
function weight_of(layer, head) {
  return (x, y) => (x > y ? 0 : cache.layers[layer].weights[y][head][x]);
}

function draw_map(layer, head) {
  const T = state.ids.length;
  return paint(el("canvas", { width: T, height: T }), weight_of(layer, head));
}

function draw_maps() {
  const { layer, head } = state;
  const switch_text = state.ablated[layer][head] ? "switch on" : "switch off";
  const focused = document.activeElement.closest("#attention .grid button");
  const focused_label = focused && focused.getAttribute("aria-label");
  const grid = el("div", { class: "grid", style: `grid-template-columns: repeat(${H}, 1fr)` });
  for (let n = 0; n < L; n++) {
    for (let h = 0; h < H; h++) grid.append(map_button(n, h));
  }
  const switch_button = el("button", { id: "switch", onclick: toggle_head }, switch_text);
  const title = `${head_name(layer, head).replace("layer", "Layer")} `;
  attention_parts.two.replaceChildren(
    el("div", {}, legend("0", "1"), grid, el("p", {}, "One row per layer, one column per head.")),
    el("div", {}, el("p", {}, title, switch_button), ...large_map(layer, head)),
  );
  if (focused) grid.querySelector(`[aria-label="${focused_label}"]`).focus({ preventScroll: true });
}

/** Choose a head, for all sections. */
function choose_head(layer, head) {
  state.layer = layer;
  state.head = head;
  draw();
}

/** A small map, which chooses its head when it is clicked. */
function map_button(layer, head) {
  const attributes = {
    class: state.ablated[layer][head] ? "ablated" : "",
    "aria-pressed": String(layer === state.layer && head === state.head),
    title: head_name(layer, head),
    "aria-label": head_name(layer, head),
    onclick: () => choose_head(layer, head),
  };
  return el("button", attributes, draw_map(layer, head));
}

/** The large map, with the names of its rows, and a note that says the weight under the mouse. */
function large_map(layer, head) {
  const T = state.ids.length;
  const weight = weight_of(layer, head);
  const note = el("p", { class: "note" }, "Point at the map, or tap it, to read a weight.");
  const map = draw_map(layer, head);
  const cell = (event) => {
    const { left, top, width, height } = map.getBoundingClientRect();
    const index = (share) => Math.max(0, Math.min(T - 1, Math.floor(share * T)));
    return [index((event.clientX - left) / width), index((event.clientY - top) / height)];
  };
  const description = (event) => {
    const [x, y] = cell(event);
    return x > y
      ? `${label_at(y)} cannot see ${label_at(x)}, which comes later`
      : `${label_at(y)} attends to ${label_at(x)}: ${format_percent(weight(x, y))}`;
  };
  const attributes = {
    "aria-label": "the map of the chosen head",
    role: "img",
    onclick: (event) => {
      const text = description(event);
      choose(cell(event)[1]); // it draws the map anew
      document.querySelector("#attention .note").textContent = text;
    },
    onmousemove: (event) => (note.textContent = description(event)),
  };
  fill(map, attributes, []);

  const class_of = (y) => (y === state.at ? "chosen" : "");
  const name = (y) => el("div", { class: class_of(y), onclick: () => choose(y) }, label_at(y));
  const names = T > 32 ? [] : state.ids.map((_, y) => name(y)); // too small to read in a longer text
  const chosen_row = el("div", { class: "row", style: `top:${(100 * state.at) / T}%;height:${100 / T}%` });
  const named_map = el(
    "div",
    { class: "named" },
    el("div", { class: "names" }, ...names),
    el("div", { class: "large" }, map, chosen_row),
  );
  return [named_map, note];
}

/** Switch a head off, or on again. Head number H stands for the MLP of the layer. */
function toggle(layer, head) {
  state.ablated[layer][head] = !state.ablated[layer][head];
  cache = new Cache(L);
  run();
}

/** The same for the chosen head. */
function toggle_head() {
  toggle(state.layer, state.head);
  document.getElementById("switch").focus({ preventScroll: true });
}

// One row

function draw_head() {
  const layer = cache.layers[state.layer];
  const part = (x) => x.subarray(state.head * d, (state.head + 1) * d); // the features of the chosen head
  const query = part(layer.q[state.at]);
  const keys = layer.k.map(part);
  draw_query_and_keys(query, part(model.turned(layer.q[state.at], state.at, -1)), keys);
  draw_row(query, keys, layer.v.map(part), layer.weights[state.at][state.head]);
}

/** The query before and after it is turned, and the keys. */
function draw_query_and_keys(query, unturned, keys) {
  const at = state.at;
  const pairs = [0, 1, 2, 4, 8, 16, 32, 64].filter((i) => i < d / 2);
  const pair = (i, x) => [x[i], x[i + d / 2]];
  const angles = rotary_angles(at, d);
  const dials = pairs.map((i) => dial(i, pair(i, unturned), pair(i, query), angles[i]));
  const seen = keys.slice(0, at + 1); // later tokens' keys are not compared with
  const vectors = [unturned, query, ...seen];
  const names = ["query", "turned", ...seen.map((_, s) => "key " + label_at(s))];
  attention_parts.vectors.replaceChildren(
    el("p", {}, `The query of ${label_at(at)}, at position ${at}, and the keys it is compared with.`),
    el("p", {}, "Queries and keys are turned according to their position, so that a head can use the " +
      `distance between tokens. Features i and i + ${d / 2} form a pair, drawn as an arrow: dashed before ` +
      "it is turned, solid after. The first pairs turn fastest."),
    el("div", { class: "dials" }, ...dials),
    box("query and keys", 14, strips(vectors, names, largest(vectors), 1)),
  );
}

/** A pair of features of the query as an arrow, before (dashed) and after it is turned by an angle. */
function dial(i, before, after, angle) {
  const size = Math.hypot(...before) || 1;
  const turns = Math.abs(angle) / 2 / Math.PI;
  const arrow = ([a, b], style) => {
    const end = { x2: 50 + (42 * a) / size, y2: 50 - (42 * b) / size };
    return svg("line", { x1: 50, y1: 50, ...end, stroke: "currentColor", ...style });
  };
  const drawing = svg(
    "svg",
    { viewBox: "0 0 100 100", role: "img", "aria-label": `pair ${i}` },
    svg("circle", { cx: 50, cy: 50, r: 46, fill: "none", stroke: "currentColor", "stroke-opacity": 0.3 }),
    arrow(before, { "stroke-dasharray": "4 4", "stroke-width": 2 }),
    arrow(after, { "stroke-width": 5, stroke: "rgb(var(--above))" }),
  );
  return el("figure", {}, drawing, el("figcaption", {}, `pair ${i}: ${turns.toFixed(2)} turns`));
}

/** The row of the chosen token: from the products with the keys to the sum of the weighted values. */
function draw_row(query, keys, values, weights) {
  const at = state.at;
  const features = [0, 1, 2]; // of the values, the first three
  const lines = state.ids.map((_, s) => {
    const product = dot(query, keys[s]);
    const weight = weights[s] ?? 0; // 0 for later tokens
    return [
      label_at(s),
      String(s),
      format_number(product),
      format_number(product / Math.sqrt(d)),
      s > at ? "−∞" : "0",
      format_percent(weight),
      bar(weight),
      ...features.map((i) => format_number(weight * values[s][i])),
    ];
  });

  const mixed = new Float32Array(d);
  weights.forEach((weight, s) => values[s].forEach((value, i) => (mixed[i] += weight * value)));
  const sum = weights.reduce((a, b) => a + b);
  const mixed_features = features.map((i) => format_number(mixed[i]));
  lines.push(["sum", "", "", "", "", format_percent(sum), "", ...mixed_features]);

  const feature_names = features.map((i) => `weight · v[${i}]`);
  const head = ["key", "position", "q · k", "/ √d", "+ mask", "softmax", "", ...feature_names];
  attention_parts.worked.replaceChildren(
    el("p", {}, `The row of ${label_at(at)}, step by step.`),
    el("p", {}, `The product of query and key is divided by √${d}. The mask excludes later tokens. Softmax ` +
      "turns the scores into weights that sum to 1. Each value is multiplied by its weight; the table " +
      `shows the first three features of ${d}. The last line is their sum, the mixed values of the head.`),
    box("the row step by step", 18, table(lines, 0, head)),
  );
}
