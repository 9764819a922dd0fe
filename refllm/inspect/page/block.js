// Inside a block: every value in the order of computation, as a picture and as numbers.

import { isHere, numbersOf } from "./data.js";
import { chooser, element, placed } from "./dom.js";
import { exact, picture, takeAway } from "./numbers.js";
import { state, update } from "./state.js";

const WHAT = {
  inp_embd: "the tokens' rows of the embedding table",
  inp_norm: "the embeddings after their norm",
  attn_norm: "the norm of the stream, the input of attention",
  Qcur: "queries", Kcur: "keys", Vcur: "values",
  kq: "scores q·k/√E, before softmax; this page's own product in float64",
  kq_soft_max: "attention weights: softmax of the scores",
  kqv_out: "weights · values, the heads side by side",
  attn_out: "what attention adds to the stream",
  ffn_inp: "the stream after attention",
  ffn_norm: "the norm of the stream, the input of the feed-forward network",
  ffn_gate: "SwiGLU: the gate, before SiLU",
  ffn_up: "the products that are gated",
  ffn_swiglu: "SwiGLU: SiLU(gate) · up",
  ffn_gelu: "GELU of the products",
  ffn_out: "what the feed-forward network adds to the stream",
  l_out: "the stream after the layer",
  result_norm: "the norm of the stream after the last layer",
};

function described(name, kind) {
  const [base, rest = ""] = name.split("-");
  const turned = kind === "llama" && ["Qcur", "Kcur"].includes(base) ? (rest.endsWith("#2") ? ", after RoPE" : ", before RoPE") : "";
  return (WHAT[base] ?? base) + turned;
}

/** Return a value's name without its text and its layer: Qcur#2 of 0/Qcur-3#2. */
function inAnyLayer(name) {
  return name.slice(name.indexOf("/") + 1).replace(/-\d+/, "");
}

export async function block(doc) {
  const prefix = `${state.text}/`;
  const names = Object.keys(doc.arrays).filter((name) => name.startsWith(prefix));
  const layerOf = (name) => (name.includes("-") ? Number.parseInt(name.split("-")[1], 10) : null);
  const inLayer = names.filter((name) => layerOf(name) === state.layer || layerOf(name) === null);
  const chosen = inLayer.includes(state.array) ? state.array
    : inLayer.find((name) => state.array !== null && inAnyLayer(name) === inAnyLayer(state.array)) ?? inLayer[1];
  const layers = Array.from({ length: doc.model.n_layers }, (_, i) => [i, `layer ${i}`]);
  const list = element("ol", { class: "stages", "aria-label": "Values in the order of computation" }, inLayer.map((name) => {
    const short = name.slice(prefix.length);
    return element("li", {}, element("button", {
      type: "button", "data-name": name, "aria-pressed": String(name === chosen),
      onclick: () => update({ array: name }),
    }, element("b", {}, short), element("small", {}, described(short, doc.model.kind)),
      element("small", {}, doc.arrays[name].shape.join(" × "))));
  }));
  const large = isHere(doc, chosen) ? await opened(doc, chosen, chosen.slice(prefix.length))
    : [element("p", {}, `This file has no room for ${chosen}; the live page has it.`)];
  return [
    element("h2", {}, "Inside a block"),
    element("p", { class: "choices" }, chooser("layer", layers, state.layer, (layer) => update({ layer: Number(layer) }))),
    list,
    ...large,
  ];
}

async function opened(doc, name, short) {
  const array = doc.arrays[name];
  const numbers = await numbersOf(doc, name);
  const text = doc.texts[state.text].tokens;
  const label = (i) => placed(text, i);
  const isByHead = short.startsWith("kq-") || short.startsWith("kq_soft_max");
  const shape = array.shape;
  const rows = isByHead ? shape[1] : shape[0];
  const columns = isByHead ? shape[2] : shape.slice(1).reduce((a, b) => a * b, 1);
  const offset = isByHead ? Math.min(state.head, shape[0] - 1) * rows * columns : 0;
  const width = shape.at(-1);
  const place = (column) => {
    if (isByHead) return `key ${label(column)}`;
    return shape.length === 3 ? `head ${Math.floor(column / width)}, number ${column % width}` : `number ${column}`;
  };
  const row = Math.min(state.token, rows - 1);
  const values = element("div", { class: "values numbers", tabindex: "0", role: "group", "aria-label": "The numbers of the row" });
  let listed = -1;
  const list = (at) => {
    if (at === listed) return;
    listed = at;
    const start = offset + at * columns;
    title.textContent = `All ${columns} numbers at token ${label(at)}`;
    values.replaceChildren(...Array.from(numbers.subarray(start, start + columns), (x, i) => element("span", {}, `${i}: ${exact(x)}`)));
  };
  const title = element("h3", {});
  return [
    element("h3", {}, `${short}: ${described(short, doc.model.kind)}`),
    element("p", { class: "quiet" }, array.dtype === "float16"
      ? "The numbers are rounded to float16 in this file; the live page has them in full."
      : "The numbers are the run's own float32, in full."),
    isByHead ? element("p", { class: "choices" }, chooser("head", Array.from({ length: shape[0] }, (_, i) => [i, String(i)]),
      state.head, (head) => update({ head: Number(head) }))) : null,
    picture(numbers, {
      rows, columns, offset, isSigned: !short.startsWith("kq_soft_max"), label: `${name}; arrow keys move`, at: [row, 0],
      cell: Math.max(1, Math.floor(900 / columns)), isSquare: isByHead,
      describe: (r, c) => `${isByHead ? "query " : "token "}${label(r)}, ${place(c)}`, onpick: list,
    }),
    takeAway(numbers, shape, name),
    title,
    values,
  ].filter((part) => part !== null);
}
