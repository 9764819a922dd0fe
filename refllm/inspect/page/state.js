// What is chosen: it is the same in all views.

export const state = {
  view: "tokens", text: 0, token: 0, layer: 0, head: 0, array: null, type: null, filter: null,
  changed: null,
};

let listener = () => {};

export function listen(to) {
  listener = to;
}

/** Change what is chosen, and draw again. */
export function update(changes) {
  Object.assign(state, changes);
  listener(changes);
}

/** Return the step that drew the chosen token, or the one that follows the prompt. */
export function stepOf(doc) {
  if (doc.steps.length === 0) return null;
  const i = state.token - doc.texts[0].n_prompt;
  return Math.min(Math.max(i, 0), doc.steps.length - 1);
}
