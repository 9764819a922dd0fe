// The document, and the numbers of its arrays: in this file, or from the server of the live page.

async function inflated(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

export async function answer(url, options = {}) {
  const response = await fetch(url, options);
  if (!response.ok) {
    const problem = await response.json().catch(() => ({ error: response.statusText }));
    throw new Error(problem.error);
  }
  return response;
}

let arraysHere = {};

export async function loadDocument() {
  const here = document.getElementById("document");
  if (here === null) return (await answer("document.json")).json();
  arraysHere = JSON.parse(document.getElementById("arrays").textContent);
  return JSON.parse(new TextDecoder().decode(await inflated(here.textContent)));
}

const loaded = new Map();

/** Return whether the numbers of an array can be had. */
export function isHere(doc, name) {
  return name in doc.arrays && (Boolean(doc.live) || name in arraysHere);
}

/** Return the numbers of an array, Float32Array, in the order of its shape. */
export function numbersOf(doc, name) {
  if (!loaded.has(name)) {
    const numbers = doc.live ? fetched(name) : decoded(doc.arrays[name], arraysHere[name]);
    numbers.catch(() => loaded.delete(name)); // the next view asks again
    loaded.set(name, numbers);
  }
  return loaded.get(name);
}

async function fetched(name) {
  const response = await answer(`array?name=${encodeURIComponent(name)}`);
  return new Float32Array(await response.arrayBuffer());
}

async function decoded(array, base64) {
  const planes = await inflated(base64);
  const width = array.dtype === "float16" ? 2 : 4;
  const n = planes.length / width;
  const bytes = new Uint8Array(planes.length);
  for (let plane = 0; plane < width; plane += 1) {
    for (let i = 0; i < n; i += 1) bytes[i * width + plane] = planes[plane * n + i];
  }
  if (width === 4) return new Float32Array(bytes.buffer);
  return Float32Array.from(new Uint16Array(bytes.buffer), half);
}

/** Return the value of the bits of a float16 (IEEE 754 binary16). */
export function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** Return a NumPy file, format 1.0, of float32 numbers. */
export function npy(numbers, shape) {
  const tuple = shape.length === 1 ? `${shape[0]},` : shape.join(", ");
  let header = `{'descr': '<f4', 'fortran_order': False, 'shape': (${tuple}), }`;
  header = header.padEnd(Math.ceil((header.length + 11) / 64) * 64 - 11) + "\n";
  const magic = [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, header.length & 255, header.length >> 8];
  return new Blob([new Uint8Array(magic), header, numbers]);
}

/** Return one draw again, with other parameters, from the server. */
export async function drawnAgain(request) {
  const options = {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(request),
  };
  return (await answer("step", options)).json();
}
