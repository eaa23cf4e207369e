// The page around the chart: budget, table, answer, the size that is looked at, training curves, pictures.
"use strict";

const byId = (id) => document.getElementById(id);

// --- table ---

const columns = [
  { label: "size", value: (point) => points.indexOf(point), text: (point) => nameOf(point) + (point.intact ? " *" : "") },
  ...content.costs.map((axis) => ({ label: axis.heading, value: (point) => cost(point, axis), text: (point) => digits(cost(point, axis)) })),
  ...content.scores.map((axis) => ({ label: axis.key, value: (point) => score(point, axis), text: (point) => bounded(point, axis), down: true })),
];
const rows = new Map(); // by point
const order = { points: [...points], column: columns[0], down: false };

function drawTable() {
  for (const point of points) {
    const cells = columns.map((column) => html("td", { role: "cell" }, column.text(point)));
    rows.set(point, html("tr", { role: "row", onclick: () => choose(point) }, ...cells));
  }
  const heads = columns.map((column) => html("th", { role: "columnheader" }, html("button", { type: "button", onclick: () => sortBy(column) }, column.label)));
  const head = html("thead", { role: "rowgroup" }, html("tr", { role: "row" }, ...heads));
  const body = html("tbody", { role: "rowgroup" }, ...rows.values());
  body.addEventListener("keydown", (event) => stepThrough(event, order.points.filter(isWithin), focusRow));
  byId("table").append(html("table", { role: "table", class: points.length > MANY ? "many" : "" }, head, body)); // roles, since the style makes it no table
}

/** Sort by a column, and the other way round where it is sorted by that already. Points without a value come last. */
function sortBy(column) {
  order.down = order.column === column ? !order.down : Boolean(column.down);
  order.column = column;
  order.points.sort((one, other) => {
    const a = column.value(one), b = column.value(other);
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    return order.down ? b - a : a - b;
  });
  byId("table").querySelector("tbody").append(...order.points.map((point) => rows.get(point)));
  byId("table").querySelectorAll("th").forEach((head, number) => {
    if (columns[number] === column) head.setAttribute("aria-sort", order.down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
}

function updateTable({ best, looked }) {
  const shown = order.points.filter(isWithin), reached = shown.includes(looked) ? looked : shown[0];
  for (const [point, row] of rows) {
    row.hidden = !isWithin(point);
    row.className = (point === looked ? "chosen " : "") + (point === best ? "best" : "");
    row.tabIndex = point === reached ? 0 : -1; // one stop for the tab key; arrow keys go on from there
  }
  byId("shown").textContent = `${shown.length} of ${points.length} shown`;
}

function focusRow(point) {
  choose(point);
  rows.get(point)?.focus();
}

/** Arrow keys, Home and End go to another point of a list; Escape goes back to the best. */
function stepThrough(event, list, go) {
  const place = list.indexOf(choice().looked);
  const next = { ArrowRight: place + 1, ArrowDown: place + 1, ArrowLeft: place - 1, ArrowUp: place - 1, Home: 0, End: list.length - 1 }[event.key];
  if (event.key !== "Escape" && next === undefined) return;
  event.preventDefault();
  if (event.key === "Escape") choose(null);
  else if (list.length) go(list[Math.min(list.length - 1, Math.max(0, next))]);
}

// --- answer ---

const link = (point) => html("button", { type: "button", class: "link", onclick: () => choose(point) }, nameOf(point));

function updateAnswer({ within, best, equal }) {
  const parts = [];
  if (!state.y) parts.push("No size is scored. Score some with `poa evaluate`, and write this page again. Without labels, take the largest size that you can afford.");
  else if (!best) parts.push("No size is within the budget.");
  else parts.push(`The best of ${within.length}: `, link(best), `, ${state.y.key} ${bounded(best)} %, ${digits(cost(best))} ${state.x.unit}.`);
  if (equal.length) {
    const listed = equal.slice(0, 3).flatMap((point) => [link(point), ", "]).slice(0, -1);
    const more = equal.length > 3 ? ` and ${equal.length - 3} more` : "";
    parts.push(" Within its interval and cheaper: ", ...listed, `${more}.`);
  }
  const lacking = [...limits.keys()].filter((axis) => state.most.has(axis.key));
  const unknown = points.filter((point) => lacking.some((axis) => cost(point, axis) === undefined)).length;
  if (unknown) parts.push(` ${unknown} of all sizes are not measured and left out.`);
  byId("answer").replaceChildren(...parts);
}

// --- details of a size ---

function updateDetail({ within, looked }) {
  const aside = byId("detail"), back = html("button", { type: "button", class: "link", onclick: () => choose(null) }, "Go back to the best");
  if (aside.point !== looked || !aside.hasChildNodes()) aside.replaceChildren(...(looked ? detailsOf(looked) : ["Choose a size."]));
  aside.point = looked;
  if (!looked) return;
  const outside = within.includes(looked) ? "" : "It is not within the budget. ";
  byId("hint").replaceChildren(...(state.chosen ? [outside, back] : []));
}

function detailsOf(point) {
  const subject = content.subjects[point.subject];
  const values = [
    ...content.costs.filter((axis) => cost(point, axis) !== undefined).map((axis) => [axis.label, digits(cost(point, axis))]),
    ...content.scores.filter((axis) => score(point, axis) !== undefined).map((axis) => [`${axis.key}, %`, bounded(point, axis)]),
  ];
  const whole = point.intact ? " It is the intact network, from which the others are cut." : "";
  return [
    html("h2", {}, nameOf(point)),
    html("p", { id: "hint", class: "soft" }),
    html("p", { class: "soft" }, subject.about + whole),
    html("dl", {}, ...values.flatMap(([name, value]) => [html("dt", {}, name), html("dd", {}, value)])),
    ...blocksOf(point),
    ...subject.commands.map(({ title, parts }) => commandOf(title, parts.join(point.name))),
    ...(point.card ? [html("details", {}, html("summary", {}, "Model card"), html("pre", {}, point.card))] : []),
  ];
}

/** The blocks of the intact network, a line for each stage; those that the size keeps are filled. */
function blocksOf(point) {
  if (!point.blocks.length) return [];
  const stages = point.blocks.map(({ all, kept }) => {
    const squares = Array.from({ length: all }, (_, number) => html("i", { class: kept.includes(number) ? "kept" : "" }));
    return html("div", { class: "blocks", role: "img", "aria-label": `${kept.length} of ${all}: ${kept.join(", ")}` }, ...squares);
  });
  return [html("h3", {}, "Blocks kept of the intact network"), ...stages];
}

function commandOf(title, text) {
  const code = html("pre", {}, text), button = html("button", { type: "button", "aria-label": `Copy: ${title}` }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code); // where the browser keeps the clipboard closed
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  return html("div", { class: "command" }, html("span", {}, title), button, code);
}

// --- budget ---

const limits = new Map(); // inputs, by cost

function drawControls() {
  for (const [id, list] of [["x", content.costs], ["y", content.scores]]) {
    byId(id).append(...list.map((axis) => html("option", {}, axis.label)));
    byId(id).addEventListener("change", () => changeAxis(id, list[byId(id).selectedIndex]));
  }
  for (const axis of content.costs) {
    const input = html("input", { type: "number", min: 0, step: "any", "aria-label": `${axis.label}, at most` });
    limits.set(axis, input);
    byId("limits").append(html("label", {}, `${axis.heading} ≤ `, input));
  }
  byId("budget").addEventListener("input", readBudget);
  byId("clear").addEventListener("click", clear);
  byId("whiskers").checked = points.length <= MANY;
  byId("whiskers").addEventListener("change", update);
  byId("filter").addEventListener("input", () => {
    state.filter = byId("filter").value.trim().toLowerCase();
    update();
  });
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
}

function changeAxis(id, axis) {
  state[id] = axis;
  if (id === "y") state.least = null; // it was a limit on another score
  writeBudget();
  redraw();
}

/** The number in a field; null where there is none. */
function typed(input) {
  return input.value === "" || Number.isNaN(input.valueAsNumber) ? null : input.valueAsNumber;
}

function readBudget() {
  state.most.clear();
  for (const [axis, input] of limits) if (typed(input) !== null) state.most.set(axis.key, typed(input));
  state.least = typed(byId("least"));
  update();
}

function writeBudget() {
  for (const [axis, input] of limits) input.value = state.most.get(axis.key) ?? "";
  byId("least").value = state.least ?? "";
  byId("least-label").textContent = `${state.y ? state.y.key : "score"} ≥`;
}

function clear() {
  Object.assign(state, { most: new Map(), least: null, chosen: null, filter: "" });
  byId("filter").value = "";
  writeBudget();
  update();
}

// --- subjects, curves, pictures ---

function drawLegend() {
  const isRun = deepest > shallowest;
  const key = (subject, number) => {
    const box = html("input", { type: "checkbox", checked: true, onchange: (event) => {
      if (event.target.checked) state.hidden.delete(number);
      else state.hidden.add(number);
      redraw();
    } });
    return html("label", {}, box, svg("svg", { viewBox: "-8 -8 16 16" }, symbolOf({ subject: number, depth: deepest }, 0, 0, 6)), subject.name);
  };
  if (content.subjects.length > 1) byId("legend").append(...content.subjects.map(key));
  if (isRun) byId("legend").append(html("span", {}, `blocks ${shallowest}`, html("span", { class: "ramp" }), String(deepest)));
  byId("legend").append(html("span", {}, "dotted: the best up to that cost"));
}

function drawCurves() {
  byId("curves").hidden = !content.curves.length;
  const grid = byId("curves").querySelector(".grid");
  grid.replaceChildren(...content.curves.map((curve) => lineChart(curve, 320)));
}

function drawPictures() {
  byId("pictures").hidden = !content.pictures.length;
  for (const { title, text, notes, pictures } of content.pictures) {
    const figures = pictures.map(({ image, caption }) => html("figure", {}, html("img", { src: image, alt: caption, loading: "lazy" }), html("figcaption", { class: "soft" }, caption)));
    byId("pictures").append(html("details", {}, html("summary", {}, title), html("p", {}, text), ...notes.map((note) => html("p", { class: "soft" }, note)), ...figures));
  }
}

// --- all of it ---

/** After a change of the budget or of the size that is looked at. */
function update() {
  const found = choice();
  updateScatter(found);
  updateTable(found);
  updateAnswer(found);
  updateDetail(found);
}

/** After a change of what the chart shows. */
function redraw() {
  drawScatter();
  update();
}

function choose(point) {
  state.chosen = point;
  showTip(null);
  update();
}

drawControls();
drawLegend();
drawTable();
drawCurves();
drawPictures();
writeBudget();
byId("notes").append(...content.notes.map((note) => html("p", { class: "soft" }, note)));
redraw();
let width = byId("plot").clientWidth;
new ResizeObserver(() => {
  if (byId("plot").clientWidth === width) return; // its height changes with every drawing
  width = byId("plot").clientWidth;
  redraw();
}).observe(byId("plot"));
