// Elements, and the few widgets that all views share.

/** Return an element; attributes that begin with "on" are listeners, `null` ones are left out. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

/** Return a spelling of a token in which spaces and line feeds can be seen. */
export function piece(text) {
  return element("span", { class: "piece" }, visible(text));
}

export function visible(text) {
  return text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll("\r", "␍");
}

/** Return the name of a token among its text's: its place, and what it writes. */
export function placed(tokens, i) {
  return `${i} “${visible(tokens[i].text || tokens[i].piece)}”`;
}

/** Return a table in a region that scrolls by keyboard, too. Cells are texts, nodes or `td`s. */
export function table({ label, head, rows, numeric = [] }) {
  const body = rows.map((row) => (row instanceof Node ? row : element("tr", {}, cells(row, numeric))));
  return element(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
    element(
      "table",
      {},
      element("caption", {}, element("span", {}, label)),
      element(
        "thead",
        {},
        element("tr", {}, head.map((name, i) =>
          element("th", { scope: "col", class: numeric.includes(i) ? "number" : null }, name))),
      ),
      element("tbody", {}, body),
    ),
  );
}

export function cells(row, numeric = []) {
  return row.map((cell, i) =>
    cell instanceof HTMLTableCellElement
      ? cell
      : element("td", { class: numeric.includes(i) ? "number" : null }, cell));
}

/** Let the arrow keys, Home and End move among the buttons of a group; one of them is in Tab's order. */
export function arrows(group, chosen, choose) {
  const buttons = () => [...group.querySelectorAll("button")];
  buttons().forEach((button, i) => { button.tabIndex = i === chosen ? 0 : -1; });
  group.onkeydown = (event) => {
    const all = buttons();
    const at = all.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0,
      End: all.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    choose(Math.min(Math.max(to, 0), all.length - 1));
  };
}

/** Return a labelled list of choices. */
export function chooser(label, choices, chosen, choose) {
  return element(
    "label",
    {},
    `${label} `,
    element(
      "select",
      { "data-name": label, onchange: (event) => choose(event.target.value) },
      choices.map(([value, text]) =>
        element("option", { value, selected: String(value) === String(chosen) }, text)),
    ),
  );
}

/** Return an element of SVG; children are elements or texts. */
export function shape(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null) made.setAttribute(name, value);
  }
  made.append(...children.flat());
  return made;
}
