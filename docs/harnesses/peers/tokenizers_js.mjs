// A harness for @huggingface/tokenizers: tokenizer.json and tokenizer_config.json in JavaScript.
//
//     node tokenizers_js.mjs MODELS
//
// MODELS has a folder in Hugging Face's form for each model of the suite.

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { Tokenizer } from "@huggingface/tokenizers";
import { Skip, serve } from "./protocol.mjs";

const loaded = {};

function load(model) {
  const folder = join(process.argv[2], model);
  if (!existsSync(folder)) throw new Skip(`there is no tokenizer.json of ${model}`);
  const read = (name) => JSON.parse(readFileSync(join(folder, name), "utf8"));
  return (loaded[model] ??= new Tokenizer(read("tokenizer.json"), read("tokenizer_config.json")));
}

serve("@huggingface/tokenizers", {
  tokenizer({ model, text }) {
    const own = load(model);
    const { ids } = own.encode(text);
    return { ids, text: own.decode(ids, { skip_special_tokens: true }) };
  },
});
