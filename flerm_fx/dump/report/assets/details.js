"use strict";

// The numbers of parameters: in a tip on hover or focus, and below the graph once selected.

function spread(parameters, key) {
  const values = parameters.map((p) => p[key]).filter((v) => (v ?? null) !== null);
  if (!values.length) return null;
  const [low, high] = [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
  return low === high ? format(low) : `${format(low)} to ${format(high)}`;
}

function terms(parameter) {
  const after = parameter.after ? ` after ${parameter.after} steps` : "";
  const share = base(parameter.base);
  return [
    ["shape", shape(parameter.shape)],
    ["op", parameter.op || "–"],
    ["base", parameter.base ? share.join(", ") || "–" : null],
    ["doubt", parameter.doubt?.reason ?? null],
    ["possible instead", parameter.doubt?.alternatives.join(", ") || null],
    ["base FSLR", "base_fslr" in parameter ? format(parameter.base_fslr) : null],
    ["FSLR", "fslr" in parameter ? `${format(parameter.fslr)} ± ${format(parameter.stderr, 2)}` : null],
    ["late FSLR", (parameter.late ?? null) !== null ? format(parameter.late) : null],
    ["interval", parameter.interval ? `${format(parameter.interval[0], 3)} to ${format(parameter.interval[1], 3)}` : null],
    ["method", parameter.method ? parameter.method + (parameter.samples ? `, ${parameter.samples} samples` : "") : null],
    ["multiplier", (parameter.multiplier ?? null) !== null ? format(parameter.multiplier) : null],
    ["status", parameter.status + after],
    ["note", parameter.note || null],
  ].filter(([, value]) => value !== null);
}

function manyTerms(parameters) {
  return [
    ["FSLR", spread(parameters, "fslr")],
    ["multiplier", spread(parameters, "multiplier")],
    ["status", [...new Set(parameters.map((p) => p.status))].join(", ")],
  ].filter(([, value]) => value !== null);
}

function details(parameters, title) {
  const one = parameters.length === 1;
  const list = one ? terms(parameters[0]) : manyTerms(parameters);
  const heading = one ? parameters[0].name : `${title}: ${parameters.length} parameters`;
  return make("div", { className: "details" }, make("b", {}, heading),
    make("dl", {}, ...list.flatMap(([t, v]) => [make("dt", {}, term(t)), make("dd", {}, v)])));
}

const tip = byId("tip");

/** Show a tip beside an element, inside of the window. */
function showTip(element, content) {
  tip.replaceChildren(content);
  tip.hidden = false;
  const [at, size] = [element.getBoundingClientRect(), tip.getBoundingClientRect()];
  const below = at.bottom + 8 + size.height <= innerHeight;
  const left = Math.max(8, Math.min(at.left, innerWidth - size.width - 8));
  tip.style.left = `${left}px`;
  tip.style.top = `${Math.max(8, below ? at.bottom + 8 : at.top - 8 - size.height)}px`;
}

function withTip(element, content) {
  const show = () => showTip(element, content());
  const hide = () => { tip.hidden = true; };
  element.addEventListener("mouseenter", show);
  element.addEventListener("mouseleave", hide);
  element.addEventListener("focus", () => element.matches(":focus-visible") && show());
  element.addEventListener("blur", hide);
}

addEventListener("scroll", () => { tip.hidden = true; }, { passive: true, capture: true });

const LISTED = 200; // parameters that the panel names

function drawSelection() {
  const panel = byId("selection");
  const { side, parameters, answers } = selection;
  byId("clear").disabled = panel.hidden = !parameters.length;
  if (panel.hidden) return;
  tip.hidden = true;
  const chosen = parameters.map((i) => SIDES[side].parameters[i]);
  const content = [details(chosen, SIDES[side].title)];
  if (chosen.length > 1) {
    content.push(make("p", { className: "faint" },
      chosen.slice(0, LISTED).map((p) => "fslr" in p ? `${p.name} ${format(p.multiplier ?? p.fslr)}` : p.name).join(" · "),
      chosen.length > LISTED ? ` … ${chosen.length - LISTED} more in the table` : ""));
  }
  if (side === 0 && SIDES.length > 1) {
    const names = answers.slice(0, LISTED).map((i) => SIDES[1].parameters[i].name);
    const more = answers.length > LISTED ? ` … ${answers.length - LISTED} more` : "";
    content.push(make("p", { className: "faint" },
      `answered by ${names.join(", ") || "no parameter of the target"}${more}`));
  }
  panel.replaceChildren(...content);
}

listeners.push(drawSelection);
byId("clear").addEventListener("click", () => select(0, []));
