// One call of the interface, as JSON asks for, with an SDK's `infer` and `generateEmbeddings`:
//
//     {"function": "infer", "arguments": ["tiny-chat", "Once"]}  ->  {"text": …, "usage": …}
//     an error of the interface                                  ->  {"error": …, "message": …}

export function answer({ infer, generateEmbeddings }, json) {
  const { function: name, arguments: given } = JSON.parse(json);
  const functions = {
    infer: (model, prompt) => infer(model, prompt),
    infer_with_options: (model, prompt, options) => infer(model, prompt, params(options)),
    generate_embeddings: generateEmbeddings,
  };
  try {
    return JSON.stringify(functions[name](...given), inSnakeCase);
  } catch (error) {
    if (!error.payload) throw error;
    return JSON.stringify({ error: error.payload.tag, message: error.payload.val ?? null });
  }
}

// A value may be the name of a number that JSON lacks: "NaN", "Infinity", "-Infinity".
function params(options) {
  const inCamelCase = (name) => name.replace(/_(.)/g, (_, letter) => letter.toUpperCase());
  const entries = Object.entries(options);
  return Object.fromEntries(entries.map(([name, value]) => [inCamelCase(name), Number(value)]));
}

function inSnakeCase(_, value) {
  if (ArrayBuffer.isView(value)) return Array.from(value);
  if (value === null || typeof value !== "object" || Array.isArray(value)) return value;
  const name = (key) => key.replace(/[A-Z]/g, (letter) => "_" + letter.toLowerCase());
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [name(key), item]));
}
