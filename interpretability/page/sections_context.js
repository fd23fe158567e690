"use strict";
// Section 7: which earlier tokens a prediction uses, and what the heads do on average.

const context_parts = add_section(
  "context",
  "7. How context is captured",
  "Which earlier tokens does the prediction use? Below is the text before the chosen token. Under each " +
    "token is the probability of the likeliest next token if no later token could attend to that one. " +
    "Blue: hiding the token makes the prediction less likely, so the model used it. Orange: hiding it " +
    "makes the prediction more likely.",
  "p(next | text without token s), with score −∞ for key s in every head; colour: ln p without it − ln p",
  "hiding",
  "measured",
);
let hiding_timer; // of the next token to hide

function draw_context() {
  const { ids, at } = state;
  const [next] = likeliest(model.predict(cache, at), 1);
  const chip = (_, s) => el("span", { class: "token" }, label_at(s), el("small", {}, "…"));
  const chips = ids.slice(0, at).map(chip);
  const shown = box("each token hidden", 9, el("div", { class: "tokens" }, ...chips));
  context_parts.hiding.replaceChildren(
    el("p", {}, `${tokenizer.label(next.id)} has ${format_percent(next.p)} after ${label_at(at)}.`),
    legend("20 times less likely", "20 times likelier", "pale"), // e³ = 20.1
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
  const positions = position_loss.map((_, i) => i);
  const names = Object.keys(head_scores);
  const definition = (name) => [el("dt", {}, name), el("dd", {}, head_scores[name].definition)];
  context_parts.measured.append(
    el("p", {}, "Measured on held-out text with the finished model: the mean loss by position in the " +
      "window. At position 0, the model predicts from the first token alone; more text usually makes it " +
      `easier. The mean over all positions is ${format_number(base_loss)} nats.`),
    chart([["loss", positions, position_loss]], "position in the window", "nats per token"),
    el("p", {}, "What each head attends to on average, and how much the loss rises when it is switched " +
      "off. The last row is the score of uniform attention, with equal weights on all visible tokens. Each " +
      "column has its own colour scale."),
    box("heads", 0, table(head_lines(head_scores, ablation), 0, ["head", "loss rises by", ...names])),
    el("dl", {}, ...names.flatMap(definition)),
  );
}

/** A line for each head: how much the loss rises without it, and its scores. The last: uniform attention. */
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
