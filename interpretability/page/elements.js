"use strict";
// What the sections are made of: elements, tables, boxes, coloured strips and maps, charts.
// Text of the reader or the model is only ever set as text content, never parsed as HTML.

/** An HTML element: el("p", { class: "x", onclick: f }, "text", child, ...). */
function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** An element of a drawing, in the same way. */
function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Add a section: heading, explanation, formula, empty parts. Returns the parts by name, to be drawn into. */
function add_section(id, title, explanation, formula, ...part_names) {
  const parts = Object.fromEntries(part_names.map((name) => [name, el("div", { class: name })]));
  const head = [el("h2", {}, title), el("p", {}, explanation), el("p", { class: "formula" }, formula)];
  document.getElementById("main").append(el("section", { id }, ...head, ...Object.values(parts)));
  return parts;
}

// Numbers as text

function format_number(x) {
  if (Math.abs(x) >= 100) return x.toFixed(0);
  if (Math.abs(x) >= 0.01 || x === 0) return x.toFixed(3);
  return x.toExponential(1);
}

function format_percent(p) {
  return (100 * p).toFixed(p < 0.01 ? 2 : 1) + "%";
}

function format_count(n) {
  return n.toLocaleString("en");
}

// Tables and boxes

/**
 * A table of lines, each a list of cells: text, elements, or td elements as they are. It is filled up to at
 * least `count` lines with empty ones, so that what is below it does not move.
 */
function table(lines, count = 0, head = []) {
  const in_cell = (content, tag) => (content.tagName === "TD" ? content : el(tag, {}, content));
  const row = (cells, tag) => el("tr", {}, ...cells.map((content) => in_cell(content, tag)));
  const rows = head.length ? [row(head, "th")] : [];
  for (const cells of lines) rows.push(row(cells, "td"));
  for (let i = lines.length; i < count; i++) rows.push(row(["\u00a0"], "td"));
  return el("table", {}, ...rows);
}

/** A part of the page that scrolls, by mouse or keyboard. height: in rem, or 0 for that of its content. */
function box(name, height, ...children) {
  const style = height ? `height:${height}rem` : "";
  return el("div", { class: "box", tabindex: 0, role: "group", "aria-label": name, style }, ...children);
}

/** A bar for a table, as long as the share (0 to 1). */
function bar(share) {
  return el("span", { class: "bar", style: `width:${Math.max(0, Math.min(1, share)) * 8}rem` });
}

// The colour scale: blue below 0, orange above 0, stronger farther from 0. Values go from -1 to 1.

function strength(value) {
  return Math.sqrt(Math.min(1, Math.abs(value)));
}

/** The style of an element whose background shows a value, pale enough to read text on it. */
function shade(value) {
  const end = value < 0 ? "below" : "above";
  return `background:rgba(var(--${end}),${(0.5 * strength(value)).toFixed(3)})`;
}

/** The scale of paint(); of shade() if it is pale. */
function legend(low, high, pale = "") {
  const scale = el("span", { class: `scale ${low === "0" ? "half" : ""} ${pale}` });
  return el("p", { class: "legend" }, low, scale, high);
}

/** Colour each pixel of a canvas by value(x, y). */
function paint(canvas, value) {
  const style = getComputedStyle(document.documentElement);
  const colour_of = (name) => style.getPropertyValue(name).split(",").map(Number);
  const below = colour_of("--below");
  const above = colour_of("--above");
  const { width, height } = canvas;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const pixels = image.data; // red, green, blue and opacity of each
  let at = 0;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const here = value(x, y);
      const colour = here < 0 ? below : above;
      for (let i = 0; i < 3; i++) pixels[at + i] = colour[i];
      pixels[at + 3] = 255 * strength(here);
      at += 4;
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** Vectors as strips of colour, one a line, with their names. strong: the value of the strongest colour. */
function strips(vectors, names, strong, chosen = -1) {
  const style = `height:${1.4 * vectors.length}rem`;
  const name = `values as colours: ${names.join(", ")}`;
  const size = { width: vectors[0].length, height: vectors.length };
  const canvas = el("canvas", { ...size, style, role: "img", "aria-label": name });
  const labels = names.map((name, y) => el("div", { class: y === chosen ? "chosen" : "" }, name));
  paint(canvas, (x, y) => vectors[y][x] / strong);
  return el("div", { class: "strips" }, el("div", {}, ...labels), canvas);
}

/** The largest absolute value in a list of vectors, and at least 1e-9, to divide by. */
function largest(vectors) {
  return Math.max(1e-9, ...vectors.map((vector) => Math.max(...vector.map(Math.abs))));
}

// Charts

/** A line chart of [[name, xs, ys], ...]. The second line is dashed as well as of another colour. */
function chart(lines, x_title, y_title) {
  const xs = lines.flatMap(([, x]) => x);
  const ys = lines.flatMap(([, , y]) => y);
  const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const x_place = (x) => 46 + (580 * (x - left)) / (right - left || 1);
  const y_place = (y) => 194 - (160 * (y - low)) / (high - low || 1);
  const text_style = { fill: "currentColor", "font-size": 13 };
  const text = (x, y, words, more = {}) => svg("text", { x, y, ...text_style, ...more }, words);
  const label = `${y_title} by ${x_title}`;
  const drawing = svg("svg", { viewBox: "0 0 640 232", role: "img", "aria-label": label, class: "chart" });

  // Grid lines, with their values on the left
  for (const value of [high, (low + high) / 2, low]) {
    const y = y_place(value);
    const grid_line = { x1: 46, x2: 626, y1: y, y2: y, stroke: "currentColor", "stroke-opacity": 0.15 };
    drawing.append(svg("line", grid_line), text(0, y + 4, value.toFixed(2)));
  }
  drawing.append(
    text(46, 14, y_title),
    text(46, 212, String(left)),
    text(626, 212, String(right), { "text-anchor": "end" }),
    text(336, 228, x_title, { "text-anchor": "middle" }),
  );

  // The lines, with their names on top if there are several
  lines.forEach(([name, line_xs, line_ys], i) => {
    const stroke = `rgb(var(--${i ? "above" : "below"}))`;
    const style = { stroke, "stroke-width": 2, "stroke-dasharray": i ? "5 4" : "none", fill: "none" };
    const points = line_xs.map((x, k) => `${x_place(x)},${y_place(line_ys[k])}`).join(" ");
    drawing.append(svg("polyline", { ...style, points }));
    if (lines.length > 1) {
      const y = 12 + 18 * i;
      drawing.append(svg("line", { ...style, x1: 330, x2: 360, y1: y, y2: y }), text(368, y + 4, name));
    }
  });
  return drawing;
}
