// Values: the sizes, what the user has set, and what a budget leaves.
"use strict";

const content = JSON.parse(document.getElementById("content").textContent);
const points = content.points;

const state = {
  x: content.costs[0],
  y: content.scores[0] ?? null,
  most: new Map(), // by key of a cost
  least: null, // of the shown score: points with a worse one are left out
  hidden: new Set(), // numbers of subjects
  filter: "", // part of a name
  chosen: null, // the point that the user looks at; without one it is the best
};

const cost = (point, axis = state.x) => point.costs[axis.key];
const score = (point, axis = state.y) => (axis ? point.scores[axis.key] : undefined);
const interval = (point, axis = state.y) => (axis ? point.intervals[axis.key] : undefined);

function nameOf(point) {
  return content.subjects.length > 1 ? `${content.subjects[point.subject].name} ${point.name}` : point.name;
}

/** A score with half of its interval, as in the tables of the command. */
function bounded(point, axis = state.y) {
  const value = score(point, axis), pair = interval(point, axis);
  if (value === undefined) return "–";
  return value.toFixed(1) + (pair ? ` ± ${((pair[1] - pair[0]) / 2).toFixed(1)}` : "");
}

/** Whether a point meets all that is set. One without a value of a limited cost does not. */
function isWithin(point) {
  if (state.hidden.has(point.subject) || !point.name.toLowerCase().includes(state.filter)) return false;
  for (const [key, most] of state.most) if (!(point.costs[key] <= most)) return false;
  if (state.least === null) return true;
  return score(point) >= state.least;
}

/** Points that have a place in the chart, the cheapest first. */
function drawable() {
  const found = points.filter((point) => cost(point) > 0 && score(point) !== undefined);
  return found.sort((one, other) => cost(one) - cost(other));
}

/** The Pareto front: each point is better than all that are cheaper or cost the same. */
function frontOf(sorted) {
  const front = [];
  for (const point of sorted) {
    const last = front.at(-1);
    if (last && score(point) <= score(last)) continue;
    if (last && cost(last) === cost(point)) front.pop();
    front.push(point);
  }
  return front;
}

/** What the budget leaves: points in the chart, their front, the best, and cheaper ones within its interval. */
function choice() {
  const within = drawable().filter(isWithin);
  const front = frontOf(within);
  const best = front.at(-1) ?? null;
  const pair = best && interval(best);
  const equal = pair ? within.filter((point) => cost(point) < cost(best) && score(point) >= pair[0]) : [];
  return { within, front, best, equal, looked: state.chosen ?? best };
}
