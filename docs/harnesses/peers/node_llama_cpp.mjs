// A harness for node-llama-cpp: llama.cpp in Node.js.
//
//     node node_llama_cpp.mjs MODELS
//
// MODELS has a GGUF file for each model of the suite. Texts of tiny-chat and vectors of tiny-embed are
// from the same weights in F32, because llama.cpp rounds activations before it multiplies them with
// quantized weights.

import { existsSync } from "node:fs";
import { join } from "node:path";
import { getLlama } from "node-llama-cpp";
import { Skip, greedyOnly, serve } from "./protocol.mjs";

const EXACT = { "tiny-chat": "tiny-chat-F32", "tiny-embed": "tiny-embed-F32" };
const llama = await getLlama({ gpu: false, build: "never", logLevel: "error", maxThreads: 1 });
const made = {};

// What `make` returns, made once.
async function once(key, make) {
  return (made[key] ??= await make());
}

async function load(model) {
  const modelPath = join(process.argv[2], `${model}.gguf`);
  if (!existsSync(modelPath)) throw new Skip(`there is no file of ${model}`);
  return once(model, () => llama.loadModel({ modelPath }));
}

serve("node-llama-cpp", {
  async tokenizer({ model, text: given }) {
    const own = await load(model);
    const { bos, sep, shouldPrependBosToken, shouldAppendEosToken } = own.tokens;
    const ids = own.tokenize(given, true); // without the tokens around a text, which these flags add
    if (shouldPrependBosToken) ids.unshift(bos);
    if (shouldAppendEosToken || model === "tiny-embed") ids.push(sep);
    const plain = ids.filter((id) => !own.isSpecialToken(id));
    const text = own.detokenize(plain); // of WordPiece it leaves the first space
    return { ids, text: model === "tiny-embed" ? text.replace(/^ /, "") : text };
  },

  async text({ model, prompt, params }) {
    greedyOnly(params);
    if (params.max_tokens === 0) throw new Skip("its loop writes a token before it counts");
    const own = await load(EXACT[model] ?? model);
    const size = { contextSize: own.trainContextSize };
    const sequence = await once(`context of ${model}`, async () =>
      (await own.createContext(size)).getSequence(),
    );
    await sequence.clearHistory();
    const tokens = own.tokenize(prompt, true);
    tokens.unshift(own.tokens.bos);
    const previous = [...tokens];
    const written = [];
    const { repeat_penalty: penalty, repeat_penalty_last_n_token_count: lastN } = params;
    const repeatPenalty = { penalty, punishTokens: () => (lastN > 0 ? previous.slice(-lastN) : []) };
    const options = { temperature: 0, yieldEogToken: true, ...(penalty !== 1 && { repeatPenalty }) };
    for await (const token of sequence.evaluate(tokens, options)) {
      written.push(token);
      previous.push(token);
      if (own.isEogToken(token) || written.length === params.max_tokens) break;
    }
    const plain = written.filter((token) => !own.isEogToken(token));
    const usage = { prompt_token_count: tokens.length, generated_token_count: written.length };
    return { text: own.detokenize(plain, false, tokens), usage, token_ids: written };
  },

  async embeddings({ model, texts, max_tokens: limit }) {
    if (limit !== undefined) throw new Skip("it refuses a text that is too long");
    const own = await load(EXACT[model] ?? model);
    const context = await once(`context of ${model}`, () => own.createEmbeddingContext());
    const embeddings = [];
    let n_tokens = 0;
    for (const text of texts) {
      if (context.calculateInputLength(text) > own.trainContextSize) throw new Skip("it refuses a text that is too long");
      const { vector } = await context.getEmbeddingFor(text);
      const length = Math.hypot(...vector); // the vectors are not normalized
      embeddings.push(vector.map((value) => value / length));
      n_tokens += context.calculateInputLength(text);
    }
    return { embeddings, usage: { prompt_token_count: n_tokens } };
  },
});
