// Two runs: where refllm diff finds them apart, how that grows, and both draws where the texts part.

import { cells, element, placed, shape, table, visible } from "./dom.js";
import { short } from "./numbers.js";
import { lost } from "./sampling.js";
import { state, update } from "./state.js";

const HEIGHT = 225;
const MAX_LABELS = 14;

export function beside(doc) {
  const { a, b, comparison } = doc.beside;
  return [
    element("h2", {}, "Two runs"),
    element("p", {}, "A is ", element("b", {}, a), ", the run of this page; B is ", element("b", {}, b), "."),
    verdict(doc, comparison),
    ...texts(doc),
    ...growth(doc, comparison),
    ...(doc.beside.draws === null ? [] : bothDraws(doc)),
  ];
}

/** Return the report of `refllm diff`, and a way to the value that it names. */
function verdict(doc, { first }) {
  const lines = doc.beside.report.slice(2).map(({ text, role }) => element("p", { class: role }, text.replace(/^ {3}/, "")));
  const go = first === null ? null : element("p", {}, element("button", {
    type: "button", "data-name": "first", onclick: () => {
      const { text } = doc.beside.calls[first.call];
      update({ view: "block", text, token: first.token, layer: Math.max(first.layer, 0), array: `${text}/${first.name}` });
    },
  }, `See ${first.name} of A inside its block`));
  return element("section", { "aria-label": "What refllm diff reports" },
    element("div", { class: "report numbers" }, lines), go);
}

/** Return both texts, the tokens from the first different one on marked. */
function texts(doc) {
  const mine = doc.texts[state.text].tokens;
  const other = doc.beside.texts[state.text]?.tokens ?? [];
  const n = Math.max(mine.length, other.length);
  let parted = 0;
  while (parted < n && mine[parted]?.id === other[parted]?.id) parted += 1;
  const isSame = parted === n;
  const row = (label, tokens) => element("div", { class: "run" }, element("b", {}, label),
    element("p", { "data-run": label }, tokens.map((token, i) => {
      const spelled = visible(token.piece);
      return i < parted ? element("span", { class: "piece" }, spelled)
        : element("mark", { class: i === parted ? "piece parted" : "piece" }, spelled);
    })));
  return [
    element("h3", {}, "The texts"),
    element("p", {}, isSame ? `Both have the same ${n === 1 ? "token" : `${n} tokens`}.`
      : `The first ${parted === 1 ? "token is" : `${parted} tokens are`} the same; token ${parted} is the first that differs.`),
    row("A", mine),
    row("B", other),
  ];
}

function growth(doc, { growth: all, first }) {
  const { calls } = doc.beside;
  if (all.length === 0) return [];
  const text = doc.texts[state.text].tokens;
  const label = (i) => placed(text, i);
  const compared = [...new Set(all.map((each) => each.call))].filter((call) => calls[call].text === state.text);
  const heading = element("h3", {}, "How the difference grows");
  if (compared.length && all.every((each) => each.share === 0)) {
    return [heading, element("p", {}, "It does not: the output of every layer is equal in every bit.")];
  }
  const of = (call) => all.filter((each) => each.call === call);
  const holds = (call) => state.token >= calls[call].first && state.token < calls[call].first + calls[call].n_tokens;
  const chosen = compared.find(holds) ?? null;
  const last = compared.at(-1);
  if (chosen === null) {
    return [heading, element("p", {}, compared.length === 0 ? "No value of this text was compared."
      : `No value at token ${label(state.token)} was compared: the runs were computed alike up to token ` +
        `${calls[last].first + calls[last].n_tokens - 1}. `,
    compared.length === 0 ? null : element("button", {
      type: "button", "data-name": "compared", onclick: () => update({ token: calls[last].first }) }, `token ${label(calls[last].first)}`))];
  }
  const spanOf = (call) => {
    const { first: from, n_tokens: n } = calls[call];
    return n === 1 ? `token ${label(from)}` : `tokens ${from} to ${from + n - 1}`;
  };
  const values = of(chosen);
  const names = values.map((each) => each.name);
  const lines = compared.map((call) => ({ name: spanOf(call), shares: of(call).map((each) => each.share), isChosen: call === chosen }));
  // The output of the layer in which the first value differs.
  const at = first === null ? null : first.layer < 0 ? (first.name.startsWith("inp_") ? 0 : names.length - 1) : first.layer;
  const parts = [
    heading,
    element("p", {}, "B − A as a part of A, root mean square, after each layer; the token that is chosen at the top chooses the call of the network."),
    element("div", { class: "split" },
      plot({
        label: `The difference after each layer, at ${spanOf(chosen)}: from ${short(values[0].share)} to ${short(values.at(-1).share)}`,
        caption: `The thick line is of ${spanOf(chosen)}` + (lines.length > 1 ? ", the others are of the other calls." : "."),
        names, lines, mark: at, markName: at === null ? null : `first: ${first.name}${first.call === chosen ? "" : `, at ${spanOf(first.call)}`}`,
      }),
      table({
        label: `At ${spanOf(chosen)}`, head: ["value", "difference"], numeric: [1],
        rows: values.map((each) => element("tr", { "data-value": each.name, class: first?.call === chosen && each.name === names[at] ? "chosen" : null },
          cells([each.name, written(each.share)], [1]))),
      })),
  ];
  if (compared.length > 1) {
    const ends = compared.map((call) => of(call).at(-1));
    parts.push(plot({
      label: `${ends[0].name} from call to call`, caption: `${ends[0].name}, from call to call of the network`,
      names: compared.map((call) => String(calls[call].first + calls[call].n_tokens - 1)),
      lines: [{ name: ends[0].name, shares: ends.map((each) => each.share), isChosen: true }],
      mark: compared.indexOf(chosen), markName: spanOf(chosen),
    }));
  }
  return parts;
}

function written(share) {
  if (share === null) return "not finite";
  return share === 0 ? "equal in every bit" : share.toExponential(2);
}

/** Return a line plot with a logarithmic axis; what is 0 lies on the line at the bottom. */
function plot({ label, caption, names, lines, mark, markName }) {
  const width = Math.max(300, Math.min(window.innerWidth - 60, 680));
  const left = 46;
  const right = width - 14;
  const top = 24;
  const bottom = HEIGHT - 28;
  const sizes = lines.flatMap((line) => line.shares).filter((share) => share !== null && share > 0).map(Math.log10);
  const low = sizes.length ? Math.floor(Math.min(...sizes) - 0.01) : -8;
  const high = Math.max(sizes.length ? Math.ceil(Math.max(...sizes) + 0.01) : 0, low + 1);
  const hasZero = lines.some((line) => line.shares.some((share) => share === 0));
  const floor = hasZero ? bottom - 22 : bottom; // of the logarithmic part
  const x = (i) => (names.length === 1 ? (left + right) / 2 : left + 12 + (i * (right - left - 24)) / (names.length - 1));
  const y = (share) => (share === 0 ? bottom : share === null ? top
    : floor - ((Math.log10(share) - low) / (high - low)) * (floor - top));
  const every = Math.ceil((high - low) / 6);
  const parts = [];
  for (let power = low; power <= high; power += every) {
    parts.push(shape("line", { class: "grid", x1: left, x2: right, y1: y(10 ** power), y2: y(10 ** power) }),
      shape("text", { x: left - 6, y: y(10 ** power) + 4, "text-anchor": "end" }, `1e${power}`));
  }
  parts.push(shape("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }));
  if (hasZero) parts.push(shape("text", { x: left - 6, y: bottom + 4, "text-anchor": "end" }, "0"));
  const step = Math.ceil(names.length / Math.min(MAX_LABELS, Math.floor((right - left) / 62)));
  names.forEach((name, i) => {
    const isLast = i === names.length - 1;
    if (!isLast && (i % step || names.length - 1 - i < step)) return;
    parts.push(shape("text", { x: isLast && names.length > 1 ? right : x(i), y: bottom + 18, "text-anchor": isLast && names.length > 1 ? "end" : "middle" },
      name.replace("result_output", "logits").replace("result_embd", "vector")));
  });
  if (mark !== null) {
    const isRight = x(mark) > (left + right) / 2;
    parts.push(shape("line", { class: "first", x1: x(mark), x2: x(mark), y1: top - 6, y2: bottom }),
      shape("text", { class: "first", x: x(mark) + (isRight ? -5 : 5), y: top - 9, "text-anchor": isRight ? "end" : "start" }, markName));
  }
  const ordered = [...lines].sort((p, q) => Number(p.isChosen) - Number(q.isChosen));
  for (const line of ordered) {
    const points = line.shares.map((share, i) => `${x(i).toFixed(1)},${y(share).toFixed(1)}`).join(" ");
    parts.push(shape("polyline", { class: line.isChosen ? "line" : "line other", points }));
    if (!line.isChosen) continue;
    line.shares.forEach((share, i) => parts.push(shape("circle", { cx: x(i).toFixed(1), cy: y(share).toFixed(1), r: 3.5 },
      shape("title", {}, `${names[i]}: ${written(share)}`))));
  }
  return element("figure", { class: "plot" },
    shape("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": label }, parts),
    element("figcaption", {}, caption));
}

function bothDraws(doc) {
  const { step, draws: { a, b } } = doc.beside;
  const parts = [element("h3", {}, `The candidates at step ${step}`)];
  if (b === null) {
    parts.push(element("p", {}, "The draw of B at this step cannot be repeated from the values of B."));
    return parts;
  }
  const said = (draw) => [element("b", {}, visible(draw.piece)), ` (u·Σ = ${draw.threshold.toFixed(6)} of ${draw.total.toFixed(6)})`];
  parts.push(element("p", {}, "A draws ", ...said(a), ", B draws ", ...said(b), `. u is ${a.u.toFixed(6)}` +
    (a.u === b.u ? " in both." : ` in A, ${b.u.toFixed(6)} in B.`)));
  const byToken = (draw) => new Map(draw.candidates.map((candidate) => [candidate.token, candidate]));
  const ofA = byToken(a);
  const ofB = byToken(b);
  const ids = [...ofA.keys(), ...[...ofB.keys()].filter((id) => !ofA.has(id))];
  const numbers = (draw, candidate) => {
    if (candidate === undefined) return ["", "", "", "not among the listed"];
    const softmax = draw.stages.findIndex((stage) => stage.name === "softmax");
    const share = softmax < 0 ? null : candidate.values[softmax];
    return [String(candidate.place), short(candidate.logit), share === null ? "" : short(share),
      candidate.removed_by === null ? "drawn" : lost(candidate.removed_by)];
  };
  const numeric = [1, 2, 3, 4, 6, 7, 8];
  const made = table({
    label: `${ids.length} candidates, in the order of A`,
    head: ["token", "id", "place in A", "logit", "softmax", "lost by", "place in B", "logit", "softmax", "lost by"],
    numeric,
    rows: ids.map((id) => {
      const candidate = ofA.get(id) ?? ofB.get(id);
      const isDrawn = id === a.token || id === b.token;
      return element("tr", { "data-token": id, "data-fate": isDrawn ? "drawn" : null },
        cells([visible(candidate.piece), String(id), ...numbers(a, ofA.get(id)), ...numbers(b, ofB.get(id))], numeric));
    }),
  });
  made.classList.add("pinned");
  return [...parts, made];
}
