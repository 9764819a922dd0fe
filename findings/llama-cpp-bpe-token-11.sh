#!/usr/bin/env bash
# One would guess that a GGUF with a byte-level BPE vocabulary and without
# tokenizer.ggml.eos_token_id has no end token.
# Token 11 becomes both the first and the end token, whatever token 11 is; here it is the comma.
# It matters because each text stops at the first comma, and no error points at the missing key.
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
characters = [chr(33 + i) for i in range(94)] + ["\u0120", "\u010a"]
bpe = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": characters + [f"word{i}" for i in range(V - len(characters))],
    "tokenizer.ggml.merges": ["a b"],
}
model = llama_cpp.Llama(tiny_llama("bpe.gguf", bpe), n_ctx=256, verbose=False)
vocabulary = llama_cpp.llama_model_get_vocab(model.model)
ends = [token for token in range(V) if llama_cpp.llama_vocab_is_eog(vocabulary, token)]
print(f"bos {model.token_bos()}, eos {model.token_eos()}, tokens that end a text: {ends}")
print(f"text of token 11: {characters[11]!r}")
expect(model.token_bos() == model.token_eos() == 11, "the default is no longer token 11")
expect(ends == [11], "token 11 is no longer the only end of a text")
print("seen: without eos_token_id token 11 ends a text")
PY
