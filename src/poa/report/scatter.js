// The chart of sizes: points, intervals, the front, the budget, and what pointer and keys do there.
"use strict";

const MANY = 60; // from here on points are smaller, and the y axis has no room for all intervals
const NEAR = 24; // pixels from which the pointer reaches a point
const MOVED = 8; // pixels from which a click is a drag
const NAMES = 14; // most names in the chart
const scatter = { canvas: null, marks: new Map(), x: null, y: null, box: null };

/** Draw everything anew: for another cost or score, or another width of the page. */
function drawScatter() {
  const width = Math.max(280, byId("plot").clientWidth), height = Math.min(440, Math.max(300, width * 0.52));
  const box = { left: 42, right: width - 10, top: 28, bottom: height - 40 };
  const shown = drawable().filter((point) => !state.hidden.has(point.subject));
  const canvas = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, tabindex: 0, role: "group" });
  canvas.setAttribute("aria-label", state.y ? `${state.y.label} against ${state.x.label}` : "No size is scored");
  canvas.setAttribute("aria-describedby", "help");
  Object.assign(scatter, { canvas, box, marks: new Map() });
  if (shown.length) drawPoints(shown);
  else canvas.append(svg("text", { x: 12, y: 40 }, state.y ? `No size has this score and ${state.x.label}.` : "No size is scored."));
  byId("plot").replaceChildren(canvas);
}

function drawPoints(shown) {
  const { canvas, box, marks } = scatter;
  const bounds = shown.length > MANY ? [] : shown.flatMap((point) => interval(point) ?? []);
  scatter.x = scale(ends(shown.map((point) => cost(point)), true, 0.05), [box.left, box.right], true);
  scatter.y = scale(ends([...shown.map((point) => score(point)), ...bounds], false, 0.06), [box.bottom, box.top], false);
  for (const point of shown) marks.set(point, markOf(point, shown.length > MANY ? Math.min(3.6, box.right / 160) : 5.5));
  canvas.append(
    axes(scatter.x, scatter.y, { ...box, xLabel: state.x.label, yLabel: state.y.label }),
    svg("g", { class: "limits" }),
    svg("path", { class: "front" }),
    ...[...marks.values()].flatMap((mark) => mark.whisker ?? []),
    ...[...marks.values()].map((mark) => mark.symbol),
    svg("g", { class: "names" }),
    svg("rect", { class: "frame", visibility: "hidden" }),
  );
  listen(canvas);
}

function markOf(point, radius) {
  const x = scatter.x(cost(point)), y = scatter.y(score(point)), pair = interval(point);
  const clipped = (value) => Math.min(scatter.box.bottom, Math.max(scatter.box.top, scatter.y(value)));
  const whisker = pair && svg("line", { class: "whisker", x1: x, x2: x, y1: clipped(pair[0]), y2: clipped(pair[1]) });
  return { x, y, whisker, symbol: symbolOf(point, x, y, radius) };
}

/** A circle, coloured by depth, for the first subject; squares, diamonds and triangles for others. */
function symbolOf(point, x, y, radius) {
  if (point.subject) {
    const corners = [[-5, -5, 5, -5, 5, 5, -5, 5], [0, -7, 7, 0, 0, 7, -7, 0], [0, -6, 6, 5, -6, 5]][(point.subject - 1) % 3];
    const places = corners.map((value, number) => (number % 2 ? y : x) + value);
    return svg("path", { class: `point f${((point.subject - 1) % 5) + 1}`, d: `M${places.join(" ")}Z` });
  }
  const circle = svg("circle", { class: "point", cx: x, cy: y, r: radius, "stroke-width": radius / 5 });
  circle.style.fill = `color-mix(in oklab, var(--deep) ${Math.round(100 * depthShare(point))}%, var(--shallow))`;
  return circle;
}

const depths = points.filter((point) => !point.subject).map((point) => point.depth ?? 0);
const [shallowest, deepest] = [Math.min(...depths), Math.max(...depths)];
const depthShare = (point) => (deepest > shallowest ? (point.depth - shallowest) / (deepest - shallowest) : 1);

/** Show what the budget leaves, and the size that is looked at. */
function updateScatter({ within, front, best, looked }) {
  const kept = new Set(within), bold = new Set(front), all = byId("whiskers").checked;
  for (const [point, { whisker, symbol }] of scatter.marks) {
    symbol.classList.toggle("out", !kept.has(point));
    symbol.classList.toggle("chosen", point === looked);
    whisker?.classList.toggle("shown", point === looked || (kept.has(point) && (all || bold.has(point))));
  }
  if (!scatter.marks.size) return;
  const places = front.map((point) => scatter.marks.get(point));
  const steps = places.map(({ x, y }, number) => (number ? `H${x}V${y}` : `M${x} ${y}`));
  scatter.canvas.querySelector(".front").setAttribute("d", steps.join(""));
  scatter.canvas.querySelector(".names").replaceChildren(...names([looked, best, ...front]));
  scatter.canvas.querySelector(".limits").replaceChildren(...limitLines());
}

/** Names of points, the first before others, as far as there is room. */
function names(wanted) {
  const taken = [];
  for (const point of new Set(wanted)) {
    const mark = scatter.marks.get(point);
    if (!mark || taken.length >= NAMES) continue;
    const text = nameOf(point), half = 3.7 * text.length, y = mark.y - 10;
    const x = Math.min(scatter.box.right - half, Math.max(scatter.box.left + half, mark.x));
    if (taken.some((other) => Math.abs(other.x - x) < other.half + half && Math.abs(other.y - y) < 15)) continue;
    taken.push({ x, y, half, text });
  }
  return taken.map(({ x, y, text }) => svg("text", { class: "name", x, y, "text-anchor": "middle" }, text));
}

/** The limits on the shown cost and score, and what is beyond them. */
function limitLines() {
  const { left, right, top, bottom } = scatter.box, most = state.most.get(state.x.key), drawn = [];
  if (most !== undefined) {
    const x = most > 0 ? Math.min(right, Math.max(left, scatter.x(most))) : left;
    drawn.push(svg("rect", { class: "beyond", x, y: top, width: right - x, height: bottom - top }));
    drawn.push(svg("line", { class: "limit", x1: x, x2: x, y1: top, y2: bottom }));
  }
  if (state.least !== null) {
    const y = Math.min(bottom, Math.max(top, scatter.y(state.least)));
    drawn.push(svg("rect", { class: "beyond", x: left, y, width: right - left, height: bottom - y }));
    drawn.push(svg("line", { class: "limit", x1: left, x2: right, y1: y, y2: y }));
  }
  return drawn;
}

function listen(canvas) {
  const frame = canvas.querySelector(".frame");
  let start = null;
  const end = () => {
    start = null;
    frame.setAttribute("visibility", "hidden");
  };
  const place = (event) => {
    const sides = canvas.getBoundingClientRect();
    return { x: event.clientX - sides.left, y: event.clientY - sides.top };
  };
  canvas.addEventListener("pointerdown", (event) => {
    start = place(event);
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (start) setFrame(frame, start, place(event));
    else showTip(nearest(place(event)));
  });
  canvas.addEventListener("pointerup", (event) => {
    const here = place(event), found = nearest(here);
    if (start && Math.hypot(here.x - start.x, here.y - start.y) > MOVED) brush(start, here);
    else if (found) choose(found);
    end();
  });
  canvas.addEventListener("pointercancel", end);
  canvas.addEventListener("pointerleave", () => showTip(null));
  canvas.addEventListener("keydown", (event) => stepThrough(event, choice().within, choose));
}

function setFrame(frame, one, other) {
  const [x, y] = [Math.min(one.x, other.x), Math.min(one.y, other.y)];
  const sides = { x, y, width: Math.abs(one.x - other.x), height: Math.abs(one.y - other.y), visibility: "visible" };
  for (const [key, value] of Object.entries(sides)) frame.setAttribute(key, value);
}

/** Make a dragged frame the budget. A flat one leaves the score as it is; an edge past all points is no limit. */
function brush(one, other) {
  const { left, right, top, bottom } = scatter.box, edge = Math.max(one.x, other.x);
  if (edge > left && edge < right) state.most.set(state.x.key, Number(scatter.x.back(edge).toPrecision(3)));
  else state.most.delete(state.x.key);
  if (Math.abs(one.y - other.y) > 2 * MOVED) {
    const low = Math.max(one.y, other.y);
    state.least = low > top && low < bottom ? Number(scatter.y.back(low).toFixed(1)) : null;
  }
  writeBudget();
  update();
}

/** The point under the pointer, those within the budget before others. */
function nearest({ x, y }) {
  let found = null, least = NEAR;
  for (const [point, mark] of scatter.marks) {
    const distance = Math.hypot(mark.x - x, mark.y - y) + (isWithin(point) ? 0 : NEAR / 4);
    if (distance < least) [found, least] = [point, distance];
  }
  return found;
}

function showTip(point) {
  byId("tip").hidden = !point;
  if (!point) return;
  const { x, y } = scatter.marks.get(point);
  byId("tip").textContent = `${nameOf(point)}: ${bounded(point)} %, ${digits(cost(point))} ${state.x.unit}`;
  byId("tip").style.left = `${Math.max(0, Math.min(x + 14, byId("plot").clientWidth - byId("tip").offsetWidth))}px`;
  byId("tip").style.top = `${y + 12}px`;
}
