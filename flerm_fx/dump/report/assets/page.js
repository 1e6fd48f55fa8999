"use strict";

// What all parts of the page share: the data, small helpers, and the selection.

const DATA = JSON.parse(document.getElementById("data").textContent);
const SIDES = DATA.sides;
const NUMBERS = SIDES.map((side) => new Map(side.parameters.map((p, i) => [p.name, i])));

const byId = (id) => document.getElementById(id);

/** A text with what cannot be seen in it, or turns the direction of reading, as an escape. */
const printable = (text) => text.replace(/\p{C}|\p{Zl}|\p{Zp}|(?! )\p{Zs}/gu,
  (c) => `\\u{${c.codePointAt(0).toString(16)}}`);

/** An element with properties and children; text is always text, and never markup. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role") element.setAttribute(key, value);
    else if (key === "style") element.style.cssText = value;
    else element[key] = value;
  }
  element.append(...children.filter((child) => child !== null)
    .map((child) => (typeof child === "string" ? printable(child) : child)));
  return element;
}

/** A name that breaks behind its dots if it has to (and not in a share such as ×0.5), and behind underscores where a part is long. */
function broken(text) {
  const parts = text.split(/(?<=[./])(?<!×\d+\.)/)
    .flatMap((part) => part.length > 20 ? part.split(/(?<=_)/) : [part]);
  return parts.flatMap((part, i) => (i ? [make("wbr"), part] : [part]));
}

function svg(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

/** Four significant digits; a dash for what is not there. */
function format(number, digits = 4) {
  if (number === null || number === undefined) return "–";
  return String(Number(number.toPrecision(digits)));
}

const shape = (sizes) => sizes.join("×") || "()";

const base = (parts) =>
  (parts || []).map(([name, share]) => (share === 1 ? name : `${name} ×${format(share, 3)}`));

/** The parameters that are selected, of one side, and those of the other that match them. */
const selection = { side: 0, parameters: [], answers: [] };
const listeners = [];

function select(side, parameters) {
  const chosen = new Set(parameters);
  const answers = new Set();
  for (const [target, row] of (SIDES[1]?.parameters || []).entries()) {
    for (const [name] of row.base) {
      const source = NUMBERS[0].get(name);
      if (side === 0 && chosen.has(source)) answers.add(target);
      if (side === 1 && chosen.has(target) && source !== undefined) answers.add(source);
    }
  }
  Object.assign(selection, { side, parameters: [...parameters], answers: [...answers] });
  for (const listener of listeners) listener();
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") select(0, []);
});
