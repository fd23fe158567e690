"use strict";
// The whole model in one drawing, at the chosen token: tokens at the bottom, layers above, prediction on top.
// Orange: how much a part writes, or how likely a token is. Blue: the chosen token and its residual stream.

const drawing_parts = add_section(
  "drawing",
  "The whole model",
  "Read it from the bottom up. The chosen token becomes a vector, the blue line, and rises through the " +
    "layers. Heads look at earlier tokens and add what they find; the MLP works on this one vector and " +
    "adds to it. The longer a bar, the more is added. Point at a part to read what it does, and click it " +
    "to go to its section. The sign beside a head or an MLP switches it off " +
    "(on the keyboard: the space bar).",
  "x = embedding[id]; x ← x + Σ heads; x ← x + MLP; p(next) = softmax(norm(x) · embeddingᵀ)",
  "whole",
);
const sentence = el("p", { class: "sentence", dir: "auto" });
const picture = el("div");
const note = el("p", { class: "said", "aria-live": "polite" });
drawing_parts.whole.append(sentence, picture, note);
drawing_parts.whole.parentElement.children[0].after(drawing_parts.whole); // before the explanation

const ROWS = 5; // tokens in the prediction
const TOP = 134; // height of the prediction
const BOTTOM = 116; // height of the embedding and the tokens
const GAP = 8; // between two layers
const LABEL_LETTERS = 11;

/** Where things are, for a drawing of some width, in pixels. */
function layout_of(width) {
  const narrow = width < 700;
  const bar = narrow ? 44 : 118; // length of the longest bar
  const spine = width - (narrow ? 122 : 310);
  const lane = H <= 4 ? 19 : H <= 8 ? 16 : 13; // height of a head
  const slab = Math.max(78, 24 + H * lane); // height of a layer
  const boxes = spine - 16 - bar;
  const columns = boxes - (narrow ? 26 : 34); // the right end of the token columns
  const height = TOP + L * (slab + GAP) + BOTTOM;
  return { width, narrow, bar, spine, lane, slab, boxes, columns, tokens_top: height - BOTTOM + 44, height };
}

/** The positions with a column: all if they fit, else the first and those up to the chosen one; -1: a gap. */
function shown_positions(count) {
  const T = state.ids.length;
  if (T <= count) return Array.from({ length: T }, (_, s) => s);
  if (state.at < count - 1) return [...Array(count - 1).keys(), -1];
  return [0, -1, ...Array.from({ length: count - 2 }, (_, i) => state.at - count + 3 + i)];
}

/**
 * What each part does at the chosen token: for each layer, the heads' weights and how much each part adds.
 * `strongest` is what the longest bar stands for: the part that adds most, or the embedding if it is longer.
 */
function measure_parts() {
  const layers = cache.layers.map((layer, n) => ({
    heads: layer.weights[state.at].map((weights, h) => {
      const written = norm(model.head_output(model.blocks[n], layer, h, state.at));
      return { weights, most: weights.indexOf(Math.max(...weights)), written };
    }),
    mlp: norm(layer.mlp[state.at]),
  }));
  const all = layers.flatMap(({ heads, mlp }) => [mlp, ...heads.map(({ written }) => written)]);
  return { layers, strongest: Math.max(norm(cache.embedding[state.at]), ...all) || 1 };
}

/** A token as it is shown, cut to some letters. */
function short_label(id, letters = LABEL_LETTERS) {
  const label = tokenizer.label(id);
  return label.length > letters ? label.slice(0, letters - 1) + "…" : label;
}

function words(x, y, text, more = {}) {
  return svg("text", { x, y, "font-size": 12, fill: "currentColor", ...more }, text);
}

/** A horizontal line. */
function line(x1, x2, y, more) {
  return svg("line", { x1, x2, y1: y, y2: y, ...more });
}

/** A part of the drawing that can be pointed at, clicked and focused. name: as parse_part() reads it. */
function part(name, label, ...children) {
  const attributes = { class: "part", "data-part": name, tabindex: 0, role: "button", "aria-label": label };
  return svg("g", attributes, ...children);
}

let shown = null; // what the last drawing shows

/** Draw all. lens: the logit lens at the chosen token. */
function draw_drawing(lens) {
  const width = Math.floor(drawing_parts.whole.clientWidth);
  if (!width) return;
  const at = layout_of(width);
  drawing_parts.whole.classList.toggle("narrow", at.narrow);
  const parts = measure_parts();
  const count = Math.floor((at.columns - 12) / (at.narrow ? 14 : 20));
  const positions = shown_positions(count);
  const spacing = Math.min(at.narrow ? 40 : 110, (at.columns - 12) / positions.length);
  const column_of = (s) => {
    const i = positions.indexOf(s);
    return 12 + spacing * (i < 0 ? positions.indexOf(-1) : i);
  };
  const guesses = lens.map((logits) => likeliest(logits, ROWS)); // after the embedding and after each layer
  shown = { at, parts, guesses, positions, column_of, spacing };

  const focused = document.activeElement.closest("#drawing .part")?.dataset.part;
  const style = `height:${at.height}px`;
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${at.height}`, class: "model", style });
  for (let n = 0; n < L; n++) drawing.append(slab_of(n));
  drawing.append(...columns(), spine());
  for (let n = 0; n < L; n++) {
    for (let h = 0; h < H; h++) drawing.append(head_part(n, h));
    drawing.append(mlp_part(n), guess_part(n + 1));
  }
  drawing.append(guess_part(0), embedding_part(), ...token_parts_of(), answer_part());
  picture.replaceChildren(drawing);
  if (focused) drawing.querySelector(`[data-part="${focused}"]`)?.focus({ preventScroll: true });
  if (pointed && !drawing.querySelector(`[data-part="${pointed}"]`)) pointed = null; // as a deleted token's
  compare_soon();
  draw_note();
}

// Where layers and heads are; layer 0 is the lowest

function slab_top(n) {
  const { at } = shown;
  return TOP + (L - 1 - n) * (at.slab + GAP);
}

function lane_y(n, h) {
  const { at } = shown;
  return slab_top(n) + 21 + at.lane * (h + 0.5);
}

function slab_of(n) {
  const { at } = shown;
  const y = slab_top(n);
  return svg(
    "g",
    {},
    svg("rect", { x: 0, y, width: at.width, height: at.slab, rx: 8, class: "slab" }),
    words(10, y + 15, `layer ${n + 1}`, { class: "quiet", "font-weight": 700 }),
  );
}

/** A line for each token, from the bottom up through all layers: its own residual stream. */
function columns() {
  const { at, positions, column_of } = shown;
  return positions.map((s) => {
    const x = column_of(s);
    const state_class = s < 0 ? "gap" : s === state.at ? "chosen" : s > state.at ? "later" : "";
    return svg("line", { x1: x, x2: x, y1: TOP + 24, y2: at.tokens_top, class: `column ${state_class}` });
  });
}

/** The chosen token's residual stream: from its column through embedding and layers to the prediction. */
function spine() {
  const { at, column_of } = shown;
  const turn = at.tokens_top - 20;
  const path = `M${column_of(state.at)},${at.tokens_top} V${turn} H${at.spine} V${TOP - 6}`;
  const tip = `M${at.spine - 9},${TOP - 4} h18 l-9,-13 z`;
  return part(
    "stream",
    "the residual stream",
    svg("path", { d: path, class: "wide" }),
    svg("path", { d: path, class: "spine" }),
    svg("path", { d: tip, class: "tip" }),
  );
}

// The parts

/** The switch of a head or an MLP. */
function power(x, y) {
  return svg(
    "g",
    { class: "power", transform: `translate(${x},${y})` },
    svg("circle", { r: 10, class: "hit" }),
    svg("path", { d: "M-3,-3.2 A4.4,4.4 0 1 0 3,-3.2 M0,-5.6 V-0.6" }),
  );
}

/** A box with a bar, from the spine's side: as long as the share that the part writes of the strongest. */
function bar_box(x, y, height, share, leftward, name) {
  const { bar } = shown.at;
  const length = bar * share;
  return svg(
    "g",
    {},
    svg("rect", { x, y, width: bar, height, rx: 4, class: "frame" }),
    svg("rect", { x: leftward ? x + bar - length : x, y, width: length, height, rx: 4, class: "amount" }),
    words(x + bar / 2, y + height / 2 + 4, name, { "text-anchor": "middle", class: "name" }),
  );
}

function head_part(n, h) {
  const { at, parts, positions, column_of } = shown;
  const { weights, most, written } = parts.layers[n].heads[h];
  const share = written / parts.strongest;
  const y = lane_y(n, h);
  const height = at.lane - 4;
  const from = column_of(most);
  const line_end = at.boxes - (at.narrow ? 18 : 22);
  const dots = positions.filter((s) => s >= 0 && s <= state.at && weights[s] > 0.02 && s !== most);
  const radius_of = (weight) => Math.sqrt(weight) * at.lane * 0.42;
  const dot = (x, weight, more) => svg("circle", { cx: x, cy: y, r: radius_of(weight), ...more });
  const opacity = 0.3 + 0.7 * Math.sqrt(share);

  // The token that the head looks at most, named beside its dot: right or left of it, where there is room
  const token = short_label(state.ids[most]);
  const label = `${token} ${Math.round(100 * weights[most])}%`;
  const right = { x: from + 11, room: line_end - from - 14, "text-anchor": "start" };
  const left = { x: from - 11, room: from - 11, "text-anchor": "end" };
  const ways = [label, token].flatMap((text) => [right, left].map((side) => ({ ...side, text })));
  const way = ways.find(({ room, text }) => room > 6.3 * text.length);
  const is_chosen = n === state.layer && h === state.head;
  const group = part(
    `head-${n}-${h}`,
    `${head_name(n, h)}: looks most at ${label}`,
    svg("rect", { x: 0, y: y - at.lane / 2, width: at.spine, height: at.lane, class: "hit" }),
    line(from, line_end, y, { class: "look", "stroke-width": 1 + 2.5 * weights[most], opacity }),
    line(at.boxes + at.bar, at.spine - 5, y, { class: "write", "stroke-width": 5 * share }),
    ...dots.map((s) => dot(column_of(s), weights[s], { class: "look other" })),
    dot(from, weights[most], { class: "look" }),
    ...(way ? [words(way.x, y + 4, way.text, { "text-anchor": way["text-anchor"], class: "looked" })] : []),
    bar_box(at.boxes, y - height / 2, height, share, true, at.narrow ? String(h + 1) : `head ${h + 1}`),
    power(at.boxes - (at.narrow ? 9 : 11), y),
  );
  mark_part(group, is_chosen, state.ablated[n][h]);
  return group;
}

function mlp_part(n) {
  const { at, parts } = shown;
  const share = parts.layers[n].mlp / parts.strongest;
  const x = at.spine + 16;
  const y = slab_top(n) + at.slab - 38;
  const group = part(
    `mlp-${n}`,
    `MLP of layer ${n + 1}`,
    svg("rect", { x: at.spine + 6, y: y - 6, width: at.bar + 40, height: 40, class: "hit" }),
    line(at.spine + 5, x, y + 14, { class: "write", "stroke-width": 5 * share }),
    bar_box(x, y, 28, share, false, "MLP"),
    power(x + at.bar + 12, y + 14),
  );
  mark_part(group, false, state.ablated[n][H]);
  return group;
}

function mark_part(group, is_chosen, is_off) {
  if (is_chosen) group.classList.add("selected");
  if (!is_off) return;
  group.classList.add("off");
  group.setAttribute("aria-label", `${group.getAttribute("aria-label")}, switched off`);
}

/** What the model would predict if it ended after n layers: the likeliest token, more where there is room. */
function guess_part(n) {
  const { at, guesses } = shown;
  const y = n ? slab_top(n - 1) + 6 : at.tokens_top - 30;
  const [width, count, margin] = at.narrow ? [100, 1, 0] : [122, 2, 38];
  const [answer] = guesses[L];
  const likely = guesses[n].slice(0, count).filter(({ p }, i) => i === 0 || p >= 0.01);
  const chips = likely.map(({ id, p }, i) => {
    const x = at.spine + 16 + margin + i * (width + 5);
    const opacity = (0.5 * strength(p)).toFixed(3); // as in shade(), to read text on it
    const label = `${short_label(id, at.narrow ? 9 : LABEL_LETTERS)} ${Math.round(100 * p)}%`;
    const frame = id === answer.id ? "chip-frame right" : "chip-frame";
    return svg(
      "g",
      {},
      svg("rect", { x, y, width, height: 20, rx: 10, class: "chip", "fill-opacity": opacity }),
      svg("rect", { x, y, width, height: 20, rx: 10, class: frame }),
      words(x + width / 2, y + 14, label, { "text-anchor": "middle", "font-size": 11 }),
    );
  });
  const link = line(at.spine, at.spine + 15, y + 10, { class: "read" });
  const title = at.narrow ? "" : words(at.spine + 18, y + 14, "guess", { class: "quiet" });
  const label = n ? `the guess after layer ${n}` : "the guess before layer 1";
  return part(`guess-${n}`, label, link, title, ...chips);
}

/** The prediction on top. draw_answer() in drawing_notes.js fills it. */
function answer_part() {
  const { at } = shown;
  const width = at.width - at.spine + 111;
  const box = { x: at.spine - 112, y: 1, width, height: TOP - 24, rx: 8, class: "tag" };
  return part("prediction", "the prediction", svg("rect", box), svg("g", { class: "answer" }));
}

/** The vector of the chosen token as cells of colour. */
function embedding_part() {
  const { at } = shown;
  const cells = at.narrow ? 12 : 28;
  const size = (at.bar + 10) / cells;
  const [x, y, width] = [at.boxes - 10, at.tokens_top - 30, at.bar + 10];
  const vector = cache.embedding[state.at];
  const strong = largest([vector]);
  const title = at.narrow ? "vector" : `embedding: ${D} numbers`;
  const drawn = Array.from({ length: cells }, (_, i) => {
    const value = vector[i] / strong;
    const fill = `rgb(var(--${value < 0 ? "below" : "above"}))`;
    const opacity = strength(value).toFixed(3);
    return svg("rect", { x: x + i * size, y, width: size, height: 20, fill, "fill-opacity": opacity });
  });
  return part(
    "embedding",
    "the embedding of the chosen token",
    svg("rect", { x, y, width, height: 20, class: "paper" }),
    ...drawn,
    svg("rect", { x, y, width, height: 20, rx: 2, class: "frame" }),
    words(x + width / 2, y + 36, title, { "text-anchor": "middle", class: "quiet" }),
  );
}

/** The tokens at the bottom: side by side if they fit, or else slanting. */
function token_parts_of() {
  const { at, positions, column_of, spacing } = shown;
  const labels_of = (letters) => positions.map((s) => (s < 0 ? "…" : short_label(state.ids[s], letters)));
  const slanting = labels_of(LABEL_LETTERS).some((label) => 7.4 * label.length + 8 > spacing);
  const labels = labels_of(slanting ? 9 : LABEL_LETTERS);
  return positions.map((s, i) => {
    const x = column_of(s);
    if (s < 0) return words(x, at.tokens_top + 16, "…", { "text-anchor": "middle" });
    const label = labels[i];
    const place = slanting
      ? { transform: `translate(${x - 3},${at.tokens_top + 11}) rotate(50)` }
      : { transform: `translate(${x - 8},${at.tokens_top + 18})` };
    const box = { x: -4, y: -12, width: 7.4 * label.length + 8, height: 17, rx: 4, class: "tag" };
    const group = part(
      `token-${s}`,
      `token ${s}: ${label}`,
      svg("g", place, svg("rect", box), words(0, 0, label, { "font-size": 12, class: "mono" })),
    );
    if (s === state.at) group.classList.add("chosen-token");
    if (s > state.at) group.classList.add("later");
    return group;
  });
}

new ResizeObserver(() => {
  const width = Math.floor(drawing_parts.whole.clientWidth);
  if (shown && width !== shown.at.width) draw_drawing(logit_lens(state.at));
}).observe(drawing_parts.whole);
