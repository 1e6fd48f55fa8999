"use strict";

// FSLRs and losses of the base's run, and of the target's: a heat map and lines, by plotly.js.

const COURSE = DATA.trajectory;
const ROW = 14; // least pixels from name to name beside the heat map
const DRAWN = 400; // lines
const FEW = 24; // steps that each have a tick of their own
const SHADES = 12; // colours of lines, from first to last in execution order

/** A name as plotly.js shows it: it takes some markup, which a name is not to have. */
const plain = (name) => printable(name).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

/** A name with its first modules as initials, as far as it takes to make it short. */
function short(name, longest) {
  const parts = name.split(".");
  for (let i = 0; i < parts.length - 1 && parts.join(".").length > longest; i++) {
    if (!/^\d/.test(parts[i])) parts[i] = parts[i].slice(0, 1);
  }
  const text = parts.join(".");
  return text.length > longest ? `…${text.slice(1 - longest)}` : text;
}

const log = (value) => (value > 0 ? Math.log10(value) : null);
const spaced = (list, count) => list.length <= count ? list
  : Array.from({ length: count }, (_, i) => list[Math.floor((i * list.length) / count)]);

const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 750px)");

/** Margins in px; at the top is room for the title and plotly's buttons, and a legend below them. */
const [TOP, BOTTOM] = [56, 48];

function theme() {
  const style = getComputedStyle(document.documentElement);
  const [ink, paper, line] = ["--ink", "--paper", "--line"].map((v) => style.getPropertyValue(v).trim());
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
  const layout = { paper_bgcolor: paper, plot_bgcolor: paper, font: { color: ink, size: 12 },
    margin: { l: 60, r: 20, t: TOP, b: BOTTOM } };
  return { ink, axis, layout };
}

const heading = (text) => ({ text, x: 0.01, xanchor: "left", y: 1, yanchor: "top", pad: { t: 10 }, yref: "container",
  font: { size: 14 } });

/** The legend under the buttons, or below the axis where the page is narrow. */
const legend = (height) => narrow.matches
  ? { orientation: "h", y: -70 / (height - TOP - BOTTOM), yanchor: "top", x: 0, xanchor: "left" }
  : { orientation: "h", y: 1.02, yanchor: "bottom", x: 1, xanchor: "right" };

/** Ticks of a log axis: powers of ten, as many as there is room for, or more where all are close. */
function ticks(low, high) {
  const step = Math.max(1, Math.ceil((high - low) / 8));
  const digits = high - low < 0.5 ? [1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8] : high - low < 2 ? [1, 2, 5] : [1];
  const values = [];
  for (let power = Math.floor(low); power <= Math.ceil(high); power += step) {
    for (const digit of digits) values.push(digit * 10 ** power);
  }
  return { tickvals: values, ticktext: values.map((value) => format(value, 3)) };
}

/** The ends of the logarithms of all FSLRs that are drawn. */
function ends(rows) {
  let [low, high] = [Infinity, -Infinity];
  for (const row of rows) {
    for (const value of row) {
      if (value > 0) [low, high] = [Math.min(low, Math.log10(value)), Math.max(high, Math.log10(value))];
    }
  }
  return low <= high ? [low, high] : [0, 1];
}

// The buttons are named, so that none is there that would send the data anywhere.
const CONFIG = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d",
  "zoomIn2d", "zoomOut2d", "resetScale2d"]] };
const PAUSE = 120; // milliseconds without a key or a selection before charts are drawn again
const nameOf = (i) => SIDES[0].parameters[i].name;

function drawHeatMap(indices) {
  const { axis, layout } = theme();
  const rows = indices.map((i) => COURSE.fslrs[i]);
  const logs = rows.map((row) => row.map(log));
  const { tickvals, ticktext } = ticks(...ends(rows));
  const asked = COURSE.steps.length <= FEW;
  const height = Math.max(260, Math.min(140 + 16 * indices.length, 1000));
  const every = Math.ceil((ROW * indices.length) / (height - 84)); // what is above and below the rows
  const positions = indices.map((_, row) => row).filter((row) => row % every === 0);
  const longest = narrow.matches ? 24 : 44;
  const names = indices.map((i) => plain(nameOf(i)));
  Plotly.react("heat-map", [{
    type: "heatmap", x: asked ? COURSE.steps.map(String) : COURSE.steps, z: logs, y: indices.map((_, row) => row),
    text: rows.map((row) => row.map((v) => format(v))),
    customdata: rows.map((row, i) => row.map(() => names[i])),
    hovertemplate: "%{customdata}<br>step %{x}<br>FSLR %{text}<extra></extra>",
    colorscale: VIRIDIS.map((c, i) => [i / (VIRIDIS.length - 1), c]),
    colorbar: { title: { text: "FSLR" }, tickvals: tickvals.map(Math.log10), ticktext },
  }], {
    ...layout, title: heading("FSLR of each parameter"),
    height,
    xaxis: { ...axis, ...(asked ? { type: "category" } : {}), title: { text: "step" } },
    yaxis: { ...axis, autorange: "reversed", showgrid: false, tickvals: positions,
      ticktext: positions.map((row) => plain(short(nameOf(indices[row]), longest))) },
    shapes: marks(indices),
  }, CONFIG);
}

/** Frames around the rows of what is selected. */
function marks(indices) {
  const chosen = new Set(chosenOfBase());
  return indices.map((i, row) => [i, row]).filter(([i]) => chosen.has(i)).slice(0, DRAWN)
    .map(([, row]) => ({ type: "rect", xref: "paper", x0: 0, x1: 1, y0: row - 0.5, y1: row + 0.5,
      line: { color: theme().ink, width: 1.5 } }));
}

const chosenOfBase = () => selection.side === 0 ? selection.parameters : selection.answers;

/** Several lines of a side's run as one trace, with a gap after each. */
function trace(indices, style, side = 0) {
  const run = side ? COURSE.target : COURSE;
  const nameThere = (i) => plain(SIDES[side].parameters[i].name);
  const gapped = (values) => indices.flatMap((i) => [...values(i), null]);
  return { type: "scatter", mode: run.steps.length > 1 ? "lines" : "markers", connectgaps: false,
    showlegend: false,
    x: gapped(() => run.steps), y: gapped((i) => run.fslrs[i].map((v) => (v > 0 ? v : null))),
    customdata: gapped((i) => run.steps.map(() => [side, i])),
    text: gapped((i) => run.steps.map(() => nameThere(i))),
    hovertemplate: "%{text}<br>step %{x}<br>FSLR %{y:.4g}<extra></extra>", ...style };
}

/** The geometric mean over all parameters that have an FSLR at a step. */
function mean(run) {
  return run.steps.map((_, step) => {
    const logs = run.fslrs.map((row) => log(row[step])).filter((v) => v !== null);
    return logs.length ? 10 ** (logs.reduce((a, b) => a + b, 0) / logs.length) : null;
  });
}

const TARGET_LINE = "target, before its multipliers";

/** How a run is drawn: as a line, dashed for the target, or as points where it has one step. */
function runStyle(run, ink) {
  const target = run === COURSE.target;
  return { mode: run.steps.length > 1 ? "lines+markers" : "markers",
    line: { color: ink, width: 3, ...(target ? { dash: "dash" } : {}) },
    marker: { color: ink, size: 7, symbol: target ? "diamond" : "circle" } };
}

/** Base and target side by side: what is selected, or the means of all. */
function beside(chosen, ink) {
  if (!COURSE.target) return [];
  if (chosen.length) {
    const theirs = selection.side === 1 ? selection.parameters : selection.answers;
    return [trace(theirs.slice(0, DRAWN), { ...runStyle(COURSE.target, ink), name: TARGET_LINE, showlegend: true }, 1)];
  }
  return [[COURSE, "base, mean of all"], [COURSE.target, `${TARGET_LINE}, mean of all`]]
    .map(([run, name]) => ({ type: "scatter", x: run.steps, y: mean(run), name, ...runStyle(run, ink),
      hovertemplate: "%{fullData.name}<br>step %{x}<br>FSLR %{y:.4g}<extra></extra>" }));
}

/** The axis of steps, with a tick at each where they are few. */
function stepAxis(axis) {
  const steps = [...new Set([COURSE, COURSE.target].flatMap((run) => (run ? run.steps : [])))].sort((a, b) => a - b);
  return { ...axis, title: { text: "step" }, tickformat: "d",
    ...(steps.length <= FEW / 2 ? { tickvals: steps } : {}) };
}

/** The loss of the probe batch, of each run that knows it. */
function drawLosses() {
  const { ink, axis, layout } = theme();
  const runs = [[COURSE, "base"], [COURSE.target, "target"]].filter(([run]) => run && run.losses.length);
  byId("losses").hidden = !runs.length;
  if (!runs.length) return;
  Plotly.react("losses", runs.map(([run, name]) => ({ type: "scatter", x: run.steps, y: run.losses, name,
    ...runStyle(run, ink), hovertemplate: `${name}<br>step %{x}<br>loss %{y:.4g}<extra></extra>` })), {
    ...layout, height: 280, hovermode: "closest", showlegend: Boolean(COURSE.target),
    legend: legend(280), title: heading("Loss of the probe batch before the step"),
    xaxis: stepAxis(axis), yaxis: { ...axis, title: { text: "loss" } },
  }, CONFIG);
}

function drawLines(indices) {
  const { ink, axis, layout } = theme();
  const chosen = chosenOfBase().slice(0, DRAWN);
  const lines = spaced(indices, DRAWN);
  const size = Math.ceil(lines.length / SHADES);
  const first = dark.matches ? 0.3 : 0; // the end of the colours that stands out from the paper
  const traces = [];
  for (let start = 0; start < lines.length; start += size) {
    const colour = mixed(VIRIDIS, first + 0.7 * (start / lines.length));
    const faint = chosen.length ? 0.3 : 0.85;
    traces.push(trace(lines.slice(start, start + size),
      { line: { color: colour, width: 1.5 }, marker: { color: colour }, opacity: faint }));
  }
  if (chosen.length) traces.push(trace(chosen, { line: { color: ink, width: 3 }, marker: { color: ink },
    name: "base", showlegend: Boolean(COURSE.target) }));
  traces.push(...beside(chosen, ink));
  const drawn = [COURSE, COURSE.target].flatMap((run) => (run ? run.fslrs : []));
  Plotly.react("lines", traces, {
    ...layout, height: 420, hovermode: "closest", showlegend: Boolean(COURSE.target),
    legend: legend(420), title: heading(narrow.matches ? "The same as lines" : "The same as lines, from dark to light in execution order"),
    xaxis: stepAxis(axis),
    yaxis: { ...axis, type: "log", title: { text: "FSLR" },
      ...ticks(...ends(drawn)) },
  }, CONFIG);
}

let waiting = 0;

/** Draw once the reader pauses, so that typing and selecting never wait for charts. */
function later(draw) {
  clearTimeout(waiting);
  waiting = setTimeout(draw, PAUSE);
}

function found() {
  const words = byId("course-search").value.toLowerCase().split(/\s+/).filter(Boolean);
  return SIDES[0].parameters.map((_, i) => i)
    .filter((i) => words.every((word) => nameOf(i).toLowerCase().includes(word)));
}

function drawCourse() {
  const indices = found();
  const count = `${indices.length} of ${SIDES[0].parameters.length} parameters`;
  const drawn = indices.length > DRAWN ? `; ${DRAWN} of them, evenly spread, as lines` : "";
  byId("course-count").textContent = count + drawn;
  drawHeatMap(indices);
  drawLines(indices);
}

function drawChosen() {
  Plotly.relayout("heat-map", { shapes: marks(found()) });
  drawLines(found());
}

byId("trajectory").hidden = false;
const drawAll = () => [drawCourse, drawLosses].forEach((draw) => draw());
drawAll();
byId("lines").on("plotly_click", ({ points: [point] }) => point.customdata && select(point.customdata[0], [point.customdata[1]]));
byId("course-search").addEventListener("input", () => later(drawCourse));
listeners.push(() => later(drawChosen));
dark.addEventListener("change", drawAll);
narrow.addEventListener("change", drawAll);
