"use strict";

// The table of all parameters: sorted by any column, filtered by a search.

const FIRST = 200; // rows shown until all are asked for

const COLUMNS = [
  { title: "side", text: (p) => p.side },
  { title: "parameter", text: (p) => p.name },
  { title: "multiplier", order: (p) => p.multiplier },
  { title: "status", text: (p) => p.status + (p.after ? ` after ${p.after}` : "") },
  { title: "op", text: (p) => p.op },
  { title: "shape", text: (p) => shape(p.shape), order: (p) => p.shape.reduce((a, b) => a * b, 1) },
  { title: "base", text: (p) => base(p.base).join(", ") },
  { title: "base FSLR", order: (p) => p.base_fslr },
  { title: "FSLR", order: (p) => p.fslr },
  { title: "± stderr", order: (p) => p.stderr, digits: 2 },
  { title: "late FSLR", order: (p) => p.late },
  { title: "doubt", text: (p) => p.doubt?.reason || "" },
  { title: "method", text: (p) => p.method || "" },
  { title: "samples", order: (p) => p.samples },
  { title: "note", text: (p) => p.note || "" },
];

// The target, which the multipliers are for, comes first.
const ENTRIES = SIDES.flatMap((side, s) =>
  side.parameters.map((p, index) => ({ ...p, side: side.title, s, index }))).sort((a, b) => b.s - a.s);
const cells = (column) => column.text || ((p) => format(column.order(p), column.digits));
const present = COLUMNS.filter((column) => column.title === "side" ? SIDES.length > 1
  : ENTRIES.some((p) => !["", "–"].includes(cells(column)(p))));
// What is the same on every row is told once.
const alike = present.filter((column) => !["side", "parameter"].includes(column.title) && ENTRIES.length > 1
  && ENTRIES.every((p) => cells(column)(p) === cells(column)(ENTRIES[0])));
const used = present.filter((column) => !alike.includes(column));
byId("alike").hidden = !alike.length;
byId("alike").append("The same on every row: ", ...alike.flatMap((column, i) =>
  [i ? ", " : "", term(column.title), ` ${printable(cells(column)(ENTRIES[0]))}`]), ".");
for (const entry of ENTRIES) {
  entry.found = used.filter((c) => c.text).map((c) => c.text(entry)).join("\n").toLowerCase();
}

const order = { column: null, descending: false };
let limit = FIRST;

function compare(a, b) {
  const key = order.column.order || order.column.text;
  const [x, y] = [key(a), key(b)];
  const missing = (v) => (v ?? "") === "";
  if (missing(x) || missing(y)) return missing(x) - missing(y); // last in both directions
  const sign = typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true });
  return order.descending ? -sign : sign;
}

function drawTable() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = ENTRIES.filter((entry) => words.every((word) => entry.found.includes(word)));
  if (order.column) found.sort(compare);
  const rows = found.slice(0, limit).map(tableRow);
  byId("table").tBodies[0].replaceChildren(...rows);
  byId("count").textContent = `${found.length} of ${ENTRIES.length} parameters`;
  byId("all").hidden = found.length <= limit;
  byId("all").textContent = `Show all ${found.length} rows, and not the first ${limit}`;
  markRows();
}

function tableRow(entry) {
  const row = make("tr", {}, ...used.map((column) => {
    const text = cells(column)(entry);
    if (column.title !== "parameter") {
      const parts = column.order ? [text] : broken(text);
      return make("td", { className: column.order ? "number" : "text" }, ...parts);
    }
    const button = make("button", { type: "button" }, ...broken(text));
    button.addEventListener("click", () => select(entry.s, [entry.index]));
    return make("td", { className: "text" }, button);
  }));
  row.entry = entry;
  return row;
}

function markRows() {
  const chosen = new Set(selection.parameters);
  for (const row of byId("table").tBodies[0].rows) {
    const { s, index } = row.entry;
    row.classList.toggle("chosen", s === selection.side && chosen.has(index));
  }
}

function sortBy(column) {
  order.descending = order.column === column && !order.descending;
  order.column = column;
  for (const head of byId("table").tHead.rows[0].cells) {
    const sorted = head.column === column;
    if (sorted) head.setAttribute("aria-sort", order.descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
  drawTable();
}

byId("table").tHead.append(make("tr", {}, ...used.map((column) => {
  const button = make("button", { type: "button", title: TERMS[column.title] || "" }, column.title);
  button.addEventListener("click", () => sortBy(column));
  const head = make("th", { scope: "col", className: column.order ? "number" : "" }, button);
  head.column = column;
  return head;
})));
byId("search").addEventListener("input", drawTable);
byId("all").addEventListener("click", () => {
  limit = Infinity;
  drawTable();
});
listeners.push(markRows);
drawTable();
