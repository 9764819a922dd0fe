#!/usr/bin/env bash
# One would guess that tokenizer.ggml.cls_token_id of a BERT's GGUF names the token in front of
# each text.
# It is read nowhere: the token in front is bos_token_id, and without that key token 101, the
# place of [CLS] in one well-known vocabulary.
# It matters for each BERT with its own vocabulary: a file that names [CLS] by its proper key
# gives vectors of another text.
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


print(*(f"{name} {version(name)}" for name in ("llama-cpp-python", "gguf")), sep=", ")
def first_token(keys):
    keys = {"seperator_token_id": 3, **keys}
    model = llama_cpp.Llama(tiny_bert("bert.gguf", keys), n_ctx=64, embedding=True, verbose=False)
    return model.tokenize(b"a")[0]


by_cls, by_bos = first_token({"cls_token_id": 2}), first_token({"bos_token_id": 2})
print(f"cls_token_id 2 gives token {by_cls} ({VOCABULARY[by_cls]}) in front of a text")
print(f"bos_token_id 2 gives token {by_bos} ({VOCABULARY[by_bos]})")
expect(by_cls == 101, "cls_token_id is read now")
expect(by_bos == 2, "bos_token_id no longer names the first token")
print("seen: only bos_token_id names [CLS]")
PY
