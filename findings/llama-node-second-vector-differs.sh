#!/usr/bin/env bash
# One would guess that embedding() of @fugood/llama.node gives a text the same vector each time.
# The second vector of the same text differs from the first: the tokens that both texts begin with
# are taken as already computed, as for a llama, although a BERT keeps nothing of them. A new
# context gives the first vector again.
# It matters to each program that embeds more than one text with one context: all vectors but the
# first are wrong, and similarities of unlike texts rise.
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

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[", "]", *"abcdefghijklmnopqrstuvwxyz"]
VOCABULARY += ["##" + letter for letter in "abcdefghijklmnopqrstuvwxyz"]
VOCABULARY += [f"word{i}" for i in range(120 - len(VOCABULARY))]
D, F = 32, 64  # model width, feed-forward width


def tiny_bert(path, keys):
    """Write a random BERT of one layer; `keys` are added to its metadata."""
    writer, random = gguf.GGUFWriter(path, "bert"), np.random.default_rng(0)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(F)
    writer.add_head_count(4)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_tokenizer_model("bert")
    writer.add_token_type_count(2)
    special = [token.startswith("[") and len(token) > 1 for token in VOCABULARY]
    writer.add_token_list(
        [token if is_special else token[2:] if token.startswith("##") else "\u2581" + token
         for token, is_special in zip(VOCABULARY, special)]
    )
    writer.add_token_types([3 if is_special else 1 for is_special in special])
    for key, value in {"unknown_token_id": 1, "padding_token_id": 0, **keys}.items():
        add = writer.add_bool if isinstance(value, bool) else writer.add_uint32
        add(f"tokenizer.ggml.{key}", value)
    shapes = {"token_embd.weight": (len(VOCABULARY), D), "position_embd.weight": (64, D),
              "token_types.weight": (2, D), "blk.0.ffn_up.weight": (F, D),
              "blk.0.ffn_down.weight": (D, F), "blk.0.ffn_up.bias": (F,), "blk.0.ffn_down.bias": (D,)}
    for name in ("q", "k", "v", "output"):
        shapes |= {f"blk.0.attn_{name}.weight": (D, D), f"blk.0.attn_{name}.bias": (D,)}
    for name in ("token_embd_norm", "blk.0.attn_output_norm", "blk.0.layer_output_norm"):
        shapes |= {f"{name}.weight": (D,), f"{name}.bias": (D,)}
    for name, shape in shapes.items():
        writer.add_tensor(name, random.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


tiny_bert("bert.gguf", {"bos_token_id": 2, "seperator_token_id": 3})
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
const options = { model: "bert.gguf", embedding: true, n_ctx: 64, n_threads: 1 };
const vectors = async (n) => {
  const context = await loadModel(options);
  const found = [];
  for (let i = 0; i < n; i++) found.push([...(await context.embedding("abc")).embedding]);
  await context.release();
  return found;
};
const cosine = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0) / Math.hypot(...a) / Math.hypot(...b);
const [first, second] = await vectors(2);
const [again] = await vectors(1);
console.log(`\nfirst and second vector of one context: cosine ${cosine(first, second).toFixed(4)}`);
console.log(`first vectors of two contexts: cosine ${cosine(first, again).toFixed(4)}`);
expect(cosine(first, again) > 0.9999, "a new context gives another vector");
expect(cosine(first, second) < 0.99, "the second vector is the first one now");
console.log("seen: the second vector of a context is another one for the same text");
JS
node ask.mjs > output 2> errors || true
grep -a -E '^(@|text|first|second|seen:|CHANGED:|temperature)' output
grep -a -q '^seen:' output
