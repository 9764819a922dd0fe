// The X-ray of a draw: its candidates through all stages, and where u fell.

import { drawnAgain } from "./data.js";
import { cells, chooser, element, piece, table, visible } from "./dom.js";
import { short } from "./numbers.js";
import { state, stepOf, update } from "./state.js";

const SLIDERS = [
  ["temperature", "temperature", 0, 2, 0.01],
  ["top_k", "top-k", 0, 100, 1],
  ["top_p", "top-p", 0, 1, 0.01],
  ["repeat_penalty", "repeat penalty", 0.5, 2, 0.01],
  ["repeat_penalty_last_n_token_count", "penalized tokens", 0, 256, 1],
  ["max_tokens", "max tokens", 0, 256, 1],
];

const NAMES = { top_k: "top-k", top_p: "top-p" };

/** Return how a candidate lost, for a table. */
export function lost(fate) {
  return fate === "draw" ? "the draw" : named(fate);
}

function named(stage) {
  return NAMES[stage] ?? stage;
}

function originally(doc) {
  return { params: { ...doc.run.params }, seed: doc.run.seed, profile: doc.run.profile };
}

export function sampling(doc) {
  const i = stepOf(doc);
  if (i === null) return [element("h2", {}, "Sampling"), element("p", {}, "Nothing was drawn.")];
  const result = element("div", { id: "draw" });
  const parts = [
    element("h2", {}, "Sampling X-ray"),
    element("p", { class: "choices" },
      element("button", { type: "button", disabled: i === 0, onclick: () => go(doc, i - 1) }, "← step before"),
      element("button", { type: "button", disabled: i === doc.steps.length - 1, onclick: () => go(doc, i + 1) }, "next step →"),
      element("b", {}, `step ${i} (of 0 to ${doc.steps.length - 1})`)),
  ];
  if (state.token < doc.texts[0].n_prompt) {
    parts.push(element("p", { class: "quiet" },
      "The chosen token was given, not drawn; this is the first draw after the prompt."));
  }
  parts.push(doc.live ? controls(doc, i, result) : fixed(doc), result);
  show(doc, i, result);
  return parts;
}

function go(doc, i) {
  update({ token: doc.texts[0].n_prompt + i });
}

function fixed(doc) {
  const { params, seed, profile } = originally(doc);
  const values = [...SLIDERS.map(([key, label]) => `${label} ${params[key]}`), `seed ${seed}`, `profile ${profile}`];
  return element("p", { class: "quiet" },
    `${values.join(" · ")}. To draw with other parameters: refllm inspect ${doc.model.name} on your machine.`);
}

function controls(doc, i, result) {
  const chosen = state.changed ?? originally(doc);
  const change = (changes) => {
    state.changed = { ...(state.changed ?? originally(doc)), ...changes };
    show(doc, i, result);
  };
  const sliders = SLIDERS.map(([key, label, min, max, step]) => {
    const value = element("output", {}, String(chosen.params[key]));
    const input = (event) => {
      const number = Number(event.target.value);
      value.textContent = String(number);
      change({ params: { ...(state.changed ?? originally(doc)).params, [key]: number } });
    };
    return element("label", {}, label, value, element("input", {
      type: "range", min, max: Math.max(max, chosen.params[key]), step, value: chosen.params[key],
      "data-name": key, oninput: input,
    }));
  });
  const seed = element("label", {}, "seed ", element("input", {
    type: "text", inputmode: "numeric", size: 12, value: chosen.seed, "data-name": "seed",
    oninput: (event) => change({ seed: event.target.value.trim() }),
  }));
  const profile = chooser("profile", ["contract", "spin-local", "llama.cpp"].map((p) => [p, p]),
    chosen.profile, (value) => change({ profile: value }));
  const reset = element("button", { type: "button", onclick: () => update({ changed: null }) }, "As it was drawn");
  return element("div", { class: "controls", role: "group", "aria-label": "Parameters" }, sliders, seed, profile, reset);
}

let latest = 0;

async function show(doc, i, result) {
  if (state.changed === null) {
    result.replaceChildren(...drawing(doc, doc.steps[i], doc.steps[i]));
    return;
  }
  latest += 1;
  const mine = latest;
  try {
    const step = await drawnAgain({ step: i, ...state.changed });
    if (mine === latest) result.replaceChildren(...drawing(doc, step, doc.steps[i], state.changed.params.max_tokens));
  } catch (problem) {
    if (mine === latest) result.replaceChildren(element("p", { class: "problem", role: "alert" }, problem.message));
  }
}

function drawing(doc, step, original, maxTokens = Infinity) {
  const parts = [];
  if (step !== original) {
    const same = step.token === original.token;
    parts.push(element("p", { class: "problem" },
      same ? "With these parameters the same token is drawn." : ["With these parameters ", piece(step.piece),
        " is drawn instead of ", piece(original.piece), "; the text after it stays as it was."]));
  }
  if (step.step >= maxTokens) {
    parts.push(element("p", { class: "problem" }, `With max tokens ${maxTokens} the text ends before this step.`));
  }
  const { place } = step.candidates.find((candidate) => candidate.token === step.token);
  parts.push(stages(step), element("p", {}, "Drawn: ", element("b", { "data-name": "drawn" }, visible(step.piece)),
    ` (token ${step.token}), number ${place} of ${step.n_vocab} in the order of the list below.`));
  if (step.stages.at(-1).name !== "argmax") parts.push(bar(step));
  parts.push(candidates(step));
  return parts;
}

function stages(step) {
  const items = step.stages.map((stage) => {
    const removed = stage.n_removed ? `removes ${stage.n_removed}` : "removes none";
    const effect = stage.name === "penalty" ? `changes ${step.n_penalized}` : removed;
    return element("li", {}, element("button", {
      type: "button", "aria-pressed": String(state.filter === stage.name),
      title: `show what ${named(stage.name)} removed`,
      onclick: () => update({ filter: state.filter === stage.name ? null : stage.name }),
    }, element("b", {}, named(stage.name)), " ", element("small", {}, effect), " ", element("small", {}, `${stage.n_left} left`)));
  });
  return element("div", {}, element("p", { class: "quiet" }, "The stages in their order; press one to list what it removed."),
    element("ol", { class: "stages", "aria-label": "Stages" }, items));
}

function fits(text, share) {
  return share * Math.min(window.innerWidth, 1600) > 9 * text.length + 8;
}

function bar(step) {
  const inside = step.candidates.filter((candidate) => candidate.interval !== null);
  const percent = (x) => `${(100 * x) / step.total}%`;
  const whole = element("span", { class: "part unlisted" });
  whole.style.left = "0";
  whole.style.width = "100%";
  const parts = inside.map((candidate) => {
    const [low, high] = candidate.interval;
    const part = element("span", {
      class: candidate.token === step.token ? "part drawn" : "part",
      title: `${candidate.piece}: ${short(low)} … ${short(high)}`,
    }, fits(candidate.piece, (high - low) / step.total) ? visible(candidate.piece) : "");
    part.style.left = percent(low);
    part.style.width = percent(high - low);
    return part;
  });
  const arrow = element("span", { class: "arrow" });
  arrow.style.left = percent(step.threshold);
  const note = element("span", { class: "note" }, `u = ${step.u.toFixed(6)}`);
  if (step.u < 0.5) note.style.left = percent(step.threshold);
  else note.style.right = `${100 * (1 - step.u)}%`;
  return element("div", {},
    element("div", { class: "bar", role: "img",
      "aria-label": `The candidates side by side; u points at ${step.piece}` }, whole, parts, arrow, note),
    element("p", { class: "quiet numbers" },
      `u·Σ = ${step.u.toFixed(6)} × ${step.total.toFixed(6)} = ${step.threshold.toFixed(6)}; ` +
      "the candidate in whose part it falls is drawn."));
}

function candidates(step) {
  const filtered = step.candidates.filter((candidate) => state.filter === null
    || candidate.removed_by === state.filter);
  const rows = filtered.map((candidate) => {
    const isDrawn = candidate.removed_by === null;
    const values = candidate.values.map((value) => (value === null ? "" : short(value)));
    const fate = isDrawn ? "drawn" : candidate.removed_by;
    return element("tr", { "data-fate": fate, "data-token": candidate.token, class: isDrawn || fate === "draw" ? null : "removed" },
      cells([
        String(candidate.place), piece(candidate.piece), isDrawn ? "drawn" : lost(fate),
        String(candidate.token), short(candidate.logit), ...values, candidate.why,
      ], [0, 3, 4, ...values.map((_, i) => i + 5)]));
  });
  const n = step.stages.length;
  const which = state.filter === null ? `${rows.length} of ${step.n_vocab} candidates, the most probable first`
    : `What ${named(state.filter)} removed, of the ${step.candidates.length} candidates that are listed`;
  return table({
    label: which,
    head: ["place", "token", "lost by", "id", "logit", ...step.stages.map((stage) => named(stage.name)), "why"],
    rows, numeric: [0, 3, 4, ...Array.from({ length: n }, (_, i) => i + 5)],
  });
}
