"use strict";
// What all sections share: the model, the text that is shown, and what is chosen in it.

// What make_page() in interpretability/page.py puts into the page
const data = JSON.parse(document.getElementById("data").textContent);
const weights_base64 = document.getElementById("weights").textContent;

const tokenizer = new Tokenizer(data.tokenizer);
const final_model = new LLM(data.architecture, unpack_weights(weights_base64, data.tensors));
let model = final_model; // or that of an earlier step of the training
const { d_model: D, num_heads: H, num_layers: L, head_size: d, hidden } = final_model;
const { max_seq_len, vocab_size: V } = final_model;

const state = {
  tokens: [], // [{id, piece}], the text
  ids: [], // their ids
  left_out: 0, // tokens before them that do not fit into the window
  at: 0, // the position of the chosen token
  layer: 0, // of the chosen head
  head: 0,
  ablated: Array.from({ length: L }, () => Array(H + 1).fill(false)), // [layer][head]; [layer][H] for its MLP
  temperature: 1,
  top_k: 0,
  top_p: 1,
};
let cache = new Cache(L); // the activations of the text

/** The token at a position, as it is shown. */
function label_at(position) {
  return tokenizer.label(state.ids[position]);
}

function head_name(layer, head) {
  return `layer ${layer + 1}, head ${head + 1}`;
}
