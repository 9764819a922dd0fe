#!/usr/bin/env bash
# One would guess that the same WordPiece vocabulary gives the same tokens in transformers and in
# llama.cpp for a word of any length.
# A word of more than 100 characters is one [UNK] in transformers, and is split into pieces by
# llama.cpp.
# It matters for texts with addresses, hashes or encoded data: their vectors differ between the
# two programs.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet llama-cpp-python==0.3.36 gguf==0.19.0 numpy==2.4.6 transformers==5.24.0 tokenizers==0.23.3
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import pathlib
import sys
from importlib.metadata import version

import gguf
import llama_cpp
import numpy as np
from transformers import BertTokenizer


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


print(*(f"{name} {version(name)}" for name in ("llama-cpp-python", "gguf", "transformers", "tokenizers")), sep=", ")
pathlib.Path("tokenizer").mkdir()
pathlib.Path("tokenizer/vocab.txt").write_text("\n".join(VOCABULARY))
tokenizer = BertTokenizer.from_pretrained("tokenizer")
path = tiny_bert("bert.gguf", {"bos_token_id": 2, "seperator_token_id": 3, "mask_token_id": 4})
model = llama_cpp.Llama(path, n_ctx=64, embedding=True, verbose=False)


def both(text):
    """Return the tokens of transformers and of llama.cpp."""
    ours, theirs = tokenizer(text).input_ids, model.tokenize(text.encode())
    return [VOCABULARY[i] for i in ours], [VOCABULARY[i] for i in theirs]


for length in (100, 101):
    hf, cpp = both("a" * length)
    print(f"a word of {length} characters: {len(hf)} tokens in transformers, {len(cpp)} in llama.cpp")
    expect((hf == cpp) == (length == 100), "the limit of 100 characters is no longer where they part")
expect(hf == ["[CLS]", "[UNK]", "[SEP]"] and len(cpp) == 103, "a long word is tokenized differently")
print("seen: from 101 characters transformers gives [UNK], llama.cpp pieces")
PY
