// Attention: every head of every layer small, one large.

import { draw } from "./colors.js";
import { isHere, numbersOf } from "./data.js";
import { element, placed, table } from "./dom.js";
import { picture, short } from "./numbers.js";
import { state, update } from "./state.js";

const MAX_TILES = 128;

export function nameOf(value, layer) {
  return `${state.text}/${value}-${layer}`;
}

/** Return how much of its attention a head spends on average on the token before, and on the first. */
function habits(numbers, offset, n) {
  let previous = 0;
  let first = 0;
  for (let query = 1; query < n; query += 1) {
    previous += numbers[offset + query * n + query - 1];
    first += numbers[offset + query * n];
  }
  return n < 2 ? { previous: 0, first: 0 } : { previous: previous / (n - 1), first: first / (n - 1) };
}

export async function attention(doc) {
  const { n_layers: nLayers, n_heads: nHeads } = doc.model;
  const shown = nLayers * nHeads <= MAX_TILES ? Array.from({ length: nLayers }, (_, i) => i) : [state.layer];
  const heading = element("h2", {}, "Attention");
  const missing = shown.filter((layer) => !isHere(doc, nameOf("kq_soft_max", layer)));
  if (missing.length) return [heading, element("p", {}, "This file has no room for the attention weights; the live page has them.")];
  const all = await Promise.all(shown.map((layer) => numbersOf(doc, nameOf("kq_soft_max", layer))));
  const n = doc.texts[state.text].tokens.length;
  const heads = shown.flatMap((layer, i) => Array.from({ length: nHeads }, (_, head) =>
    ({ layer, head, numbers: all[i], offset: head * n * n, ...habits(all[i], head * n * n, n) })));
  const most = (habit) => heads.reduce((best, head) => (head[habit] > best[habit] ? head : best));
  const tile = (each) => {
    const canvas = element("canvas", { "aria-hidden": "true" });
    draw(canvas, each.numbers, { rows: n, columns: n, offset: each.offset, largest: 1 });
    return element("button", {
      type: "button", "data-layer": each.layer, "data-head": each.head,
      "aria-pressed": String(each.layer === state.layer && each.head === state.head),
      onclick: () => update({ layer: each.layer, head: each.head }),
    }, canvas, element("small", {}, `L${each.layer} H${each.head}`), element("small", {}, `prev ${percent(each.previous)}`));
  };
  const rows = shown.map((layer) => element("div", { class: "heads", role: "group", "aria-label": `Heads of layer ${layer}` },
    heads.filter((each) => each.layer === layer).map(tile)));
  const chosen = heads.find((each) => each.layer === state.layer && each.head === state.head);
  const paragraph = (habit, text) => {
    const best = most(habit);
    return element("p", {}, `${text}: `, element("button", {
      type: "button", "data-name": `most-${habit}`, onclick: () => update({ layer: best.layer, head: best.head }),
    }, `layer ${best.layer}, head ${best.head}`), ` (${percent(best[habit])} on average).`);
  };
  const layers = shown.length === nLayers ? null : element("p", { class: "choices" },
    Array.from({ length: nLayers }, (_, layer) => element("button", {
      type: "button", "aria-pressed": String(layer === state.layer), onclick: () => update({ layer }) }, `layer ${layer}`)));
  return [
    heading,
    element("p", {}, doc.model.kind === "llama"
      ? "Each row is a query, each column a key at or before it; a row's weights sum to 1."
      : "Each row is a query, each column a key, in both directions; a row's weights sum to 1."),
    paragraph("previous", "Looks most at the previous token"),
    paragraph("first", "Looks most at the first token"),
    layers,
    element("div", { class: "split" }, large(doc, chosen, n),
      element("div", {}, element("h3", {}, "All heads, a row for each layer"), rows)),
  ];
}

export function percent(share) {
  return `${(100 * share).toFixed(0)} %`;
}

function large(doc, chosen, n) {
  const text = doc.texts[state.text].tokens;
  const label = (i) => placed(text, i);
  const list = element("div", {});
  const { numbers, offset } = chosen;
  const row = Math.min(state.token, n - 1);
  let largestKey = 0;
  for (let key = 1; key < n; key += 1) {
    if (numbers[offset + row * n + key] > numbers[offset + row * n + largestKey]) largestKey = key;
  }
  let listed = -1;
  const showRow = (query) => {
    if (query === listed) return;
    listed = query;
    const keys = Array.from({ length: n }, (_, key) => key)
      .filter((key) => doc.model.kind !== "llama" || key <= query)
      .sort((a, b) => numbers[offset + query * n + b] - numbers[offset + query * n + a]).slice(0, 8);
    list.replaceChildren(table({
      label: `The keys that query ${label(query)} weighs most`,
      head: ["key", "weight"],
      rows: keys.map((key) => [label(key), short(numbers[offset + query * n + key])]), numeric: [1],
    }));
  };
  return element("div", { id: "head" },
    element("h3", {}, `Layer ${chosen.layer}, head ${chosen.head}`),
    picture(numbers, {
      rows: n, columns: n, offset, largest: 1, isSquare: true, cell: Math.min(Math.max(4, Math.floor(560 / n)), 36),
      label: `Attention weights of layer ${chosen.layer}, head ${chosen.head}; arrow keys move`,
      at: [row, largestKey],
      describe: (query, key) => `query ${label(query)} → key ${label(key)}`,
      onpick: showRow,
    }), list);
}
