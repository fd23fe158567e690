"use strict";
// Section 8: which ending a word gets after each of two texts, and which heads and MLPs make the difference.
// The map is activation patching, as interpretability/patching.py measures it over many pairs of texts.

const cases_parts = add_section(
  "cases",
  "8. Case endings",
  "In Russian, a word's ending shows its role in the sentence, and a preposition or an adjective before it " +
    "decides which ending is correct. Here are two texts that differ in one word, and another word with " +
    "its possible endings: how likely is each ending after each text? In this section all parts are " +
    "switched on, whatever is off above.",
  "p(ending) = product of p(token | text) over the word's tokens, divided by the sum over all endings listed",
  "fields",
  "two",
  "explanation",
  "patching",
);
cases_parts.explanation.append(
  el("p", {}, "Which parts of the model make this difference? The model reads the text on the right, but " +
    "the output of one head or MLP is replaced by its output on the text on the left, at every token. " +
    "100%: the model now prefers the left ending as strongly as after the left text. 0%: nothing has " +
    "changed. Orange: it moves towards the left ending. Blue: away from it."),
  el("p", { class: "formula" }, "recovered share = (patched − corrupt) / (clean − corrupt), of the score " +
    "logit(left ending) − logit(right ending): clean after the left text, corrupt after the right one, " +
    "patched after the right one with one output from the left"),
);

// What is in the fields; the endings are separated by spaces
const compared = {
  left: "Он вышел без",
  right: "Он вышел к",
  word: "стар",
  endings: "ый ой ого ому ом ым ая ую ые ых",
};
const LEAST_DIFFERENCE = 0.01; // of the two scores; below it a share of the difference means nothing
let cases_timer; // of the drawing after typing
let cases_model; // the model that the section shows
let patching = null; // {clean, corrupt, cells}: the caches of the two texts, and the cells of the map
let patching_timer; // of the next cell

for (const [name, value] of Object.entries(compared)) {
  const oninput = (event) => {
    compared[name] = event.target.value.trim();
    clearTimeout(cases_timer);
    cases_timer = setTimeout(draw_cases, 300);
  };
  cases_parts.fields.append(el("label", {}, name, el("input", { value, dir: "auto", lang: "ru", oninput })));
}

function draw_cases() {
  cases_model = model;
  const list = [...new Set(compared.endings.split(/\s+/).filter(Boolean))].slice(0, 12);
  const sides = [compared.left, compared.right].map((text) => {
    return { text, shares: endings(text, compared.word, list) };
  });
  const columns = sides.map(({ text, shares }) => {
    const lines = shares.map(({ ending, p }) => ["-" + ending, format_percent(p), bar(p)]);
    return el("div", {}, el("p", {}, `${text} ${compared.word}…`), table(lines, 10));
  });
  cases_parts.two.replaceChildren(...columns);
  draw_patching(sides);
}

/** The share of each ending of a word after a text, the likeliest first: [{ending, p}]. */
function endings(text, word, list) {
  const form_cache = new Cache(L);
  const log_probabilities = list.map((ending) => {
    const ids = tokenizer.encode_prompt(`${text} ${word}${ending}`).map(({ id }) => id);
    if (ids.length > max_seq_len) return -Infinity;
    const start = tokenizer.encode_prompt(text, word + ending).length; // of the word
    model.forward(ids, form_cache);
    let sum = 0;
    for (let at = start; at < ids.length; at++) {
      const p = softmax(model.predict(form_cache, at - 1));
      sum += Math.log(p[ids[at]]);
    }
    return sum;
  });
  const none_fits = log_probabilities.every((value) => value === -Infinity);
  const shares = none_fits ? list.map(() => 0) : softmax(log_probabilities);
  return list.map((ending, i) => ({ ending, p: shares[i] })).sort((a, b) => b.p - a.p);
}

// The pair of texts

/**
 * The pair that the two texts make, each with the word and its likeliest ending, see Pair in case_pairs.py:
 * clean and corrupt, the ids up to the last token before the endings differ, the first token of each ending,
 * the position of the first token that differs. If the texts make no pair: {problem}, which says why.
 */
function make_pair(sides) {
  const forms = sides.map(({ shares: [first] }) => compared.word + (first?.ending ?? ""));
  const ids_of = (text, next) => tokenizer.encode_prompt(text, next).map(({ id }) => id);
  const [left, right] = sides.map(({ text }, i) => ids_of(text, forms[i]));
  const [clean, corrupt] = sides.map(({ text }, i) => ids_of(`${text} ${forms[i]}`));
  if (Math.max(clean.length, corrupt.length) > max_seq_len) {
    return { problem: `A text with the word must fit into ${max_seq_len} tokens.` };
  }
  if (left.length !== right.length) {
    const [of_left, of_right] = [left, right].map((ids) => {
      return `${ids.length} tokens (${ids.map((id) => tokenizer.label(id)).join(" ")})`;
    });
    const problem = `The texts must have equally many tokens: left has ${of_left}, right has ${of_right}.`;
    return { problem };
  }
  if (!sides[0].shares.length) return { problem: "Enter the endings of the word, with spaces between them." };
  if (sides[0].shares[0].ending === sides[1].shares[0].ending) {
    return {
      problem: "The same ending is the likeliest after both texts, so there is no difference to explain.",
    };
  }
  let end = left.length; // where the endings differ
  while (end < clean.length && clean[end] === corrupt[end]) end++;
  if (end >= Math.min(clean.length, corrupt.length)) {
    return { problem: "The tokens of one ending are the beginning of the other's, so no token differs." };
  }
  if (clean[end - 1] !== corrupt[end - 1]) {
    return {
      problem:
        "The choice between the endings is made right after the words in which the texts differ, so " +
        "nothing has to be carried there: choose a word whose first token is the same with both endings.",
    };
  }
  const decider = clean.findIndex((id, i) => id !== corrupt[i]);
  const [clean_token, corrupt_token] = [clean[end], corrupt[end]];
  return { clean: clean.slice(0, end), corrupt: corrupt.slice(0, end), clean_token, corrupt_token, decider };
}

/** The logit of the clean ending minus that of the corrupt one, after the last token of a cache. */
function score_of(pair, read) {
  const logits = cases_model.predict(read, read.ids.length - 1);
  return logits[pair.clean_token] - logits[pair.corrupt_token];
}

// The map

function draw_patching(sides) {
  clearTimeout(patching_timer);
  patching = null;
  const say = (problem) => cases_parts.patching.replaceChildren(el("p", {}, problem));
  const pair = make_pair(sides);
  if (pair.problem) return say(pair.problem);
  const [clean, corrupt] = [pair.clean, pair.corrupt].map((ids) => cases_model.forward(ids, new Cache(L)));
  const [clean_score, corrupt_score] = [clean, corrupt].map((read) => score_of(pair, read));
  if (Math.abs(clean_score - corrupt_score) < LEAST_DIFFERENCE) {
    return say("The score is about the same after both texts, so there is no difference to recover.");
  }

  const [left, right] = sides.map(({ shares }) => "-" + shares[0].ending);
  const quoted = (id) => `“${tokenizer.label(id)}”`;
  const [left_token, right_token] = [pair.clean_token, pair.corrupt_token].map(quoted);
  const cells = empty_cells();
  const looks = el("div", { id: "looks" });
  const names = Array.from({ length: H }, (_, h) => `head ${h + 1}`);
  const lines = Array.from({ length: L }, (_, n) => {
    return [`layer ${n + 1}`, ...cells.filter(({ layer }) => layer === n).map(({ cell }) => cell)];
  });
  cases_parts.patching.replaceChildren(
    el("p", {}, `The likeliest ending is ${left} after the left text and ${right} after the right one. ` +
      `They first differ in the tokens ${left_token} and ${right_token}. The logit of ${left_token} minus ` +
      `that of ${right_token} is ${format_number(clean_score)} after the left text and ` +
      `${format_number(corrupt_score)} after the right one. ` +
      "How much of this difference does each part recover?"),
    el(
      "div",
      { class: "two" },
      el(
        "div",
        {},
        legend("−100%", "+100%", "pale"),
        box("recovered share", 0, table(lines, 0, ["", ...names, "MLP"])),
        el("p", {}, "Choose a head to see where it looks, here and in section 3. The shares need not sum " +
          "to 100%, since parts work together."),
      ),
      looks,
    ),
  );
  patching = { clean, corrupt, cells };
  draw_chosen_head();

  // One part at a time, so that the page stays responsive
  const patch = (i) => {
    if (i === cells.length) return;
    const { layer, head } = cells[i];
    const begun = corrupt.fork(pair.decider); // before the first token that differs, nothing changes
    const patched = cases_model.forward(pair.corrupt, begun, [], Infinity, { layer, head, from: clean });
    show_share(cells[i], (score_of(pair, patched) - corrupt_score) / (clean_score - corrupt_score));
    patching_timer = setTimeout(() => patch(i + 1));
  };
  patch(0);
}

/** A cell for each head and each MLP, the MLP as head number H: [{layer, head, cell, content}]. */
function empty_cells() {
  const cells = [];
  for (let layer = 0; layer < L; layer++) {
    for (let head = 0; head <= H; head++) {
      const onclick = () => choose_head(layer, head);
      const content = head < H ? el("button", { onclick }, "…") : el("span", {}, "…");
      cells.push({ layer, head, cell: el("td", {}, content), content });
    }
  }
  return cells;
}

function show_share(shown_cell, share) {
  const { layer, head, cell, content } = shown_cell;
  const percent = `${Math.round(100 * share)}%`;
  shown_cell.share = share;
  cell.setAttribute("style", shade(share));
  content.textContent = percent;
  if (head < H) content.setAttribute("aria-label", `${head_name(layer, head)} recovers ${percent}`);
}

/** Mark the chosen head in the map, and show where it looks from the last token of both texts. */
function draw_chosen_head() {
  if (!patching) return;
  for (const { layer, head, content } of patching.cells) {
    if (head < H) content.setAttribute("aria-pressed", String(layer === state.layer && head === state.head));
  }
  const row_of = (name, read) => {
    const weights = read.layers[state.layer].weights.at(-1)[state.head];
    const chips = read.ids.map((id, s) => {
      const percent = el("small", {}, format_percent(weights[s]));
      return el("span", { class: "token", style: shade(weights[s]) }, tokenizer.label(id), percent);
    });
    return [el("p", { class: "legend" }, name), el("div", { class: "tokens" }, ...chips)];
  };
  const last = `“${tokenizer.label(patching.clean.ids.at(-1))}”`;
  const title = head_name(state.layer, state.head).replace("layer", "Layer");
  document.getElementById("looks").replaceChildren(
    el("p", {}, `${title}: the attention weights of ${last}, the last token before the endings differ.`),
    ...row_of("left text", patching.clean),
    ...row_of("right text", patching.corrupt),
  );
}
