"use strict";
// Sections 1 and 2: how the text becomes tokens, and tokens become vectors.

// 1. Tokens

const token_parts = add_section(
  "tokens",
  "1. Tokens",
  "The model reads tokens, not letters. A token is a piece of text that is frequent in the training text: " +
    "a frequent word is one token, a rare word is several. · is a space and ↵ a line break; <EOS> comes " +
    "before the text and ends each sentence. Below, the chosen word is built from its bytes: in each step, " +
    "the pair of neighbours that the tokenizer learned first is merged.",
  `text → ids (T,), each one of V = ${format_count(V)}; at most T = ${max_seq_len}`,
  "cards",
  "merges",
);

function token_button(id, at, ...more) {
  const attributes = { class: "token", "aria-pressed": String(at === state.at), onclick: () => choose(at) };
  return el("button", attributes, tokenizer.label(id), ...more);
}

function draw_tokens() {
  draw_strip();
  const cards = state.ids.map((id, at) => token_button(id, at, el("small", {}, String(id))));
  const top = token_parts.cards.firstChild?.scrollTop ?? 0; // a new box would jump back to its beginning
  token_parts.cards.replaceChildren(box("tokens and ids", 7, el("div", { class: "tokens" }, ...cards)));
  token_parts.cards.firstChild.scrollTop = top;

  const { id, piece } = state.tokens[state.at];
  const bytes = tokenizer.bytes[id].map(hex).join(" ") || "none, since it only marks a place";
  const steps = piece ? tokenizer.merge_steps(piece) : [];
  token_parts.merges.replaceChildren(
    el("p", { class: "note" }, `token ${state.at}: id ${id}, bytes ${bytes}`),
    box("merges", 12, table(steps.map(merge_line))),
  );
}

/** The row of tokens at the top of the page, the chosen one in the middle. It is one stop for the Tab key. */
function draw_strip() {
  const strip = document.getElementById("strip");
  strip.replaceChildren(...state.ids.map((id, at) => token_button(id, at)));
  const chosen = strip.children[state.at];
  for (const button of strip.children) button.tabIndex = button === chosen ? 0 : -1;
  strip.scrollLeft = chosen.offsetLeft - strip.offsetLeft - strip.clientWidth / 2;
}

/** A step of merge_steps() as a line of a table: the number of the merge, and the tokens after it. */
function merge_line({ ids, at, rank }) {
  const pieces = ids.flatMap((id, i) => {
    const label = tokenizer.label(id);
    return [i ? " │ " : "", i === at ? el("mark", {}, label) : label];
  });
  return [rank < 0 ? "bytes" : `merge ${rank + 1}`, el("span", {}, ...pieces)];
}

// 2. Embedding

const embedding_parts = add_section(
  "embedding",
  "2. Embedding",
  `Each of the ${format_count(V)} tokens has a vector of ${D} numbers, learned in training. It does not ` +
    "depend on the position of the token; attention takes the position into account, see section 3. Tokens " +
    "whose vectors have similar directions are used in similar ways.",
  `x = embedding[ids]: (T,) → (T, ${D}); similarity cos(a, b) = a · b / (|a| |b|)`,
  "two",
);

function draw_embedding() {
  const strong = largest(cache.embedding);
  const names = state.ids.map((_, at) => label_at(at));
  const vectors = box("the vectors of the tokens", 14, strips(cache.embedding, names, strong, state.at));

  // The tokens with the most similar vectors
  const chosen = state.ids[state.at];
  const products = linear(model.vector(chosen), model.embedding, D); // (V)
  const lengths = Float32Array.from({ length: V }, (_, id) => norm(model.vector(id)));
  const cosine = (id) => products[id] / lengths[chosen] / lengths[id];
  const others = Array.from(products.keys()).filter((id) => id !== chosen);
  others.sort((a, b) => cosine(b) - cosine(a));
  const nearest = others.slice(0, 10);
  const lines = nearest.map((id) => [tokenizer.label(id), format_number(cosine(id)), bar(cosine(id))]);

  embedding_parts.two.replaceChildren(
    el("div", {}, legend("−" + format_number(strong), format_number(strong)), vectors),
    el("div", {}, el("p", {}, `Most similar to ${label_at(state.at)}`), table(lines, 10)),
  );
  vectors.scrollTop = vectors.querySelector(".chosen").offsetTop - vectors.offsetTop - 100;
}
