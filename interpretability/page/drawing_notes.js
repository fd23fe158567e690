"use strict";
// What the drawing says about the part that is pointed at, and what the prediction would be without it.

let pointed = null; // the name of the part under the mouse or with the keyboard focus
let comparing = null; // {title, p}: other probabilities of the next token, to show beside those of now
let comparing_timer;

/** What the name of a part means: head-2-0 -> {kind: "head", n: 2, h: 0}. */
function parse_part(name) {
  const [kind, n, h] = name.split("-");
  return { kind, n: Number(n), h: kind === "mlp" ? H : Number(h) };
}

/** The probabilities of the next token, for a choice of ablated parts. */
function prediction_with(ablated) {
  const ids = state.ids.slice(0, state.at + 1);
  return softmax(model.predict(model.forward(ids, new Cache(L), ablated), state.at));
}

/** The same with one part switched the other way. */
function prediction_without(n, h) {
  const ablated = state.ablated.map((row) => row.slice());
  ablated[n][h] = !ablated[n][h];
  return prediction_with(ablated);
}

// The text

/** A token, and how likely it is. */
function with_percent(id, p) {
  return `“${tokenizer.label(id)}” ${format_percent(p)}`;
}

function part_title({ kind, n, h }) {
  return {
    head: `Head ${h + 1} of layer ${n + 1}`,
    mlp: `MLP of layer ${n + 1}`,
    guess: n ? `The guess after layer ${n}` : "The guess before layer 1",
    embedding: "Embedding",
    stream: "Residual stream",
    token: `Token ${n}`,
    prediction: "Prediction",
  }[kind];
}

function part_text({ kind, n, h }) {
  const { parts, guesses } = shown;
  const token = label_at(state.at);
  const adds = (written) => `Adds a vector of length ${format_number(written)}.`;
  if (kind === "head") {
    const { weights, most, written } = parts.layers[n].heads[h];
    const looks = most === state.at ? `${token} itself` : label_at(most);
    return `Looks most at ${looks} (${format_percent(weights[most])}). ${adds(written)} ${habit_of(n, h)}`;
  }
  if (kind === "mlp") {
    const activations = cache.layers[n].activations[state.at];
    const strong = largest([activations]);
    const active = activations.filter((x) => Math.abs(x) > strong / 10).length;
    const strongest = `${active} of ${hidden} neurons reach a tenth of the strongest activation.`;
    return `Works on the vector of ${token} alone. ${strongest} ${adds(parts.layers[n].mlp)}`;
  }
  if (kind === "guess") {
    const list = guesses[n].slice(0, 3).map(({ id, p }) => with_percent(id, p)).join(", ");
    const frame = "An orange frame marks the token that it predicts in the end.";
    return `If the model ended here, it would predict ${list}. ${frame}`;
  }
  if (kind === "token") return `${label_at(n)} has id ${state.ids[n]}. Click to choose it.`;
  return {
    embedding: `Looks up the vector of ${token}: ${D} numbers, learned in training. ` +
      "The first are shown as colours.",
    stream: `The vector of ${token} on its way up. Each part reads it and adds its own vector.`,
    prediction: `What comes after ${token}: the likeliest of ${format_count(V)} tokens.`,
  }[kind];
}

/** What a head usually looks at, as measured on held-out text with the finished model. */
function habit_of(n, h) {
  if (model !== final_model) return "";
  const habits = {
    "previous token": "the token just before",
    "first token": "the first token of the text",
    "same token": "earlier places of the same token (where there are any)",
    induction: "what followed the same token before (where it occurred)",
  };
  const scores = Object.keys(habits).map((name) => [name, data.measured.head_scores[name].values[n][h]]);
  const [name, score] = scores.reduce((a, b) => (b[1] > a[1] ? b : a));
  return score < 0.3 ? "" : `On average, ${format_percent(score)} of its attention goes to ${habits[name]}.`;
}

/** The part that writes most, for when nothing is pointed at. */
function summary() {
  const all = shown.parts.layers.flatMap(({ heads, mlp }, n) => [
    { kind: "mlp", n, written: mlp },
    ...heads.map(({ written }, h) => ({ kind: "head", n, h, written })),
  ]);
  const most = all.reduce((a, b) => (b.written > a.written ? b : a));
  if (most.written === 0) {
    return "No part adds anything: the vector passes through unchanged, as it does before training.";
  }
  return `Most is written by: ${part_title(most)}. Point at a part to read what it does.`;
}

/** How the comparison changes the likeliest token, in words. */
function change_text() {
  const [now] = shown.guesses[L];
  const then = comparing.p.indexOf(Math.max(...comparing.p));
  const change = `${with_percent(now.id, now.p)} → ${format_percent(comparing.p[now.id])}`;
  const other = then === now.id ? "" : `, likeliest is ${with_percent(then, comparing.p[then])}`;
  return `${comparing.title} (see the marks): ${change}${other}.`;
}

/** The text up to the chosen token, and the likeliest next token. */
function draw_sentence() {
  const { at, guesses } = shown;
  const before = tokenizer.decode(state.ids.slice(0, state.at));
  const [chosen, next] = [state.ids[state.at], guesses[L][0].id].map(tokenizer.label, tokenizer);
  const width = at.narrow ? at.width : at.spine - 140;
  const longest = Math.max(6, Math.floor(width / 10.5) - chosen.length - next.length - 3); // letters that fit
  const marked = (label, name) => {
    return el("span", { class: label.startsWith("·") ? `${name} spaced` : name }, label.replace(/^·/, ""));
  };
  sentence.replaceChildren(
    before.length > longest ? "…" + before.slice(-longest) : before,
    marked(chosen, "this"),
    marked(next, "next"),
  );
  for (const text of [sentence, note]) text.style.width = at.narrow ? "" : `${width}px`;
}

/** What the pointed part does, and the prediction. */
function draw_note() {
  const what = pointed && parse_part(pointed);
  const title = what ? part_title(what) : `After ${label_at(state.at)}`;
  const lines = [el("b", {}, title), what ? part_text(what) : summary()];
  if (comparing) lines.push(el("span", { class: "change" }, change_text()));
  note.replaceChildren(...lines.flatMap((line) => [line, " "]));
  draw_sentence();
  draw_answer();
}

/** The likeliest tokens on top. A mark at each bar shows the probability that it is compared with. */
function draw_answer() {
  const { at, guesses } = shown;
  const longest = at.width - at.spine - 66;
  const x = at.spine + 14;
  const rows = guesses[L].map(({ id, p }, i) => {
    const y = 17 + 20 * i;
    const first = i === 0 ? { "font-weight": 700, "font-size": 15 } : { "font-size": 13 };
    const mark = comparing ? x + longest * comparing.p[id] : 0;
    return svg(
      "g",
      {},
      words(at.spine - 8, y + 5, short_label(id), { "text-anchor": "end", ...first }),
      svg("rect", { x, y: y - 7, width: Math.max(1, longest * p), height: 14, rx: 3, class: "amount" }),
      words(Math.max(x + longest * p, mark) + 6, y + 5, format_percent(p), { ...first, "font-size": 12 }),
      ...(comparing ? [svg("line", { x1: mark, x2: mark, y1: y - 9, y2: y + 9, class: "compared" })] : []),
    );
  });
  picture.querySelector(".answer").replaceChildren(...rows);
}

// Pointing, clicking, keys

/** Point at a part, or at none. What the prediction would be without it follows after a moment. */
function point_at(name) {
  if (name === pointed) return;
  pointed = name;
  compare_soon();
  draw_note();
}

/** Compare the prediction with that without the pointed part, or if parts are off, with the whole model's. */
function compare_soon() {
  clearTimeout(comparing_timer);
  comparing = null;
  const { kind, n, h } = pointed ? parse_part(pointed) : {};
  const is_off = state.ablated.some((row) => row.includes(true));
  if (kind !== "head" && kind !== "mlp" && !is_off) return;
  comparing_timer = setTimeout(() => {
    const one = kind === "head" || kind === "mlp";
    const title = one ? (state.ablated[n][h] ? "Switched on again" : "Without it") : "With all parts";
    comparing = { title, p: one ? prediction_without(n, h) : prediction_with([]) };
    draw_note();
  }, 60);
}

/** Go to the section of a part, with its layer and head chosen. */
function go_to_part(name) {
  const { kind, n, h } = parse_part(name);
  if (kind === "token") return choose(n);
  if (kind === "head" || kind === "mlp") state.layer = n;
  if (kind === "head") state.head = h;
  draw();
  const section = { head: "attention", guess: "stream" }[kind] ?? kind;
  document.getElementById(section).scrollIntoView({ behavior: "smooth" });
}

const part_of = ({ target }) => target.closest("[data-part]")?.dataset.part ?? null;
picture.addEventListener("pointerover", (event) => point_at(part_of(event)));
picture.addEventListener("pointerleave", ({ pointerType }) => pointerType === "touch" || point_at(null));
picture.addEventListener("focusin", (event) => point_at(part_of(event)));
picture.addEventListener("focusout", () => point_at(null));
let pointer_type; // of the last press; Safari does not always give it to a click
picture.addEventListener("pointerdown", (event) => (pointer_type = event.pointerType));
let tapped = null; // on a touch screen the first tap points at a part, and the second one goes to its section
picture.addEventListener("click", (event) => {
  const name = part_of(event);
  if (!name) return;
  const first_tap = pointer_type === "touch" && tapped !== name;
  tapped = name;
  if (event.target.closest(".power")) switch_part(name);
  else if (!first_tap) go_to_part(name);
});
picture.addEventListener("keydown", (event) => {
  const name = part_of(event);
  if (!name || (event.key !== "Enter" && event.key !== " ")) return;
  event.preventDefault();
  if (event.key === " " && /^(head|mlp)-/.test(name)) switch_part(name);
  else go_to_part(name);
});

/** Switch a head or an MLP off, or on again. */
function switch_part(name) {
  const { kind, n, h } = parse_part(name);
  if (kind === "head" || kind === "mlp") toggle(n, h);
}
