// Embeddings: how the tokens' vectors become a text's, and how near the texts are.

import { colors, css, inkOn } from "./colors.js";
import { isHere, numbersOf } from "./data.js";
import { cells, element, placed, table } from "./dom.js";
import { percent } from "./attention.js";
import { picture, short } from "./numbers.js";
import { state, update } from "./state.js";

export async function embeddings(doc) {
  const { pooling, weights, cosines, vectors } = doc.embeddings;
  const name = `${state.text}/l_out-${doc.model.n_layers - 1}`;
  const text = doc.texts[state.text];
  const label = (i) => placed(text.tokens, i);
  const parts = [element("h2", {}, "Embeddings"), similar(doc, cosines)];
  parts.push(element("h3", {}, `Pooling: ${pooling.join(", ")}`));
  const mine = weights[state.text];
  if (mine === null) parts.push(element("p", {}, "Each number of the vector is the largest of the tokens' numbers."));
  else {
    const largest = Math.max(...mine);
    parts.push(table({
      label: "The weight of each token's vector in the text's", head: ["token", "weight"],
      rows: mine.map((weight, i) => {
        const bar = element("span", { class: "length" });
        bar.style.width = `${(10 * weight) / largest}rem`;
        return element("tr", { class: i === state.token ? "pick chosen" : "pick", onclick: () => update({ token: i }) },
          cells([label(i), element("td", {}, bar, short(weight))]));
      }),
    }));
  }
  parts.push(element("h3", {}, "The tokens' vectors after the last layer"));
  if (isHere(doc, name)) {
    const numbers = await numbersOf(doc, name);
    const [rows, columns] = doc.arrays[name].shape;
    parts.push(picture(numbers, {
      rows, columns, isSigned: true, label: `${name}; arrow keys move`, cell: Math.max(1, Math.floor(900 / columns)),
      at: [Math.min(state.token, rows - 1), 0], describe: (row, column) => `token ${label(row)}, number ${column}`,
    }));
  }
  const vector = Float32Array.from(vectors[state.text]);
  parts.push(element("h3", {}, "The text's vector"), picture(vector, {
    rows: 1, columns: vector.length, isSigned: true, label: "The text's vector; arrow keys move",
    cell: Math.max(1, Math.floor(900 / vector.length)), describe: (_, column) => `number ${column}`,
  }));
  return parts;
}

function similar(doc, cosines) {
  const colorOf = colors(1, true);
  const named = doc.texts.map((text, i) => `${i}: ${text.text.length > 40 ? `${text.text.slice(0, 39)}…` : text.text}`);
  const rows = cosines.map((row, i) => element("tr", {}, element("th", { scope: "row" }, named[i]), row.map((cosine) => {
    const color = colorOf(cosine);
    const cell = element("td", { title: percent(cosine) }, cosine.toFixed(4));
    cell.style.background = css(color);
    cell.style.color = inkOn(color);
    return cell;
  })));
  const made = table({ label: "The cosine of each pair of texts", head: ["text", ...named.map((_, i) => String(i))], rows });
  made.classList.add("cosines");
  return made;
}
