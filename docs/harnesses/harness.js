// A harness for refllm conform: a greedy sampler and Q8_0, no more.
//
//     refllm conform "node docs/harnesses/harness.js"

const hello = {
  version: 1,
  implementation: { name: "example", version: "1.0", language: "JavaScript" },
  groups: ["sampling", "quant"],
};

class Skip extends Error {}

function sampling({ params, logits, previous_tokens: previous }) {
  if ([...Object.values(params), ...logits].some((number) => typeof number === "string"))
    throw new Skip("only finite numbers are looked at");
  if (params.temperature > 0) throw new Skip("only the most likely token is taken");
  const penalty = Math.fround(params.repeat_penalty);
  const lastN = params.repeat_penalty_last_n_token_count;
  if (penalty <= 0 && lastN > 0)
    return { error: { kind: "invalid-input", message: "repeat_penalty must be above 0" } };
  const window = new Set(lastN > 0 ? previous.slice(-lastN) : []);
  const penalized = logits.map((logit, token) => {
    if (!window.has(token)) return logit;
    return logit >= 0 ? logit / penalty : logit * penalty;
  });
  return { token: penalized.indexOf(Math.max(...penalized)) };
}

function half(bits) {
  const sign = bits >> 15 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = (bits & 1023) / 1024;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
}

function quant({ format, bytes }) {
  if (format !== "Q8_0") throw new Skip("only Q8_0 is decoded");
  const data = Buffer.from(bytes, "hex");
  const decode = (level, at) => half(data.readUInt16LE(at - (at % 34))) * level;
  const values = [...new Int8Array(data)].map(decode).filter((_, at) => at % 34 >= 2);
  const spelled = { NaN: "nan", Infinity: "inf", "-Infinity": "-inf" };
  return { values: values.map((value) => spelled[value] ?? value) };
}

function answer({ id, group, input }) {
  try {
    return { id, result: { sampling, quant }[group](input) };
  } catch (error) {
    return error instanceof Skip ? { id, skip: error.message } : { id, error: String(error) };
  }
}

require("readline").createInterface({ input: process.stdin }).on("line", (line) => {
  const message = JSON.parse(line);
  if (message.cmd === "stop") process.exit();
  console.log(JSON.stringify(message.cmd === "start" ? hello : answer(message)));
});
