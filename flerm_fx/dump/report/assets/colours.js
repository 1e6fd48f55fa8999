"use strict";

// Colours of parameters: log scales for numbers, fixed ones for statuses.

const VIRIDIS = ["#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"];
const DIVERGING = ["#1f5fb4", "#7fb0e6", "#f1f1ee", "#f5a35c", "#b34700"];
const STATUS = { matched: "#3f8fd2", used: "#3f8fd2", unresolved: "#e3a300", unmatched: "#cf3f3f",
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

/** Ends of the log scale of a quantity: of its positive values, or alike around a centre. */
function range({ key, around }) {
  let low = Infinity, high = -Infinity;
  for (const parameter of ALL) {
    const value = parameter[key];
    if (value > 0) {
      low = Math.min(low, Math.log10(value));
      high = Math.max(high, Math.log10(value));
    }
  }
  if (low > high) return [-1, 1];
  if (around) {
    const reach = Math.max(Math.abs(low), Math.abs(high), Math.log10(2));
    return [-reach, reach];
  }
  return high - low < 0.01 ? [low - 0.5, high + 0.5] : [low, high];
}

for (const [key, entry] of Object.entries(QUANTITIES)) {
  entry.key = key;
  if (entry.colours) entry.range = range(entry);
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

/** A swatch: one colour, or a strip of one for each parameter. */
function swatch(parameters) {
  const count = Math.min(parameters.length, WIDEST);
  const step = parameters.length / count;
  const stops = Array.from({ length: count }, (_, i) => {
    const c = colour(parameters[Math.floor(i * step)]);
    return `${c} ${(100 * i) / count}% ${(100 * (i + 1)) / count}%`;
  });
  const width = count === 1 ? 15 : Math.max(24, Math.min(count * 7, 180));
  const style = `width: ${width}px; background: linear-gradient(to right, ${stops.join(", ")})`;
  return make("span", { className: "swatch", style });
}

function drawLegend() {
  const { title, colours, range } = QUANTITIES[quantity];
  const legend = byId("legend");
  const key = (name, c) => make("span", { className: "key" },
    make("span", { className: "swatch", style: `width: 15px; background: ${c}` }), name);
  if (!colours) {
    const found = Object.keys(STATUS).filter((name) => ALL.some((p) => p.status === name));
    legend.replaceChildren(...found.map((name) => key(name, STATUS[name])));
    legend.setAttribute("aria-label", `Colours of statuses: ${found.join(", ")}`);
    return;
  }
  const ticks = [0, 0.25, 0.5, 0.75, 1]
    .map((weight) => format(10 ** (range[0] + weight * (range[1] - range[0])), 2));
  const ramp = `background: linear-gradient(to right, ${colours.join(", ")})`;
  legend.replaceChildren(
    make("div", { className: "bar" }, make("div", { className: "ramp", style: ramp }),
      make("div", { className: "ticks" }, ...ticks.map((tick) => make("span", {}, tick)))),
    key("none or 0", NONE));
  legend.setAttribute("aria-label",
    `Log scale of the ${title} from ${ticks[0]} to ${ticks[ticks.length - 1]}`);
}
