"use strict";

// The matching: lines between the columns, as wide as shares, and what a person has to judge.

const BLOCKS = 300; // rows up to which every block is a row of its own

const isBlock = (row) => row.kind === "group" && /(^|\.)\d+$/.test(row.name);
const holdsBlocks = (row) => (row.children || []).some((child) =>
  child.kind === "run" || isBlock(child) || holdsBlocks(child));

/** Open the rows down to the innermost blocks, and every copy of these. */
function openDownToBlocks(rows) {
  for (const row of rows.filter((one) => one.children)) {
    row.listed = row.kind === "run";
    row.open = row.listed || !isBlock(row) || holdsBlocks(row);
    openDownToBlocks(row.children);
  }
}

/** Lines to draw, by the rows that they join, with the part of the base row's mass on each. */
function joined(targets) {
  const lines = new Map();
  const rowsOf = (side, i) =>
    [...new Set((columns[side].holder.get(i) || []).map((element) => element.closest(".row")))];
  for (const target of targets) {
    const { base: answers, doubt } = SIDES[1].parameters[target];
    for (const [name, share] of answers) {
      const source = NUMBERS[0].get(name);
      if (selection.side === 0 && selection.parameters.length && !selection.parameters.includes(source)) continue;
      const [ours, theirs] = [rowsOf(0, source), rowsOf(1, target)];
      const inStep = ours.length === theirs.length; // a tied parameter's uses
      for (const [use, one] of ours.entries()) {
        if (!lines.has(one)) lines.set(one, { sources: new Set(), ends: new Map() });
        const { sources, ends } = lines.get(one);
        sources.add(source);
        for (const other of inStep ? [theirs[use]] : theirs) {
          const end = ends.get(other) || { mass: 0, doubt: false };
          ends.set(other, { mass: end.mass + share, doubt: end.doubt || Boolean(doubt) });
        }
      }
    }
  }
  return lines;
}

/** A line across the gap between the columns, at the heights of two rows; it crosses no text. */
function link(one, other, frame, part, doubt) {
  const [x, u] = [columns[0].element, columns[1].element]
    .map((element, i) => element.getBoundingClientRect()[i ? "left" : "right"] - frame.left);
  const [y, v] = [one, other].map((row) => {
    const box = row.getBoundingClientRect();
    return (box.top + box.bottom) / 2 - frame.top;
  });
  const middle = (x + u) / 2;
  const line = svg("path", { d: `M ${x} ${y} C ${middle} ${y} ${middle} ${v} ${u} ${v}`,
    "stroke-width": 1 + 4 * Math.min(part, 1) });
  if (doubt) line.classList.add("doubt");
  return line;
}

/** Show what is selected, and what answers to it; lines lead from the base to the target. */
function drawMatching() {
  links.replaceChildren();
  const { side, parameters, answers } = selection;
  columns.forEach((column, s) => {
    const chosen = new Set((s === side ? parameters : []).flatMap((i) => column.holder.get(i) || []));
    const answering = new Set((s === side ? [] : answers).flatMap((i) => column.holder.get(i) || []));
    for (const chip of column.rows.querySelectorAll("button.chip:not(.copies), .toggle")) {
      if (chip.classList.contains("chip")) chip.setAttribute("aria-pressed", String(chosen.has(chip)));
      chip.classList.toggle("answer", answering.has(chip));
    }
    for (const row of column.rows.querySelectorAll(".row")) {
      row.classList.toggle("marked", [...row.children].some((c) => chosen.has(c) || answering.has(c)));
    }
  });
  if (columns.length < 2) return;
  const whole = !parameters.length && byId("whole").checked;
  links.classList.toggle("whole", whole);
  const targets = whole ? SIDES[1].parameters.keys() : side === 1 ? parameters : answers;
  const frame = graph.getBoundingClientRect();
  for (const [one, { sources, ends }] of joined(targets)) {
    for (const [other, { mass, doubt }] of ends) {
      links.append(link(one, other, frame, mass / sources.size, doubt));
    }
  }
}

/** A button that selects a parameter. */
function chooser(side, index) {
  const { name } = SIDES[side].parameters[index];
  const button = make("button", { type: "button" }, ...broken(name));
  button.addEventListener("click", () => select(side, [index]));
  return button;
}

function listed(title, items) {
  if (!items.length) return [];
  const more = items.length > LISTED ? [make("li", {}, `… ${items.length - LISTED} more in the table`)] : [];
  return [make("h3", {}, title), make("ul", {}, ...items.slice(0, LISTED), ...more)];
}

/** Doubtful matches with their reasons, and what has no counterpart. */
function drawJudgement() {
  const places = SIDES.map((side) => [...side.parameters.entries()]);
  const doubts = places[1].filter(([, p]) => p.doubt).map(([i, p]) => make("li", {}, chooser(1, i),
    ` answers to ${base(p.base).join(", ") || "nothing"}: ${p.doubt.reason}`,
    p.doubt.alternatives.length ? `; possible instead: ${p.doubt.alternatives.join(", ")}` : ""));
  const left = places.map((entries, side) => entries.filter(([, p]) => p.status === "unmatched")
    .map(([i]) => make("li", {}, chooser(side, i))));
  const content = [
    ...listed(`In doubt: ${doubts.length}`, doubts),
    ...(DATA.matching ? listed(`Of the target, without a counterpart: ${left[1].length}`, left[1]) : []),
    ...listed(`Of the base, without a counterpart: ${left[0].length}`, left[0]),
  ];
  byId("judgement").hidden = !content.length && !DATA.matching;
  byId("judged").replaceChildren(...(content.length ? content : [make("p", {},
    "Nothing speaks against this matching, and every parameter that is used has a counterpart.")]));
}

listeners.push(drawMatching);
if (columns.length > 1) {
  byId("lines-of").hidden = byId("lines-hint").hidden = false;
  byId("whole").checked = Boolean(DATA.matching);
  byId("whole").addEventListener("change", () => {
    graph.classList.toggle("apart", byId("whole").checked);
    drawGraph();
  });
  graph.classList.toggle("apart", byId("whole").checked);
  drawJudgement();
}
if (DATA.matching) {
  for (const { rows } of SIDES) openDownToBlocks(rows);
  if (SIDES.some(({ rows }) => visible(rows) > BLOCKS)) SIDES.forEach(({ rows }) => openAtFirst(rows));
}
drawGraph();
let width = 0;
new ResizeObserver(([entry]) => {
  if (entry.contentRect.width === width) return;
  width = entry.contentRect.width;
  for (const column of columns) {
    column.rows.querySelector(".rail")?.remove();
    column.drawRail();
  }
  drawMatching();
}).observe(graph);
