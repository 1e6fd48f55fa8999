"use strict";

// What a reader wants to know first: counts, extremes, what speaks against it, and all multipliers.

const KINDS = 60; // rows of the picture
const NAMED = 3; // parameters that a line names

const FACTS = DATA.verdict;
const TARGET = SIDES[SIDES.length - 1].parameters;
const FOUND = TARGET.filter((p) => ["matched", "predicted"].includes(p.status));

const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
const numbers = (side) => side.parameters
  .reduce((sum, p) => sum + p.shape.reduce((a, b) => a * b, 1), 0);

/** The range of a quantity to two digits. */
const rough = (parameters, key) => spread(parameters.filter((p) => (p[key] ?? null) !== null)
  .map((p) => ({ [key]: Number(p[key].toPrecision(2)) })), key);

function counts(parameters) {
  const of = new Map();
  for (const { status } of parameters) of.set(status, (of.get(status) || 0) + 1);
  return [...of].map(([status, count]) => `${count} ${status}`).join(", ");
}

function headline() {
  const called = FACTS.names[FACTS.names.length - 1];
  const what = `${called ? `${called}: ` : ""}${plural(TARGET.length, "parameter")}`;
  if (SIDES.length === 1) {
    const fslrs = rough(TARGET.filter((p) => p.fslr > 0), "fslr");
    return `${what}${fslrs ? `, FSLRs ${fslrs}` : ""}`;
  }
  const range = rough(FOUND, "multiplier");
  return `${what}, ${counts(TARGET)}${range ? `; multipliers ${range}` : ""}`;
}

const indexOf = (parameter) => TARGET.indexOf(parameter);
const named = (parameter) => chooser(SIDES.length - 1, indexOf(parameter));

/** The first few parameters by name, and how many others there are. */
function some(parameters) {
  const parts = parameters.slice(0, NAMED).flatMap((p, i) => [i ? ", " : "", named(p)]);
  const more = parameters.length - NAMED;
  return more > 0 ? [...parts, ` and ${more} more`] : parts;
}

function extremes() {
  if (SIDES.length < 2 || !FOUND.length || DATA.matching) return null;
  const sorted = [...FOUND].sort((a, b) => a.multiplier - b.multiplier);
  const [low, high] = [sorted[0], sorted[sorted.length - 1]];
  return [format(low.multiplier), " of ", named(low), " to ", format(high.multiplier), " of ", named(high)];
}

function sizes() {
  const texts = SIDES.map((side, s) => {
    const called = FACTS.names[s] ? `${FACTS.names[s]}, ` : "";
    return `${side.title}: ${called}${plural(side.parameters.length, "parameter")} of ${numbers(side).toLocaleString("en")} numbers`;
  });
  return [texts.join("; ")];
}

function checked() {
  if (SIDES.length < 2 || DATA.matching) return null;
  const { checks } = FACTS;
  if (!checks) {
    return TARGET.some((p) => p.status === "predicted")
      ? ["there is none, since a law predicted the multipliers and nothing was measured"]
      : ["was not run: compiled.check() measures the compiled model again"];
  }
  const failed = TARGET.filter((p) => checks[p.name] === false);
  return failed.length
    ? [make("b", { className: "doubtful" }, "failed"), ` for ${plural(failed.length, "parameter")} of which the FSLR is not the base's when measured again: `, ...some(failed)]
    : ["passed: measured again, every matched parameter has the base's FSLR"];
}

/** What a reader has to know before the multipliers are believed. */
function cautions() {
  const lines = [];
  const say = (status, why) => {
    const of = TARGET.filter((p) => p.status === status);
    if (of.length) lines.push([`${plural(of.length, "parameter")} ${of.length === 1 ? "is" : "are"} ${status}, ${why}: `, ...some(of)]);
  };
  if (!DATA.matching) {
    say("unresolved", "since an FSLR is zero or noise, with a multiplier of 1 or of the first guess");
    if (SIDES.length > 1) say("unmatched", "without a counterpart in the base, with a multiplier of 1");
  }
  say("unused", "since the outputs do not depend on it");
  const notes = new Map();
  for (const p of TARGET) if (p.note) notes.set(p.note, [...(notes.get(p.note) || []), p]);
  for (const [note, of] of notes) lines.push([`Measured with a note, “${note}”: `, ...some(of)]);
  return [...FACTS.cautions.map((text) => [text]), ...lines];
}

/** Parameters at one place of blocks that repeat, in the order of the blocks. */
function kinds() {
  const of = new Map();
  for (const parameter of TARGET) {
    const kind = parameter.name.replace(/(^|\.)\d+(?=\.|$)/g, "$1*");
    of.set(kind, [...(of.get(kind) || []), parameter]);
  }
  return of;
}

const TALL = 32; // pixels of all bars
const WIDE = 9; // of one bar, but where there are many
const WIDEST_BARS = 200;

/** One bar for each block, up from the line where a multiplier is above 1, else down. */
function bars(parameters, low, high) {
  const wide = Math.min(WIDE, WIDEST_BARS / parameters.length);
  const line = 1 + TALL * high / (high - low);
  const picture = svg("svg", { class: "bars", width: parameters.length * wide, height: TALL + 2,
    viewBox: `0 0 ${parameters.length * wide} ${TALL + 2}`, preserveAspectRatio: "none", role: "img", "aria-label": parameters.map((p) => format(p.multiplier, 2)).join(", ") });
  parameters.forEach((p, i) => {
    const length = p.multiplier > 0 ? TALL * Math.log10(p.multiplier) / (high - low) : 0;
    const size = Math.max(Math.abs(length), 1);
    const bar = svg("rect", { class: `${p.status} ${length > 0 ? "above" : "below"}`,
      x: i * wide, y: line - (length > 0 ? size : 0), width: Math.max(wide - (wide > 3), 0.5), height: size });
    const area = svg("rect", { class: "area", x: i * wide, y: 0, width: wide, height: TALL + 2 });
    withTip(area, () => details([p], p.name));
    area.addEventListener("click", () => select(SIDES.length - 1, [indexOf(p)]));
    picture.append(bar, area);
  });
  picture.append(svg("line", { x1: 0, x2: parameters.length * wide, y1: line, y2: line }));
  return picture;
}

function drawBars() {
  const all = [...kinds()].filter(([, of]) => of.some((p) => p.status !== "unused"));
  const logs = FOUND.filter((p) => p.multiplier > 0).map((p) => Math.log10(p.multiplier));
  const [low, high] = [Math.min(...logs, -0.03), Math.max(...logs, 0.03)];
  const rows = all.slice(0, KINDS).map(([kind, of]) => {
    const found = of.filter((p) => FOUND.includes(p));
    const range = found.length ? rough(found, "multiplier") : of[0].status;
    return make("div", { className: "kind" }, make("span", { className: "name" }, ...broken(kind)),
      bars(of, low, high), make("span", { className: "faint" }, range));
  });
  const most = Math.max(...all.map(([, of]) => of.length));
  byId("bars").style.setProperty("--bars", `min(${Math.min(WIDE * most, WIDEST_BARS)}px, 30vw)`);
  if (all.length > KINDS) rows.push(make("p", { className: "faint" }, `and ${all.length - KINDS} more kinds in the table`));
  byId("bars").replaceChildren(...rows);
  const has = (...statuses) => TARGET.some((p) => statuses.includes(p.status));
  byId("bars-hint").textContent = "A bar for each block, from the first to the last, of the logarithm: " +
    "up from the line where a multiplier is above 1, and down where it is below." +
    (has("predicted") ? " Pale bars are predicted." : "") +
    (has("unresolved", "unmatched") ? " Grey ones stand for no measurement." : "");
  byId("by-kind").hidden = false;
}

byId("headline").textContent = printable(headline());
byId("verdict-facts").replaceChildren(...[
  ["models", sizes()],
  ["multipliers", extremes()],
  ["start", FACTS.start ? [FACTS.start] : null],
  ["check", checked()],
].filter(([, value]) => value).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, ...value)]));
const warned = DATA.matching ? [] : cautions();
byId("cautions").hidden = !warned.length;
byId("cautions").replaceChildren(...warned.map((line) => make("li", {}, ...line)));
if (SIDES.length > 1 && FOUND.length && !DATA.matching) drawBars();
for (const word of Object.keys(TERMS)) {
  byId("terms").append(make("dt", {}, word), make("dd", {}, TERMS[word]));
}
