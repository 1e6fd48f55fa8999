"use strict";

// The parameter graph: rows in nested boxes, and a rail with the flow of data.

const ROOMY = 140; // rows up to which everything but repeats is open at first
const LANE = 9, LANES = 12; // distance and greatest number of lanes for flow that skips rows

/** One row in place of alike ones: what a folded run shows, with all copies in each row. */
function merged(copies) {
  const [first] = copies;
  if (first.children) {
    const children = first.children.map((_, i) => merged(copies.map((copy) => copy.children[i])));
    return { ...first, children };
  }
  const chips = first.chips.map((chip, i) => ({
    label: chip.label, parameters: copies.flatMap((copy) => copy.chips[i].parameters),
  }));
  return { ...first, junctions: copies.flatMap((copy) => copy.junctions), chips };
}

/** All junctions or parameters of a row, each once: a tied parameter is read in several places. */
function within(row, key) {
  const own = key === "junctions" ? row.junctions : row.chips?.flatMap((chip) => chip.parameters);
  return [...new Set(row.children ? row.children.flatMap((child) => within(child, key)) : own)];
}

/** What a run shows when its copies are not listed: one block for all. */
function template(run) {
  if (!run.template) {
    const one = merged(run.children);
    run.template = one.kind === "group" ? one.children : [{ ...one, name: "" }];
  }
  return run.template;
}

function setOpen(rows, open, level, depth = 0) {
  for (const row of rows.filter((one) => one.children)) {
    row.open = open && depth < level;
    row.listed = false;
    setOpen(row.kind === "run" ? template(row) : row.children, open, level, depth + 1);
    for (const copy of row.kind === "run" ? row.children.filter((one) => one.children) : []) {
      setOpen([copy], open, level, depth + 1);
      copy.open = false;
    }
  }
}

function visible(rows) {
  let count = 0;
  for (const row of rows) {
    count += 1;
    if (row.open) count += visible(row.kind === "run" && !row.listed ? template(row) : row.children);
  }
  return count;
}

/** Open all but the copies of repeats, and less where that is too much to read. */
function openAtFirst(rows) {
  for (let level = 8; level >= 0; level--) {
    setOpen(rows, true, level);
    if (visible(rows) <= ROOMY) return;
  }
}

function listAll(rows) {
  for (const row of rows.filter((one) => one.children)) {
    row.open = row.listed = true;
    listAll(row.children);
  }
}

/** What stands beside a doubtful match. */
const mark = () => make("span", { className: "doubtful", role: "img", "aria-label": "in doubt" }, "⚠");

class Column {
  constructor(side) {
    this.side = side;
    this.data = SIDES[side];
    this.focused = null; // the row or chip that Tab reaches
    this.rows = make("div", { className: "rows" });
    const count = this.data.parameters.length;
    this.element = make("div", { className: "side", role: "group",
      "aria-label": `Parameter graph of the ${this.data.title}` },
      make("h3", {}, `${this.data.title}, ${count} parameters`), this.rows);
    this.rows.addEventListener("keydown", (event) => this.move(event));
    this.rows.addEventListener("focusin", (event) => this.focus(event.target));
    openAtFirst(this.data.rows);
  }

  draw() {
    this.places = []; // the visible rows, in order
    this.place = new Map(); // junction -> index of its visible row
    this.holder = new Map(); // parameter -> elements that show it
    this.rows.replaceChildren(...this.data.rows.map((row) => this.row(row)));
    const items = [...this.rows.querySelectorAll("button")];
    const again = items.find((item) => item.row === this.focused?.row && item.label === this.focused?.label);
    for (const item of items) item.tabIndex = -1;
    if (items.length) (again || items[0]).tabIndex = 0;
    if (this.refocus) again?.focus();
    this.refocus = false;
    this.drawRail();
  }

  row(row) {
    return row.children ? this.group(row) : this.leaf(row);
  }

  leaf(row) {
    const chips = row.chips.map((chip) => this.chip(row, chip));
    const line = make("div", { className: "row" },
      row.name ? make("span", { className: "name" }, row.name) : null,
      make("span", { className: "op" }, row.op), ...chips);
    this.put(line, row.kind, row.junctions);
    return line;
  }

  chip(row, chip) {
    const parameters = chip.parameters.map((i) => this.data.parameters[i]);
    const button = make("button", { type: "button", className: "chip", "aria-pressed": "false" },
      swatch(parameters, this.data), chip.label);
    Object.assign(button, { row, label: chip.label, parameters: chip.parameters });
    withTip(button, () => details(parameters, chip.label));
    button.addEventListener("click", () => select(this.side, button.matches("[aria-pressed=true]") ? [] : chip.parameters));
    this.hold(button, chip.parameters);
    if (parameters.some((p) => p.doubt)) button.append(mark());
    return button;
  }

  group(row) {
    const run = row.kind === "run";
    const toggle = make("button", { type: "button", className: "toggle", "aria-expanded": String(row.open) },
      run ? `${row.name} × ${row.children.length}` : row.name);
    Object.assign(toggle, { row, label: "" });
    toggle.addEventListener("click", () => this.set(row, { open: !row.open }));
    const head = make("div", { className: "row" }, toggle);
    const box = make("div", { className: `group ${row.kind}` }, head);
    if (!row.open) {
      const parameters = within(row, "parameters");
      const all = parameters.map((i) => this.data.parameters[i]);
      head.append(swatch(all, this.data) || "", make("span", { className: "op" }, `${all.length} parameters`));
      if (all.some((p) => p.doubt)) head.append(mark());
      withTip(toggle, () => details(all, row.name));
      this.hold(toggle, parameters);
      this.put(head, "folded", within(row, "junctions"));
      return box;
    }
    if (run) {
      const list = make("button", { type: "button", "aria-pressed": String(row.listed) },
        row.listed ? "Fold the copies" : "List the copies");
      Object.assign(list, { row, label: "copies", className: "copies chip" });
      list.addEventListener("click", () => this.set(row, { listed: !row.listed }));
      head.append(list);
    }
    const children = run && !row.listed ? template(row) : row.children;
    box.append(...children.map((child) => this.row(child)));
    return box;
  }

  set(row, state) {
    Object.assign(row, state);
    this.refocus = true;
    drawGraph([this]);
  }

  hold(element, parameters) {
    for (const i of parameters) {
      if (!this.holder.has(i)) this.holder.set(i, []);
      this.holder.get(i).push(element);
    }
  }

  put(element, kind, junctions) {
    for (const junction of junctions) this.place.set(junction, this.places.length);
    this.places.push({ element, kind, junctions });
  }

  // Keys

  focus(target) {
    const item = target.closest("button");
    if (!item) return;
    for (const other of this.rows.querySelectorAll("button[tabindex='0']")) other.tabIndex = -1;
    item.tabIndex = 0;
    this.focused = item;
  }

  move(event) {
    const item = event.target.closest("button");
    const lines = [...this.rows.querySelectorAll(".row")].filter((one) => one.querySelector("button"));
    const at = lines.indexOf(item?.closest(".row"));
    const beside = item ? [...item.closest(".row").querySelectorAll("button")] : [];
    const along = beside.indexOf(item);
    const toggle = item?.classList.contains("toggle");
    const { key } = event;
    let next = null;
    if (key === "ArrowDown") next = lines[at + 1];
    else if (key === "ArrowUp") next = lines[at - 1];
    else if (key === "Home") next = lines[0];
    else if (key === "End") next = lines[lines.length - 1];
    else if (key === "ArrowRight" && toggle && !item.row.open) return this.keyed(event, item, true);
    else if (key === "ArrowLeft" && toggle && item.row.open) return this.keyed(event, item, false);
    else if (key === "ArrowRight") next = beside[along + 1];
    else if (key === "ArrowLeft") next = beside[along - 1] || item.closest(".group")?.querySelector("button");
    else return;
    event.preventDefault();
    (next?.matches("button") ? next : next?.querySelector("button"))?.focus();
  }

  keyed(event, item, open) {
    event.preventDefault();
    this.set(item.row, { open });
  }

  // Flow

  /** Edges between visible rows: those to the next row, and those that skip, each on a lane. */
  flow() {
    const next = new Set(), skips = new Map();
    for (const [tail, head] of this.data.edges) {
      const [from, to] = [this.place.get(tail), this.place.get(head)];
      // What leads up goes from one copy of a folded block to the next.
      if (from === undefined || to === undefined || from >= to) continue;
      if (to === from + 1) next.add(from);
      else skips.set(`${from} ${to}`, { from, to });
    }
    const ends = []; // of each lane, the rows that it is taken in
    const sorted = [...skips.values()].sort((a, b) => a.to - a.from - (b.to - b.from));
    for (const edge of sorted) {
      const free = ends.findIndex((taken) => taken.every((o) => o.to <= edge.from || o.from >= edge.to));
      edge.lane = free >= 0 ? free : Math.min(ends.length, LANES - 1);
      (ends[edge.lane] ||= []).push(edge);
    }
    return { next, skips: sorted, lanes: ends.length };
  }

  drawRail() {
    const { next, skips, lanes } = this.flow();
    const x = 12 + lanes * LANE;
    this.rows.style.setProperty("--rail", `${x + 12}px`);
    const top = this.rows.getBoundingClientRect().top;
    const heights = this.places.map(({ element }) => {
      const box = element.getBoundingClientRect();
      return box.top - top + Math.min(box.height / 2, 16);
    });
    const rail = svg("svg", { class: "rail", "aria-hidden": "true" });
    const arrow = (left, y, turned) => rail.append(svg("path", { class: "arrow", d: turned
      ? `M ${left - 5} ${y} l -6 -3.5 v 7 z` : `M ${left} ${y - 5} l -3.5 -6 h 7 z` }));
    for (const from of next) {
      rail.append(svg("path", { d: `M ${x} ${heights[from]} V ${heights[from + 1] - 8}` }));
      arrow(x, heights[from + 1], false);
    }
    for (const { from, to, lane } of skips) {
      const [left, y, end] = [x - (lane + 1) * LANE - 3, heights[from], heights[to]];
      const turn = Math.min(8, (end - y) / 2);
      rail.append(svg("path", { d: `M ${x} ${y} H ${left + turn} Q ${left} ${y} ${left} ${y + turn} ` +
        `V ${end - turn} Q ${left} ${end} ${left + turn} ${end} H ${x - 8}` }));
      arrow(x, end, true);
    }
    this.places.forEach(({ kind, junctions }, i) => {
      if (!junctions.length) return;
      rail.append(kind === "folded"
        ? svg("rect", { class: "dot", x: x - 4, y: heights[i] - 4, width: 8, height: 8 })
        : svg("circle", { class: `dot ${kind}`, cx: x, cy: heights[i], r: 4 }));
    });
    this.rows.append(rail);
  }
}

const columns = SIDES.map((_, side) => new Column(side));
const graph = byId("graph");
const links = svg("svg", { id: "links", "aria-hidden": "true" });

function drawGraph(changed = columns) {
  tip.hidden = true;
  for (const column of changed) column.draw();
  drawMatching();
}

graph.style.gridTemplateColumns = `repeat(${columns.length}, minmax(${columns.length > 1 ? "19rem" : 0}, 1fr))`;
graph.append(...columns.map((column) => column.element), links);
byId("colour").append(...shown.map((key) => make("option", { value: key }, QUANTITIES[key].title)));
byId("colour").addEventListener("change", (event) => {
  quantity = event.target.value;
  drawLegend();
  drawGraph();
});
byId("expand").addEventListener("click", () => {
  for (const column of columns) listAll(column.data.rows);
  drawGraph();
});
byId("fold").addEventListener("click", () => {
  for (const column of columns) setOpen(column.data.rows, false, 0);
  drawGraph();
});
drawLegend();
