// Drawing: elements, numbers as text, scales, axes, charts of lines. Nothing here knows what a size is.
"use strict";

/** An element of HTML. Texts become text nodes, so that no name is ever taken for markup. */
function html(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** An element of SVG. */
function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function filled(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** Three significant digits; thousands whole. */
function digits(value) {
  if (value === undefined) return "–";
  return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : value.toPrecision(3);
}

/** The same without zeros at the end. */
function short(value) {
  return Math.abs(value) >= 1000 ? digits(value) : String(Number(value.toPrecision(3)));
}

/** A function from values to places between `low` and `high`; its `back` is the inverse. */
function scale([from, to], [low, high], isLog) {
  const bend = isLog ? Math.log : (value) => value;
  const start = bend(from), length = bend(to) - start || 1;
  const place = (value) => low + ((high - low) * (bend(value) - start)) / length;
  place.back = (where) => {
    const bent = start + (length * (where - low)) / (high - low);
    return isLog ? Math.exp(bent) : bent;
  };
  place.ends = [from, to];
  place.isLog = isLog;
  return place;
}

/** The smallest and the largest value, with room beyond. */
function ends(values, isLog, room) {
  const low = Math.min(...values), high = Math.max(...values);
  if (isLog) {
    const factor = (high / low) ** room * (high === low ? 1.5 : 1);
    return [low / factor, high * factor];
  }
  const more = (high - low || Math.abs(high) || 1) * room;
  return [low - more, high + more];
}

/** Round values to write along an axis, about as many as are wanted. */
function ticks(place, wanted) {
  const [from, to] = place.ends;
  if (place.isLog && to / from > 4) {
    const found = [];
    const leading = to / from > 300 ? [1] : to / from > 30 ? [1, 3] : to / from > 12 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 6, 8];
    for (let power = Math.floor(Math.log10(from)); power <= Math.log10(to); power++)
      for (const digit of leading) found.push(Number(`${digit}e${power}`));
    return found.filter((value) => value >= from && value <= to);
  }
  const rough = (to - from) / wanted, unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * ([1, 2, 5].find((digit) => digit * unit >= rough) ?? 10);
  const found = [];
  for (let number = Math.ceil(from / step); number * step <= to; number++) found.push(Number((number * step).toPrecision(12)));
  return found;
}

/** Axes of a chart: `x` and `y` are scales, the labels texts. */
function axes(x, y, { xLabel, yLabel, left, right, top, bottom }) {
  const drawn = svg("g", { class: "axis" });
  for (const value of ticks(x, (right - left) / 65))
    drawn.append(
      svg("line", { x1: x(value), x2: x(value), y1: top, y2: bottom }),
      svg("text", { x: x(value), y: bottom + 16, "text-anchor": "middle" }, short(value)),
    );
  for (const value of ticks(y, (bottom - top) / 40))
    drawn.append(
      svg("line", { x1: left, x2: right, y1: y(value), y2: y(value) }),
      svg("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, short(value)),
    );
  drawn.append(svg("text", { x: right, y: bottom + 33, "text-anchor": "end" }, xLabel));
  if (yLabel) drawn.append(svg("text", { x: 0, y: top - 10 }, yLabel));
  return drawn;
}

/** A small chart of lines over steps: title, legend, a mark if there is one, values where the pointer is. */
function lineChart({ title, lines, mark }, width) {
  const box = { left: 44, right: width - 8, top: 10, bottom: 140 };
  const all = lines.flatMap((line) => line.values).concat(mark ? [mark.value] : []);
  const steps = lines.flatMap((line) => line.steps);
  const x = scale([Math.min(...steps), Math.max(...steps)], [box.left, box.right], false);
  const y = scale(ends(all, false, 0.06), [box.bottom, box.top], false);
  const canvas = svg("svg", { viewBox: `0 0 ${width} 176`, role: "img", "aria-label": title });
  canvas.append(axes(x, y, { ...box, xLabel: "step", yLabel: "" }));
  if (mark)
    canvas.append(
      svg("line", { class: "mark", x1: box.left, x2: box.right, y1: y(mark.value), y2: y(mark.value) }),
      svg("text", { class: "marked", x: box.right, y: y(mark.value) - 4, "text-anchor": "end" }, `${mark.label} = ${digits(mark.value)}`),
    );
  const keys = lines.map((line, number) => {
    const text = html("span", {}, line.name);
    canvas.append(linePath(line, number, x, y));
    return { line, text, shown: html("span", {}, svg("svg", { viewBox: "0 0 16 9" }, svg("line", { class: `line ${colour(number)}`, x1: 0, x2: 16, y1: 5, y2: 5 })), " ", text) };
  });
  canvas.addEventListener("pointermove", (event) => {
    const step = x.back(((event.clientX - canvas.getBoundingClientRect().left) * width) / canvas.clientWidth);
    for (const { line, text } of keys) {
      const near = line.steps.findIndex((each, number) => number === line.steps.length - 1 || line.steps[number + 1] + each > 2 * step);
      text.textContent = `${line.name} ${short(line.values[near])} at ${line.steps[near]}`;
    }
  });
  canvas.addEventListener("pointerleave", () => keys.forEach(({ line, text }) => (text.textContent = line.name)));
  return html("figure", {}, html("h3", {}, title), canvas, html("figcaption", { class: "keys" }, ...keys.map((key) => key.shown)));
}

function linePath(line, number, x, y) {
  const points = line.steps.map((step, place) => `${x(step).toFixed(1)},${y(line.values[place]).toFixed(1)}`);
  return points.length > 1
    ? svg("polyline", { class: `line ${colour(number)}`, points: points.join(" ") })
    : svg("circle", { class: `line ${colour(number)}`, cx: x(line.steps[0]), cy: y(line.values[0]), r: 2 });
}

function colour(number) {
  return `c${number % 6}`;
}
