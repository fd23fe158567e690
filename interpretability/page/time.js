"use strict";
// The time slider: the model at steps of its training, from before the first one to the last.
// The last place is the finished model. The others are snapshots, unpacked when they are first shown.

const places = [...data.snapshots, data.last_step]; // the step of each place of the slider
const snapshot_elements = document.querySelectorAll(".snapshot");
const place_models = { [places.length - 1]: final_model };
const PLAY_MILLISECONDS = 1200; // how long each place is shown

const time = { place: places.length - 1, timer: null }; // timer: of the next place while the slider plays

function model_at(place) {
  if (!place_models[place]) {
    const weights = unpack_rows(snapshot_elements[place].textContent, data.tensors);
    place_models[place] = new LLM(data.architecture, weights);
  }
  return place_models[place];
}

/** Show the model of a place. */
function go_to_place(place) {
  time.place = place;
  time.slider.value = place;
  model = model_at(place);
  cache = new Cache(L);
  mark_place();
  run();
}

function stop_playing() {
  clearTimeout(time.timer);
  time.timer = null;
  show_button();
}

/** Go through the places, from the first one if the last is shown. */
function play() {
  if (time.timer) return stop_playing();
  const next = () => {
    time.timer = time.place < places.length - 1 ? setTimeout(step, PLAY_MILLISECONDS) : null;
    show_button();
  };
  const step = () => {
    go_to_place(time.place + 1);
    next();
  };
  if (time.place === places.length - 1) go_to_place(0);
  next();
}

function show_button() {
  const playing = time.timer !== null;
  time.button.textContent = playing ? "❚❚" : "▶";
  time.button.setAttribute("aria-label", playing ? "pause" : "play the training");
}

// The loss curve

/**
 * The loss on one text as [[step, loss], ...]: measured on the snapshots and the finished model. After the
 * last snapshot come the log's rows. Their training loss is a mean since the row before: it belongs halfway.
 */
function loss_points(name) {
  const points_of = ({ step = [], [name]: losses }) => step.map((x, i) => [x, losses[i]]);
  const [measured, logged] = [data.measured.snapshots, data.measured.training.log].map(points_of);
  const newest = measured.at(-2)[0]; // of the snapshots; the finished model comes after it
  const halfway = (i) => (logged[i][0] + (i ? logged[i - 1][0] : 0)) / 2;
  const placed = logged.map(([step, loss], i) => [name === "val_loss" ? step : halfway(i), loss]);
  const between = placed.filter(([step]) => newest < step && step < data.last_step);
  return [...measured.slice(0, -1), ...between, ...measured.slice(-1)];
}

/** Where a step is on the slider, 0 to 1. Places are equally far apart; between them it is logarithmic. */
function share_of(step) {
  const after = places.findIndex((place) => place > step);
  if (after < 0) return 1;
  const [left, right] = [places[after - 1], places[after]].map(Math.log1p);
  return (after - 1 + (Math.log1p(step) - left) / (right - left)) / (places.length - 1);
}

/** The loss at the step of a place, which was measured. */
function loss_at(points, step) {
  return points.find(([x]) => x === step)[1];
}

/** The two curves, a line at each place. The height is logarithmic: the first loss is far above the rest. */
function loss_curves() {
  const curves = [["held-out", "below", "val_loss"], ["training", "above", "train_loss"]];
  const lines = curves.map(([name, colour, column]) => ({ name, colour, points: loss_points(column) }));
  const losses = lines.flatMap(({ points }) => points.map(([, loss]) => Math.log(loss)));
  const [low, high] = [Math.min(...losses), Math.max(...losses)];
  const height_of = (loss) => (Math.log(loss) - low) / (high - low || 1); // 0 to 1
  const drawing = svg("svg", { viewBox: "0 0 1000 100", preserveAspectRatio: "none", "aria-hidden": "true" });
  for (let i = 0; i < places.length; i++) {
    const x = (1000 * i) / (places.length - 1);
    drawing.append(svg("line", { x1: x, x2: x, y1: 0, y2: 100, class: "place" }));
  }
  for (const { colour, points } of lines) {
    const corners = points.map(([step, loss]) => `${1000 * share_of(step)},${100 - 100 * height_of(loss)}`);
    drawing.append(svg("polyline", { points: corners.join(" "), stroke: `rgb(var(--${colour}))` }));
  }
  return { lines, height_of, drawing };
}

function mark_place() {
  const step = places[time.place];
  const { lines, height_of } = time.curves;
  const left = `${(100 * time.place) / (places.length - 1)}%`;
  const dots = lines.map(({ colour, points }) => {
    const top = 100 - 100 * height_of(loss_at(points, step));
    return el("span", { class: "dot", style: `left:${left};top:${top}%;background:rgb(var(--${colour}))` });
  });
  time.marks.replaceChildren(el("span", { class: "here", style: `left:${left}` }), ...dots);
  const losses = lines.map(({ name, colour, points }) => {
    const text = `${name} loss ${loss_at(points, step).toFixed(2)}`;
    return el("span", { style: `border-color:rgb(var(--${colour}))` }, text);
  });
  const title = `step ${format_count(step)}${time.place === places.length - 1 ? " (end)" : ""}`;
  time.text.replaceChildren(el("b", {}, title), ...losses);
  time.slider.setAttribute("aria-valuetext", [title, ...losses.map((line) => line.textContent)].join(", "));
}

/** The slider with its play button and curve, if there are snapshots. */
function draw_time() {
  if (!data.snapshots.length) return;
  const oninput = () => {
    stop_playing();
    go_to_place(Number(time.slider.value));
  };
  const range = { type: "range", id: "place", min: 0, max: places.length - 1, step: 1, value: time.place };
  time.slider = el("input", { ...range, "aria-label": "step of the training", oninput });
  time.button = el("button", { id: "play", onclick: play });
  time.text = el("div", { class: "said" });
  time.marks = el("div", { class: "marks" });
  time.curves = loss_curves();
  const curve = el("div", { class: "curve" }, time.curves.drawing, time.marks);
  const track = el("div", { class: "track" }, curve, time.slider);
  document.getElementById("time").append(time.button, track, time.text);
  show_button();
  mark_place();
}
