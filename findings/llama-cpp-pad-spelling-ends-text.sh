#!/usr/bin/env bash
# One would guess that a token is an end of a text if an id key of the file names it.
# llama.cpp also goes by spelling: a token "<PAD>" or "[PAD]" is taken for the padding of
# fill-in-the-middle and ends a text, although it is typed NORMAL and no key names it; "<pad>"
# does not.
# It matters because two copies of a model that differ in the spelling of one token stop at
# different places.
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


print(*(f"{name} {version(name)}" for name in ("llama-cpp-python", "gguf")), sep=", ")
def ends_with(token):
    path = tiny_llama("spelling.gguf", {"tokenizer.ggml.eos_token_id": 2}, tokens=[token])
    model = llama_cpp.Llama(path, n_ctx=256, verbose=False)
    vocabulary = llama_cpp.llama_model_get_vocab(model.model)
    return [i for i in range(V) if llama_cpp.llama_vocab_is_eog(vocabulary, i)]


seen = {token: ends_with(token) for token in ("<PAD>", "[PAD]", "<pad>", "[pad]")}
for token, ends in seen.items():
    print(f"token 259 spelled {token}, typed NORMAL: a text ends at tokens {ends}")
expect(seen["<PAD>"] == seen["[PAD]"] == [2, 259], "a token spelled <PAD> no longer ends a text")
expect(seen["<pad>"] == seen["[pad]"] == [2], "a token spelled <pad> ends a text now")
print("seen: <PAD> and [PAD] end a text by their spelling")
PY
