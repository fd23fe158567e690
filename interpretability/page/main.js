"use strict";
// Keeps the page up to date: reads the text, runs the model, and draws the sections.

let drawing_timer; // of the sections that are drawn once the typing stops

function draw() {
  const lens = logit_lens(state.at);
  draw_tokens();
  draw_drawing(lens);
  draw_prediction();
  draw_maps();
  draw_stream(lens);
  draw_chosen_head();
  clearTimeout(drawing_timer);
  clearTimeout(hiding_timer);
  drawing_timer = setTimeout(draw_slow_sections, 200);
}

function draw_slow_sections() {
  draw_head();
  draw_embedding();
  draw_mlp();
  draw_context();
  if (cases_model !== model) draw_cases();
}

/** Choose a token. The keyboard focus moves to its button if a button in the same row has the focus. */
function choose(at) {
  const focused_row = ["#strip", "#tokens .tokens"].find((row) => document.activeElement.closest(row));
  state.at = Math.max(0, Math.min(state.ids.length - 1, at));
  draw();
  if (focused_row) document.querySelector(focused_row).children[state.at].focus({ preventScroll: true });
}

/** Run the model on what is new in the text, and draw. */
function run() {
  const began = performance.now();
  model.forward(state.ids, cache, state.ablated);
  draw();
  const milliseconds = (performance.now() - began).toFixed(0);
  const { ids, left_out } = state;
  const count = left_out
    ? `only the last ${ids.length} of ${left_out + ids.length} tokens fit into the window`
    : `${ids.length} of ${max_seq_len} tokens`;
  const full = ids.length === max_seq_len && !left_out ? "; the window is full" : "";
  document.getElementById("status").textContent = `${count}, ${milliseconds} ms${full}`;
}

/** Show a text. If it is longer than the window, its last tokens are shown. */
function read(text) {
  const tokens = tokenizer.encode_prompt(text);
  state.left_out = Math.max(0, tokens.length - max_seq_len);
  state.tokens = tokens.slice(-max_seq_len);
  state.ids = state.tokens.map(({ id }) => id);
  state.at = state.ids.length - 1;
  run();
}

// A section that is scrolled to begins below the header
new ResizeObserver(([{ target }]) => {
  document.documentElement.style.setProperty("--header", `${target.offsetHeight}px`);
}).observe(document.querySelector("header"));

const field = document.getElementById("text");
field.value = data.prompt;
field.addEventListener("input", () => read(field.value));
document.getElementById("strip").addEventListener("keydown", (event) => {
  const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!move || event.altKey || event.ctrlKey || event.metaKey) return; // Alt and an arrow is the browser's
  event.preventDefault(); // or the strip would scroll, too
  choose(state.at + move);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw); // a canvas keeps its old colours
draw_training();
draw_measured();
draw_time();
read(data.prompt);
