#!/usr/bin/env bash
# One would guess that Llama(yarn_attn_factor=2.0), which the constructor offers and documents as
# the YaRN magnitude scaling factor, scales the attention of a YaRN model.
# It does nothing where YaRN is active: the value is replaced by one computed from the scaling
# factor. Only the key llama.rope.scaling.attn_factor of the file has an effect.
# It matters to users who correct a converted YaRN model at load time: the argument is
# accepted in silence.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet llama-cpp-python==0.3.36 gguf==0.19.0 numpy==2.4.6
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import sys
from importlib.metadata import version

import gguf
import llama_cpp
import numpy as np


def expect(condition, changed):
    """End with status 1 where the behaviour is no longer the one described above."""
    if not condition:
        sys.exit(f"CHANGED: {changed}")


V, D, F = 300, 32, 64  # vocabulary, model width, feed-forward width


def tiny_llama(path, keys={}, tokens=None):
    """Write a random llama of one layer; `keys` are added to its metadata."""
    writer, random = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    writer.add_block_count(1)
    writer.add_context_length(256)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(F)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = ["<unk>", "<s>", "</s>", *bytes_, *(tokens or [])]
    vocabulary += [f"word{i}" for i in range(V - len(vocabulary))]
    if "tokenizer.ggml.model" not in keys:
        writer.add_tokenizer_model("llama")
        writer.add_token_list(vocabulary)
        writer.add_token_scores([0.0] * V)
        writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (V - 259))
    for key, value in keys.items():
        kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32,
                 str: writer.add_string, list: writer.add_array}
        kinds[type(value)](key, value)
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


def logits(path, **arguments):
    """Return the logits of forty fixed tokens."""
    model = llama_cpp.Llama(
        path, n_ctx=256, logits_all=True, verbose=False, n_threads=1, **arguments
    )
    model.eval([(i * 37) % V for i in range(40)])
    return np.array(model.scores[:40])


print(*(f"{name} {version(name)}" for name in ("llama-cpp-python", "gguf")), sep=", ")
yarn = {
    "llama.rope.scaling.type": "yarn",
    "llama.rope.scaling.factor": 4.0,
    "llama.rope.scaling.original_context_length": 64,
}
plain = logits(tiny_llama("plain.gguf", yarn))
by_argument = np.abs(logits("plain.gguf", yarn_attn_factor=2.0) - plain).max()
key = {"llama.rope.scaling.attn_factor": 2.0}
by_key = np.abs(logits(tiny_llama("key.gguf", yarn | key)) - plain).max()
print(f"largest difference of a logit by yarn_attn_factor=2.0: {by_argument}")
print(f"largest difference of a logit by the file's rope.scaling.attn_factor = 2: {by_key:.3f}")
expect(by_key > 0.1, "rope.scaling.attn_factor of the file no longer changes the logits")
expect(by_argument == 0.0, "the argument yarn_attn_factor has an effect now")
print("seen: the argument yarn_attn_factor is ignored by a YaRN model")
PY
