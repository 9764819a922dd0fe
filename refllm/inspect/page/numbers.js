// A matrix as a picture in which each number can be read, copied and taken away.

import { draw } from "./colors.js";
import { npy } from "./data.js";
import { element } from "./dom.js";

/** Return the shortest decimal that is this float32. */
export function exact(x) {
  return Number.isNaN(x) ? "–" : String(Number(x.toPrecision(9)));
}

export function short(x) {
  if (x === null) return "";
  if (x === 0) return "0";
  return Math.abs(x) >= 1e-3 && Math.abs(x) < 1e5 ? x.toFixed(4) : x.toExponential(2);
}

export function largestOf(numbers, offset = 0, n = numbers.length) {
  let largest = 0;
  for (let i = offset; i < offset + n; i += 1) {
    const size = Math.abs(numbers[i]);
    if (size > largest) largest = size;
  }
  return largest;
}

/**
 * Return a figure of a matrix: pointer or arrow keys choose a number, which is written below.
 *
 * `describe(row, column)` is the text before the number; `onpick(row, column)` is called besides.
 */
export function picture(numbers, options) {
  const { rows, columns, offset = 0, isSigned, label, describe, onpick = () => {}, cell } = options;
  const canvas = element("canvas", { tabindex: "0", role: "img", "aria-label": label });
  const largest = options.largest ?? largestOf(numbers, offset, rows * columns);
  draw(canvas, numbers, { rows, columns, offset, isSigned, largest });
  canvas.style.width = `${columns * cell}px`;
  if (options.isSquare) canvas.style.aspectRatio = `${columns} / ${rows}`;
  else canvas.style.height = `${rows * Math.max(cell, 6)}px`;
  const mark = element("div", { class: "mark" });
  const readout = element("p", { class: "numbers readout", "aria-live": "polite" });
  let [row, column] = options.at ?? [0, 0];
  const show = (isPicked) => {
    row = Math.min(Math.max(row, 0), rows - 1);
    column = Math.min(Math.max(column, 0), columns - 1);
    mark.style.left = `${(100 * column) / columns}%`;
    mark.style.top = `${(100 * row) / rows}%`;
    mark.style.width = `${100 / columns}%`;
    mark.style.height = `${100 / rows}%`;
    readout.textContent = `${describe(row, column)}: ${exact(numbers[offset + row * columns + column])}`;
    onpick(row, column, isPicked);
  };
  const point = (event, isPicked) => {
    const box = canvas.getBoundingClientRect();
    row = Math.floor(((event.clientY - box.top) / box.height) * rows);
    column = Math.floor(((event.clientX - box.left) / box.width) * columns);
    show(isPicked);
  };
  canvas.addEventListener("pointermove", (event) => point(event, false));
  canvas.addEventListener("pointerdown", (event) => point(event, true));
  canvas.addEventListener("keydown", (event) => {
    const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1],
      ArrowRight: [0, 1], Home: [0, -columns], End: [0, columns] }[event.key] ?? [0, 0];
    if (down === 0 && right === 0) return;
    event.preventDefault();
    row += down;
    column += right;
    show(true);
  });
  show(false);
  return element("figure", {}, element("div", { class: "map" }, canvas, mark), readout);
}

/** Return buttons that copy an array as text and download it. */
export function takeAway(numbers, shape, name) {
  const done = element("span", { class: "quiet", role: "status" });
  const copy = async () => {
    const columns = shape.at(-1);
    const lines = [];
    for (let i = 0; i < numbers.length; i += columns) {
      lines.push(Array.from(numbers.subarray(i, i + columns), exact).join("\t"));
    }
    try {
      await navigator.clipboard.writeText(lines.join("\n"));
      done.textContent = "copied";
    } catch {
      done.textContent = "the browser does not allow to copy here; download the file";
    }
  };
  const download = () => {
    const url = URL.createObjectURL(npy(numbers, shape));
    element("a", { href: url, download: `${name.replaceAll(/[^\w.-]+/g, "_")}.npy` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  };
  return element(
    "p",
    { class: "choices" },
    element("button", { type: "button", "data-name": "copy", onclick: copy }, "Copy the numbers"),
    element("button", { type: "button", "data-name": "download", onclick: download }, "Download .npy"),
    done,
  );
}
