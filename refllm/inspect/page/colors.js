// Numbers as colors: from paper to blue for shares, blue, paper, orange for signed numbers.

function isDark() {
  return window.matchMedia("(prefers-color-scheme: dark)").matches;
}

/** Return a function from a number to [red, green, blue]; `largest` has the full color. */
export function colors(largest, isSigned) {
  const paper = isDark() ? [24, 28, 34] : [255, 255, 255];
  const high = isDark() ? [138, 180, 248] : [8, 62, 150];
  const low = isDark() ? [245, 160, 90] : [178, 84, 0];
  const none = isDark() ? [44, 50, 58] : [228, 232, 236];
  const scale = largest > 0 ? 1 / largest : 0;
  return (x) => {
    if (Number.isNaN(x)) return none;
    const end = isSigned && x < 0 ? low : high;
    const share = Math.sqrt(Math.min(Math.abs(x) * scale, 1));
    return paper.map((from, i) => Math.round(from + (end[i] - from) * share));
  };
}

const LEVELS = 255; // shades of each color

/** Draw a matrix, one pixel for each number. */
export function draw(canvas, numbers, { rows, columns, offset = 0, isSigned = false, largest }) {
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  const colorOf = colors(LEVELS ** 2, isSigned);
  const shades = new Map();
  const pixels = new Uint32Array(image.data.buffer);
  const scale = largest > 0 ? 1 / largest : 0;
  for (let i = 0; i < rows * columns; i += 1) {
    const x = numbers[offset + i];
    const level = Math.round(LEVELS * Math.sqrt(Math.min(Math.abs(x) * scale, 1))) * (x < 0 ? -1 : 1);
    let shade = shades.get(level);
    if (shade === undefined) {
      const [red, green, blue] = colorOf(level * Math.abs(level));
      shade = new Uint32Array(Uint8Array.of(red, green, blue, 255).buffer)[0];
      shades.set(level, shade);
    }
    pixels[i] = shade;
  }
  context.putImageData(image, 0, 0);
}

export function css([red, green, blue]) {
  return `rgb(${red} ${green} ${blue})`;
}

/** Return black or white, whichever is read more easily on a color. */
export function inkOn([red, green, blue]) {
  const linear = [red, green, blue].map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 ? "#000" : "#fff";
}
