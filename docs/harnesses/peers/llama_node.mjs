// A harness for @fugood/llama.node: llama.cpp in Node.js.
//
//     node llama_node.mjs MODELS
//
// MODELS has a GGUF file for each model of the suite. Texts of tiny-chat and vectors of tiny-embed are
// from the same weights in F32, because llama.cpp rounds activations before it multiplies them with
// quantized weights.

import { existsSync } from "node:fs";
import { join } from "node:path";
import { loadModel } from "@fugood/llama.node";
import { Skip, greedyOnly, serve } from "./protocol.mjs";

const EXACT = { "tiny-chat": "tiny-chat-F32", "tiny-embed": "tiny-embed-F32" };
const ENCODERS = ["tiny-embed", "tiny-embed-F32", "all-minilm-l6-v2"];
const loaded = {};

async function load(name) {
  const model = join(process.argv[2], `${name}.gguf`);
  if (!existsSync(model)) throw new Skip(`there is no file of ${name}`);
  const embedding = ENCODERS.includes(name);
  const caches = { cache_type_k: "f32", cache_type_v: "f32", flash_attn_type: "off", n_parallel: 1 };
  return (loaded[name] ??= await loadModel({ model, embedding, n_ctx: 512, n_threads: 1, ...caches }));
}

serve("@fugood/llama.node", {
  async tokenizer({ model, text }) {
    const own = await load(model);
    const inner = [...(await own.tokenize(text)).tokens]; // without those around a text
    const isEncoder = ENCODERS.includes(model);
    const ids = isEncoder ? [2, ...inner, 3] : [1, ...inner];
    const plain = ids.filter((id) => id >= (isEncoder ? 5 : 3)); // not special
    return { ids, text: (await own.detokenize(plain)).replace(/^ /, "") };
  },

  async text({ model, prompt, params }) {
    greedyOnly(params);
    if (params.max_tokens === 0) throw new Skip("after n_predict 0 the next text is another one");
    if (prompt === "") throw new Skip("it refuses an empty prompt");
    const own = await load(EXACT[model] ?? model);
    const options = {
      prompt,
      n_predict: params.max_tokens,
      top_k: 1, // the most likely token: with temperature 0 others are drawn, too
      penalty_repeat: params.repeat_penalty,
      penalty_last_n: params.repeat_penalty_last_n_token_count,
    };
    let n_tokens = 0; // tokens_predicted of a model's first text is one less
    const { text, stopped_eos } = await own.completion(options, () => (n_tokens += 1));
    if (stopped_eos) n_tokens += 1; // the end token, which is not shown
    const n_prompt = 1 + (await own.tokenize(prompt)).tokens.length;
    return { text, usage: { prompt_token_count: n_prompt, generated_token_count: n_tokens } };
  },

  async embeddings({ model, texts, max_tokens: limit }) {
    if (limit !== undefined) throw new Skip("it refuses a text that is too long");
    const own = await load(EXACT[model] ?? model);
    const embeddings = [];
    let n_tokens = 0;
    for (const text of texts) {
      embeddings.push([...(await own.embedding(text)).embedding]);
      n_tokens += 2 + (await own.tokenize(text)).tokens.length;
    }
    return { embeddings, usage: { prompt_token_count: n_tokens } };
  },
});
