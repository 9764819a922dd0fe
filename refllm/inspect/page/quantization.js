// Quantization: a block of a weight byte by byte, and the error of each type.

import { answer } from "./data.js";
import { chooser, element, shape } from "./dom.js";
import { exact, short } from "./numbers.js";
import { state, update } from "./state.js";

let place = null;

export async function quantization(doc) {
  const asked = place === null ? doc.quantization : await ask(place);
  const types = asked.types;
  const type = types.find((each) => each.type === state.type) ?? types[0] ?? null;
  const column = type === null ? 0 : type.column;
  const move = (changes) => {
    place = { tensor: asked.tensor, row: asked.row, column, ...changes };
    update({});
  };
  const [nRows, nColumns] = asked.shape;
  const number = (label, value, max, key) => element("label", {}, `${label} `, element("input", {
    type: "number", min: 0, max, value, "data-name": key,
    onchange: (event) => move({ [key]: Math.min(Math.max(Math.trunc(Number(event.target.value)) || 0, 0), max) }),
  }));
  const where = doc.live ? element("p", { class: "choices" },
    chooser("matrix", doc.matrices.map((m) => [m.name, `${m.name} (${m.type} ${m.shape.join(" × ")})`]), asked.tensor,
      (tensor) => move({ tensor, row: 0, column: 0 })),
    number("row", asked.row, nRows - 1, "row"), number("column", column, nColumns - 1, "column"))
    : element("p", { class: "quiet" }, "Other places of other matrices are on the live page.");
  return [
    element("h2", {}, "Quantization"),
    element("p", {}, `${asked.tensor} is stored as ${asked.type}, ${asked.shape.join(" × ")}; this is row ${asked.row} ` +
      `from column ${column} on, as each type stores it.`),
    where,
    element("p", { class: "choices", role: "group", "aria-label": "Types" }, types.map((each) => element("button", {
      type: "button", "aria-pressed": String(each === type), onclick: () => update({ type: each.type }),
    }, each.type === asked.type ? `${each.type} (stored)` : each.type))),
    ...(type === null ? [] : blockOf(type)),
    element("h3", {}, "The error of each type"),
    element("p", {}, "Decoded number minus the number that the model has, over " +
      `${asked.n_measured_rows} row${asked.n_measured_rows === 1 ? "" : "s"} of the matrix.`),
    element("div", { class: "histograms" }, types.map(histogram)),
    ...asked.left_out.map(({ type: name, reason }) => element("p", { class: "quiet", "data-left-out": name }, `${name} is left out: ${reason}.`)),
  ];
}

async function ask(wanted) {
  const { tensor, row, column } = wanted;
  const query = new URLSearchParams({ tensor, row: String(row), column: String(column) });
  try {
    return await (await answer(`quantization?${query}`)).json();
  } catch (problem) {
    if (place === wanted) place = null; // the next drawing shows the document's own place
    throw problem;
  }
}

function blockOf(type) {
  const bytes = type.bytes.match(/../g);
  const partOf = (i) => type.parts.findIndex((part) => {
    const at = i % type.block_bytes;
    return at >= part.first && at < part.first + part.n_bytes;
  });
  const readout = element("p", { class: "numbers readout", "aria-live": "polite" },
    "Point at a byte to see the numbers that it changes, or at a number to see its bytes.");
  const light = (byteIds, valueIds) => {
    buttons.forEach((button, i) => button.classList.toggle("touched", byteIds.has(i)));
    spans.forEach((span, i) => span.classList.toggle("touched", valueIds.has(i)));
  };
  const ofByte = (i) => {
    const touched = type.touches[i];
    const all = touched.length === type.values.length && touched.length > 1;
    const which = touched.length === 0 ? "no number" : all ? `all ${touched.length} numbers`
      : touched.length > 8 ? `${touched.length} numbers` : `number ${touched.join(", ")}`;
    light(new Set([i]), new Set(touched));
    const value = Number.parseInt(bytes[i], 16);
    readout.textContent = `byte ${i} = 0x${bytes[i]} = ${value.toString(2).padStart(8, "0")}₂, ` +
      `of ${type.parts[partOf(i)].name}: its bits change ${which}`;
  };
  const ofValue = (i) => {
    const from = bytes.map((_, at) => at).filter((at) => type.touches[at].includes(i));
    light(new Set(from), new Set([i]));
    readout.textContent = `number ${i} = ${exact(type.values[i])}, in the model ${exact(type.reference[i])}; from byte ${from.join(", ")}`;
  };
  const buttons = bytes.map((byte, i) => element("button", {
    type: "button", class: "numbers", "data-part": partOf(i), "data-byte": i,
    onclick: () => ofByte(i), onpointerenter: () => ofByte(i), onfocus: () => ofByte(i),
  }, byte));
  const spans = type.values.map((value, i) => element("button", {
    type: "button", "data-value": i,
    onclick: () => ofValue(i), onpointerenter: () => ofValue(i), onfocus: () => ofValue(i),
  }, `${i}: ${exact(value)}`));
  const parts = type.parts.map((part) => `${part.name}: ${part.n_bytes} byte${part.n_bytes === 1 ? "" : "s"}`).join(", ");
  return [
    element("p", {}, `A block of ${type.type} is ${type.block_bytes} bytes for ${type.block_size} number` +
      `${type.block_size === 1 ? "" : "s"}, ${type.bits_per_weight} bits for each (${parts}).`),
    element("div", { class: "split" },
      element("div", {}, element("h3", {}, "Bytes"), element("div", { class: "bytes", role: "group", "aria-label": "Bytes" }, buttons)),
      element("div", {}, element("h3", {}, "Decoded numbers"),
        element("div", { class: "values numbers", role: "group", "aria-label": "Decoded numbers" }, spans))),
    readout,
  ];
}

function histogram(type) {
  const { counts, edges } = type.histogram;
  const largest = Math.max(...counts);
  const svg = shape("svg", {
    viewBox: `0 0 ${counts.length} 100`, preserveAspectRatio: "none", role: "img",
    "aria-label": `Histogram of the errors of ${type.type} from ${short(edges[0])} to ${short(edges[1])}`,
  }, counts.map((count, i) => {
    const height = (100 * count) / largest;
    return shape("rect", { x: i, y: 100 - height, width: 0.9, height });
  }));
  return element("figure", {}, svg, element("figcaption", {},
    element("b", {}, type.type), type.max_error === 0 ? ": no error" : `: rms ${short(type.rms_error)}, largest ${short(type.max_error)}`));
}
