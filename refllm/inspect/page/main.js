// The page: loads the document, and draws the chosen view whenever a choice changes.

import { attention } from "./attention.js";
import { beside } from "./beside.js";
import { block } from "./block.js";
import { loadDocument } from "./data.js";
import { arrows, element } from "./dom.js";
import { embeddings } from "./embeddings.js";
import { lens } from "./lens.js";
import { quantization } from "./quantization.js";
import { sampling } from "./sampling.js";
import { listen, state, update } from "./state.js";
import { strip, tokens } from "./tokens.js";

const VIEWS = [
  ["tokens", "Tokens", tokens, ["llama", "bert"]],
  ["sampling", "Sampling", sampling, ["llama"]],
  ["attention", "Attention", attention, ["llama", "bert"]],
  ["lens", "Layers", lens, ["llama", "bert"]],
  ["block", "Inside a block", block, ["llama", "bert"]],
  ["quantization", "Quantization", quantization, ["llama", "bert"]],
  ["embeddings", "Embeddings", embeddings, ["bert"]],
  ["beside", "Two runs", beside, ["llama", "bert"]],
];

const at = (id) => document.getElementById(id);
let drawings = 0;

async function render(doc) {
  const views = VIEWS.filter(([id, , , kinds]) => kinds.includes(doc.model.kind) && (id !== "beside" || doc.beside !== null));
  const chosen = Math.max(views.findIndex(([id]) => id === state.view), 0);
  const focused = focus();
  at("tabs").replaceChildren(...views.map(([id, label], i) => element("button", {
    type: "button", role: "tab", id: `tab-${id}`, "aria-controls": "view", "aria-selected": String(i === chosen),
    onclick: () => update({ view: id }),
  }, label)));
  arrows(at("tabs"), chosen, (i) => { update({ view: views[i][0] }); at(`tab-${views[i][0]}`).focus(); });
  at("view").setAttribute("aria-labelledby", `tab-${views[chosen][0]}`);
  at("texts").replaceChildren(...(doc.texts.length < 2 ? [] : doc.texts.map((text, i) => element("button", {
    type: "button", "aria-pressed": String(i === state.text), onclick: () => update({ text: i, token: 0 }),
  }, text.text))));
  at("strip").replaceChildren(...strip(doc));
  at("strip").setAttribute("role", "group");
  at("strip").setAttribute("aria-label", "Tokens; arrow keys move");
  arrows(at("strip"), state.token, (i) => { update({ token: i }); at("strip").children[i].focus(); });
  drawings += 1;
  const mine = drawings;
  let parts;
  try {
    parts = await views[chosen][2](doc);
  } catch (problem) {
    parts = [element("p", { class: "problem", role: "alert" }, `This cannot be shown: ${problem.message}`)];
  }
  if (mine !== drawings) return;
  at("view").replaceChildren(...parts.filter((part) => part !== null));
  refocus(focused);
  document.body.dataset.drawn = String(mine);
}

// A view is drawn again whole, so the control that was used must get the focus again.
function focus() {
  const active = document.activeElement;
  const holder = active?.closest?.("#view, #strip, #texts");
  if (!holder) return null;
  const all = [...holder.querySelectorAll("button, select, input, canvas")];
  return { holder, i: all.indexOf(active), label: active.dataset.name };
}

function refocus(focused) {
  if (focused === null || document.activeElement !== document.body) return;
  const { holder, i, label } = focused;
  const again = label === undefined ? holder.querySelectorAll("button, select, input, canvas")[i]
    : [...holder.querySelectorAll("[data-name]")].find((each) => each.dataset.name === label);
  again?.focus({ preventScroll: true });
}

async function start() {
  const doc = await loadDocument();
  const { name, n_layers: layers, n_heads: heads, n_embd: width } = doc.model;
  document.title = `${name} – refllm inspect`;
  at("title").textContent = `${name}, every number of a run`;
  at("about").textContent = `${layers} layers, ${heads} heads, width ${width} · numerics ${doc.run.numerics} · ` +
    `refllm ${doc.refllm}` + (doc.live ? "" : " · a file that needs no server") +
    (Object.values(doc.arrays).some((array) => array.dtype === "float16") ? " · the network's values are rounded to float16" : "");
  const { view, token, layer, head, value } = document.body.dataset; // where a file is to be opened
  const wanted = location.hash.slice(1) || view;
  if (VIEWS.some(([id]) => id === wanted)) state.view = wanted;
  const first = doc.model.kind === "bert" ? 0 : doc.texts[0].n_prompt;
  const within = (x, n) => Math.min(Math.max(Number(x), 0), n - 1);
  state.token = within(token ?? first, doc.texts[0].tokens.length);
  state.layer = within(layer ?? 0, doc.model.n_layers);
  state.head = within(head ?? 0, doc.model.n_heads);
  if (value !== undefined) state.array = `0/${value}`;
  listen((changes) => {
    // A page inside another one's srcdoc has no address of its own.
    if ("view" in changes && location.protocol !== "about:") history.replaceState(null, "", `#${state.view}`);
    render(doc);
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => render(doc));
  await render(doc);
}

start().catch((problem) => {
  at("view").replaceChildren(element("p", { class: "problem", role: "alert" }, `The page cannot be shown: ${problem.message}`));
});
