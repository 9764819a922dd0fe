#!/usr/bin/env bash
# One would guess that completion() of @fugood/llama.node with temperature 0 takes the most likely
# token at each step, as llama.cpp's own programs do, and so gives one text always.
# Tokens are drawn: texts differ from run to run unless a seed is given, and from seed to seed.
# top_k: 1 gives one text.
# It matters for tests, caches and comparisons, for which temperature 0 is set: the texts are random.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet gguf==0.19.0 numpy==2.4.6
cd "$folder"
echo '{"type": "module"}' > package.json
npm install --silent --ignore-scripts @fugood/llama.node@1.7.15
"$folder/venv/bin/python" - <<'PY'
import gguf
import numpy as np

V, D, F = 300, 32, 64  # vocabulary, model width, feed-forward width


def tiny_llama(path):
    """Write a random llama of one layer."""
    writer, random = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    writer.add_block_count(1)
    writer.add_context_length(256)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(F)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = ["<unk>", "<s>", "</s>", *bytes_]
    vocabulary += [f"word{i}" for i in range(V - len(vocabulary))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(vocabulary)
    writer.add_token_scores([0.0] * V)
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (V - 259))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {"token_embd": (V, D), "output": (V, D), "blk.0.ffn_gate": (F, D),
              "blk.0.ffn_up": (F, D), "blk.0.ffn_down": (D, F)}
    shapes |= {f"blk.0.attn_{name}": (D, D) for name in ("q", "k", "v", "output")}
    for name, shape in shapes.items():
        values = 2 * random.standard_normal(shape) / shape[1] ** 0.5
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(D, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


tiny_llama("llama.gguf")
PY
cat > ask.mjs <<'JS'
import { readFileSync } from "node:fs";
import { loadModel } from "@fugood/llama.node";

const { version } = JSON.parse(
  readFileSync("node_modules/@fugood/llama.node/package.json", "utf8"),
);
console.log(`\n@fugood/llama.node ${version}`);
const expect = (condition, changed) => {
  if (condition) return;
  console.log(`CHANGED: ${changed}`);
  process.exit(1);
};
const n = 8;
const texts = async (options) => {
  const found = new Set();
  for (let seed = 1; seed <= n; seed++) {
    const context = await loadModel({ model: "llama.gguf", n_ctx: 64, n_threads: 1, n_parallel: 1 });
    const asked = { prompt: "ab", n_predict: 12, seed, ...options };
    found.add((await context.completion(asked)).text);
    await context.release();
  }
  return found.size;
};
const atZero = await texts({ temperature: 0 });
const ofOne = await texts({ temperature: 0, top_k: 1 });
console.log(`\ntemperature 0: ${atZero} texts of ${n} seeds; with top_k 1: ${ofOne}`);
expect(atZero > 1, "temperature 0 gives one text");
expect(ofOne === 1, "top_k 1 gives several texts");
console.log("seen: temperature 0 draws tokens");
JS
node ask.mjs > output 2> errors || true
grep -a -E '^(@|text|first|second|seen:|CHANGED:|temperature)' output
grep -a -q '^seen:' output
