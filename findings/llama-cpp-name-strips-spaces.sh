#!/usr/bin/env bash
# One would guess that general.name of a GGUF is only for people.
# If the name holds "phi3" or "phi-3" in any case, all white space after each special token is
# removed before tokenization.
# It matters because renaming or merging a model changes its token ids: the same file under
# another name gives other answers.
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
text = b"<|user|>  \n \n hello"


def tokens_under(name):
    keys = {"general.name": name, "tokenizer.ggml.model": "llama"}
    keys["tokenizer.ggml.tokens"] = ["<unk>", "<s>", "</s>"]
    keys["tokenizer.ggml.tokens"] += [f"<0x{byte:02X}>" for byte in range(256)]
    keys["tokenizer.ggml.tokens"] += ["<|user|>", "<|endoftext|>", "\u2581"]
    n = len(keys["tokenizer.ggml.tokens"])
    keys["tokenizer.ggml.tokens"] += [f"word{i}" for i in range(V - n)]
    keys["tokenizer.ggml.scores"] = [0.0] * V
    keys["tokenizer.ggml.token_type"] = [2, 3, 3] + [6] * 256 + [3, 3] + [1] * (V - 261)
    path = tiny_llama("named.gguf", keys)
    model = llama_cpp.Llama(path, n_ctx=256, verbose=False)
    return model.tokenize(text, special=True)


plain, phi3 = tokens_under("my experiment"), tokens_under("my Phi3 experiment")
print(f"{text!r} under the name 'my experiment': {plain}")
print(f"{text!r} under the name 'my Phi3 experiment': {phi3}")
expect(len(plain) > len(phi3), "the name no longer changes the tokens")
expect(phi3 == [plain[0], plain[1], *plain[-len(phi3) + 2 :]], "other tokens than spaces differ")
print("seen: general.name with phi3 removes the white space after a special token")
PY
