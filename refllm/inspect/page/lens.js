// The logit lens, and what each half of a layer adds to the residual stream.

import { colors, css, inkOn } from "./colors.js";
import { cells, element, piece, placed, table, visible } from "./dom.js";
import { short } from "./numbers.js";
import { state, update } from "./state.js";

function layerName(after) {
  return after.startsWith("l_out-") ? `layer ${after.slice(6)}` : "embedding";
}

export function lens(doc) {
  const parts = [];
  if (doc.lens !== null) {
    const text = doc.texts[0].tokens;
    const at = state.token;
    const following = text[at + 1];
    const rows = doc.lens.layers.map(({ after, positions }) => {
      const { ids, probabilities, next } = positions[at];
      const best = ids.map((id, i) => element("td", { "data-token": id }, piece(doc.lens.pieces[id]), ` ${probabilities[i].toFixed(3)}`));
      return element("tr", { "data-after": after }, cells([layerName(after), ...best, next ? `number ${next.rank}` : "", next ? short(next.probability) : ""]));
    });
    parts.push(
      element("h2", {}, "Logit lens"),
      element("p", {}, "The residual stream after each layer, through the last norm and the output matrix: ",
        "what the model would expect next if it ended there. The last layer's probabilities are the model's own, ",
        "before penalty and temperature."),
      table({
        label: `After ${placed(text, at)}` + (following ? `; what follows is “${visible(following.text || following.piece)}”` : ""),
        head: ["after", "1st", "2nd", "3rd", "4th", "5th", "what follows", "its probability"], rows,
      }),
      element("h3", {}, "The likeliest token at each place"),
      grid(doc, text));
  }
  parts.push(...residual(doc));
  return parts;
}

function grid(doc, text) {
  const colorOf = colors(1, false);
  const head = ["after", ...text.map((token) => visible(token.text || token.piece))];
  const rows = doc.lens.layers.map(({ after, positions }) => element("tr", {}, cells([
    layerName(after),
    ...positions.map(({ ids, probabilities }, i) => {
      const color = colorOf(probabilities[0]);
      const cell = element("td", {
        class: i === state.token ? "pick chosen" : "pick", title: probabilities[0].toFixed(4),
        onclick: () => update({ token: i }),
      }, piece(doc.lens.pieces[ids[0]]));
      cell.style.background = css(color);
      cell.style.color = inkOn(color);
      return cell;
    }),
  ])));
  const made = table({ label: "Rows are layers, columns the tokens; the stronger the color, the more probable", head, rows });
  made.classList.add("lens", "pinned");
  return made;
}

function residual(doc) {
  const layers = doc.residual[state.text];
  const isBert = doc.model.kind === "bert";
  const at = state.token;
  const largest = Math.max(...layers.flatMap((layer) => [layer.before[at], layer.attention[at], layer.feed_forward[at], layer.after[at]]));
  const length = (x, kind = "") => {
    const bar = element("span", { class: `length ${kind}` });
    bar.style.width = `${(7 * x) / largest}rem`;
    return element("td", {}, bar, short(x));
  };
  return [
    element("h2", {}, "Residual stream"),
    element("p", {}, "The lengths ‖x‖ of the vectors at the chosen token: of the stream before a layer, of what its ",
      `attention and its feed-forward network add, and of the stream after it${isBert ? ", which a norm follows each sum in" : ""}.`),
    table({
      label: `At token ${placed(doc.texts[state.text].tokens, at)}`,
      head: ["layer", "before", "attention adds", "feed-forward adds", "after"],
      rows: layers.map((layer, i) => element("tr", { "data-layer": i }, cells([String(i), length(layer.before[at]),
        length(layer.attention[at], "b"), length(layer.feed_forward[at], "b"), length(layer.after[at])]))),
    }),
  ];
}
