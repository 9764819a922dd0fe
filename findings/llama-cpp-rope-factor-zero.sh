#!/usr/bin/env bash
# One would guess that rope.scaling.factor = 0 means "not set", so that the older key
# rope.scale_linear = 4 of the same file counts.
# The presence of the newer key is enough: its 0 is read as "no scaling" and the older key is not
# looked at.
# It matters for old GGUF files that a tool has supplemented: the model runs unscaled, with other
# logits.
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
none = logits(tiny_llama("none.gguf"))
old = logits(tiny_llama("old.gguf", {"llama.rope.scale_linear": 4.0}))
new = logits(tiny_llama("new.gguf", {"llama.rope.scaling.factor": 4.0}))
both = {"llama.rope.scale_linear": 4.0, "llama.rope.scaling.factor": 0.0}
both_logits = logits(tiny_llama("both.gguf", both))
print(f"scale_linear 4 against no key: {np.abs(old - none).max():.3f}")
print(f"scale_linear 4 against scaling.factor 4: {np.abs(old - new).max()}")
print(f"scale_linear 4 and scaling.factor 0 against no key: {np.abs(both_logits - none).max()}")
expect(np.abs(old - none).max() > 0.1, "rope.scale_linear is no longer read")
expect(np.array_equal(old, new), "the two keys no longer mean the same")
expect(np.array_equal(both_logits, none), "a factor of 0 no longer hides rope.scale_linear")
print("seen: a factor of 0 beside scale_linear 4 scales nothing")
PY
