// Tokens: what the text was cut into.

import { cells, element, piece, table, visible } from "./dom.js";
import { state, update } from "./state.js";

export function tokens(doc) {
  const text = doc.texts[state.text];
  const rows = text.tokens.map((token, i) =>
    element(
      "tr",
      { class: i === state.token ? "pick chosen" : "pick", onclick: () => update({ token: i }) },
      cells(
        [
          String(i), String(token.id), piece(token.piece), piece(token.text),
          element("code", {}, token.bytes.replaceAll(/(..)(?=.)/g, "$1 ")),
          token.type, i < text.n_prompt ? "given" : "drawn",
        ],
        [0, 1],
      ),
    ));
  const nGiven = text.n_prompt;
  const nDrawn = text.tokens.length - nGiven;
  return [
    element("h2", {}, "Tokens"),
    element("p", {},
      `The text “${visible(text.text)}” is ${nGiven} tokens` +
      (nDrawn ? `, and ${nDrawn} were drawn after it. ` : ". ") +
      "A special token stands for no text. A piece is the token's spelling in the vocabulary."),
    table({
      label: "The tokens in their order",
      head: ["place", "id", "piece", "text", "bytes", "type", "from"],
      rows, numeric: [0, 1],
    }),
  ];
}

/** Return the strip of tokens that is above all views. */
export function strip(doc) {
  const text = doc.texts[state.text];
  return text.tokens.map((token, i) =>
    element(
      "button",
      {
        type: "button",
        class: `piece ${i < text.n_prompt ? "given" : "drawn"} ${token.type}`,
        "aria-pressed": String(i === state.token),
        title: `${i}: token ${token.id}`,
        onclick: () => update({ token: i }),
      },
      visible(token.text || token.piece) || "∅",
    ));
}
