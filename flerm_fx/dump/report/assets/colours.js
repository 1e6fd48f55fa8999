"use strict";

// Colours of parameters: log scales for numbers, fixed ones for statuses.

const VIRIDIS = ["#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"];
const DIVERGING = ["#1f5fb4", "#7fb0e6", "#f1f1ee", "#f5a35c", "#b34700"];
const STATUS = { matched: "#3f8fd2", used: "#3f8fd2", predicted: "#8b6fd0", unresolved: "#e3a300", unmatched: "#cf3f3f",
  unused: "#8a8f98" };
const NONE = "var(--none)";

const ALL = SIDES.flatMap((side) => side.parameters);
const QUANTITIES = {
  multiplier: { title: "multiplier", colours: DIVERGING, around: 1 },
  fslr: { title: "FSLR", colours: VIRIDIS },
  late: { title: "late FSLR", colours: VIRIDIS },
  status: { title: "status" },
};
const shown = Object.keys(QUANTITIES).filter((key) => ALL.some((p) => (p[key] ?? null) !== null));
let quantity = shown[0];

/** The ends of the logarithms of a quantity's positive values, and those of its colours. */
function scale({ key, around }) {
  let low = Infinity, high = -Infinity;
  for (const parameter of ALL) {
    const value = parameter[key];
    if (value > 0) {
      low = Math.min(low, Math.log10(value));
      high = Math.max(high, Math.log10(value));
    }
  }
  if (low > high) [low, high] = [-1, 1];
  if (high - low < 0.01) [low, high] = [low - 0.15, high + 0.15];
  if (!around) return { seen: [low, high], range: [low, high] };
  // Colours are alike on both sides of the centre, and the legend shows those that there are.
  const reach = Math.max(Math.abs(low), Math.abs(high), Math.log10(2));
  return { seen: [Math.min(low, 0), Math.max(high, 0)], range: [-reach, reach] };
}

for (const [key, entry] of Object.entries(QUANTITIES)) {
  entry.key = key;
  if (entry.colours) Object.assign(entry, scale(entry));
}

function mixed(colours, weight) {
  const at = Math.min(Math.max(weight, 0), 1) * (colours.length - 1);
  const left = Math.min(Math.floor(at), colours.length - 2);
  const parts = (colour) => [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
  const [one, other] = [parts(colours[left]), parts(colours[left + 1])];
  return `rgb(${one.map((c, i) => Math.round(c + (at - left) * (other[i] - c))).join(" ")})`;
}

function colour(parameter) {
  const { key, colours, range } = QUANTITIES[quantity];
  const value = parameter[key];
  if (!colours) return STATUS[value] || NONE;
  if (!(value > 0)) return NONE;
  return mixed(colours, (Math.log10(value) - range[0]) / (range[1] - range[0]));
}

const WIDEST = 60; // fields of a strip; of more copies, as many are shown, evenly spread

/** How a parameter's field is marked beside its colour: a multiplier that was not measured is none. */
const marking = (parameter) => quantity === "multiplier" ? parameter.status : "";

/** A swatch: one colour, or a strip of one for each parameter; none on a side without the quantity. */
function swatch(parameters, side) {
  if (side && !side.parameters.some((p) => (p[quantity] ?? null) !== null)) return null;
  const count = Math.min(parameters.length, WIDEST);
  const step = parameters.length / count;
  const fields = Array.from({ length: count }, (_, i) => {
    const parameter = parameters[Math.floor(i * step)];
    return make("i", { className: marking(parameter), style: `background-color: ${colour(parameter)}` });
  });
  const width = count === 1 ? 15 : Math.max(24, Math.min(count * 7, 180));
  return make("span", { className: "swatch", style: `width: ${width}px` }, ...fields);
}

function drawLegend() {
  const { title, colours, range } = QUANTITIES[quantity];
  const legend = byId("legend");
  const key = (name, c, className = "") => make("span", { className: "key" },
    make("span", { className: "swatch", style: "width: 15px" },
      make("i", { className, style: `background-color: ${c}` })), term(name));
  if (!colours) {
    const found = Object.keys(STATUS).filter((name) => ALL.some((p) => p.status === name));
    legend.replaceChildren(...found.map((name) => key(name, STATUS[name])));
    legend.setAttribute("aria-label", `Colours of statuses: ${found.join(", ")}`);
    return;
  }
  const [low, high] = QUANTITIES[quantity].seen;
  const at = (weight) => low + weight * (high - low);
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((weight) => format(10 ** at(weight), 2));
  const shades = Array.from({ length: 13 }, (_, i) =>
    mixed(colours, (at(i / 12) - range[0]) / (range[1] - range[0])));
  const ramp = `background: linear-gradient(to right, ${shades.join(", ")})`;
  const marks = quantity === "multiplier" ? ["predicted", "unresolved", "unmatched", "unused"] : [];
  const keys = marks.filter((status) => ALL.some((p) => p.status === status && (p.multiplier ?? null) !== null))
    .map((status) => key(status, status === "predicted" ? mixed(colours, 0.2) : NONE, status));
  if (ALL.some((p) => quantity in p && !(p[quantity] > 0))) keys.push(key("none or 0", NONE));
  legend.replaceChildren(
    make("div", { className: "bar" }, make("div", { className: "ramp", style: ramp }),
      make("div", { className: "ticks" }, ...ticks.map((tick) => make("span", {}, tick)))),
    ...keys);
  legend.setAttribute("aria-label",
    `Log scale of the ${title} from ${ticks[0]} to ${ticks[ticks.length - 1]}`);
}
