"use strict";
// Sections 7 and 8: which earlier tokens a prediction uses, what the heads do on average, how a word is inflected.

// 7. How context is captured

const context_parts = add_section(
  "context",
  "7. How context is captured",
  "Which earlier tokens does the prediction use? Below is the text before the chosen token. Under each token " +
    "is the probability of the likeliest next token if no later token could attend to that one. Blue: hiding " +
    "the token makes the prediction less likely, so the model used it. Orange: hiding it makes the " +
    "prediction more likely.",
  "p(next | text without token s), with score −∞ for key s in every head; colour: ln p without it − ln p",
  "hiding",
  "measured",
);
let hiding_timer; // of the next token to hide

function draw_context() {
  const { ids, at } = state;
  const [next] = likeliest(model.predict(cache, at), 1);
  const chips = ids.slice(0, at).map((_, s) => el("span", { class: "token" }, label_at(s), el("small", {}, "…")));
  const shown = box("each token hidden", 9, el("div", { class: "tokens" }, ...chips));
  context_parts.hiding.replaceChildren(
    el("p", {}, `${tokenizer.label(next.id)} has ${format_percent(next.p)} after ${label_at(at)}.`),
    legend("−3 nats", "+3 nats"),
    shown,
  );
  shown.scrollTop = shown.scrollHeight;

  // One token at a time, the nearest first, so that the page stays responsive
  const hide = (s) => {
    if (s < 0) return;
    const without = model.forward(ids.slice(0, at + 1), cache.fork(s + 1), state.ablated, s);
    const p = softmax(model.predict(without, at))[next.id];
    chips[s].setAttribute("style", shade(Math.log(p / next.p) / 3));
    chips[s].lastChild.textContent = format_percent(p);
    hiding_timer = setTimeout(() => hide(s - 1));
  };
  hide(at - 1);
}

/** What was measured when the page was made: the loss by position, and a table of all heads. */
function draw_measured() {
  const { base_loss, position_loss, head_scores, ablation } = data.measured;
  const positions = position_loss.map((_, i) => i + 1);
  const names = Object.keys(head_scores);
  context_parts.measured.append(
    el("p", {}, "Measured on held-out text with the finished model: the mean loss by position in the window. " +
      "More text before a token usually makes it easier to predict. The mean over all positions is " +
      `${format_number(base_loss)} nats.`),
    chart([["loss", positions, position_loss]], "position in the window", "nats per token"),
    el("p", {}, "What each head attends to on average, and how much the loss rises when it is switched off. " +
      "The last row is the score of uniform attention, with equal weights on all visible tokens. Each column " +
      "has its own colour scale."),
    box("heads", 0, table(head_lines(head_scores, ablation), 0, ["head", "loss rises by", ...names])),
    el("dl", {}, ...names.flatMap((name) => [el("dt", {}, name), el("dd", {}, head_scores[name].definition)])),
  );
}

/** For each head a line: how much the loss rises without it, and its scores. Then one for uniform attention. */
function head_lines(head_scores, ablation) {
  const scores = Object.values(head_scores);
  const best = scores.map(({ values }) => Math.max(...values.flat())); // in each column
  const strongest_rise = Math.max(1e-9, ...ablation.flat().map(Math.abs));
  const cell = (value, strong) => el("td", { style: shade(value / (strong || 1)) }, format_number(value));
  const lines = [];
  for (let n = 0; n < L; n++) {
    for (let h = 0; h < H; h++) {
      const score_cells = scores.map(({ values }, i) => cell(values[n][h], best[i]));
      lines.push([head_name(n, h), cell(ablation[n][h], strongest_rise), ...score_cells]);
    }
  }
  lines.push(["uniform attention", "", ...scores.map(({ uniform }) => format_number(uniform))]);
  return lines;
}

// 8. Case endings

const cases_parts = add_section(
  "cases",
  "8. Case endings",
  "In Russian, a word's ending shows its role in the sentence, and a preposition or an adjective before it " +
    "decides which ending is right. Here are two texts that differ in one word, and another word with its " +
    "possible endings: how likely is each ending after each text? Below are the heads whose outputs differ " +
    "most between the two texts, and what each of them attends to.",
  "p(ending) = product of p(token | text) over the word's tokens, as a share of all endings here; |h(left) − " +
    `h(right)|, where h (${D},) is the output of a head`,
  "fields",
  "two",
  "changed",
);

// What is in the fields; the endings are separated by spaces
const compared = {
  left: "Он пришёл в",
  right: "Он пришёл к",
  word: "больш",
  endings: "ой ом ому ого ую ая ие их им ими",
};
let cases_timer; // of the drawing after typing
let cases_model; // the model that the section shows

for (const [name, value] of Object.entries(compared)) {
  const oninput = (event) => {
    compared[name] = event.target.value;
    clearTimeout(cases_timer);
    cases_timer = setTimeout(draw_cases, 300);
  };
  cases_parts.fields.append(el("label", {}, name, el("input", { value, dir: "auto", oninput })));
}

/** The share of each ending of a word after a text, the likeliest first: [{ending, p}]. */
function endings(text, word, list) {
  const form_cache = new Cache(L);
  const start = tokenizer.encode_prompt(text).length;
  const log_probabilities = list.map((ending) => {
    const ids = tokenizer.encode_prompt(`${text} ${word}${ending}`).map(({ id }) => id);
    if (ids.length > max_seq_len) return -Infinity;
    model.forward(ids, form_cache);
    let sum = 0;
    for (let at = start; at < ids.length; at++) {
      const p = softmax(model.predict(form_cache, at - 1));
      sum += Math.log(p[ids[at]]);
    }
    return sum;
  });
  const shares = softmax(log_probabilities);
  return list.map((ending, i) => ({ ending, p: shares[i] })).sort((a, b) => b.p - a.p);
}

function draw_cases() {
  cases_model = model;
  const list = [...new Set(compared.endings.split(/\s+/).filter(Boolean))].slice(0, 12);
  const sides = [compared.left, compared.right].map((text) => {
    const ids = tokenizer.encode_prompt(text).map(({ id }) => id).slice(0, max_seq_len);
    const side_cache = model.forward(ids, new Cache(L));
    return { text, ids, at: ids.length - 1, cache: side_cache, shares: endings(text, compared.word, list) };
  });
  const columns = sides.map(({ text, shares }) => {
    const lines = shares.map(({ ending, p }) => ["-" + ending, format_percent(p), bar(p)]);
    return el("div", {}, el("p", {}, `${text} ${compared.word}…`), table(lines, 10));
  });
  cases_parts.two.replaceChildren(...columns);

  const changed = changed_heads(sides).slice(0, 6);
  const lines = changed.map(({ name, difference, attends_to }) => {
    return [name, format_number(difference), bar(difference / changed[0].difference), ...attends_to];
  });
  const head = ["head", "differs by", "", "left attends most to", "right attends most to"];
  cases_parts.changed.replaceChildren(box("heads that changed", 0, table(lines, 6, head)));
}

/** All heads, sorted by how much their outputs after the two texts differ: [{name, difference, attends_to}]. */
function changed_heads(sides) {
  const changed = [];
  for (let n = 0; n < L; n++) {
    for (let h = 0; h < H; h++) {
      const block = model.blocks[n];
      const [left, right] = sides.map((side) => model.head_output(block, side.cache.layers[n], h, side.at));
      const attends_to = sides.map((side) => {
        const weights = side.cache.layers[n].weights[side.at][h];
        const most = weights.indexOf(Math.max(...weights));
        return `${tokenizer.label(side.ids[most])} ${format_percent(weights[most])}`;
      });
      changed.push({ name: head_name(n, h), difference: norm(left.map((x, i) => x - right[i])), attends_to });
    }
  }
  return changed.sort((a, b) => b.difference - a.difference);
}
