#!/usr/bin/env bash
# One would guess that a pooling configuration in which each mode is false is refused.
# The mean is computed, although pooling_mode_mean_tokens is false like the others.
# It matters for configurations of models whose mode has a name that this release lacks: they
# load, and give the mean.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 sentence-transformers==6.2.0 numpy==2.4.6
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import json
import pathlib
import sys
from importlib.metadata import version

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from transformers import BertConfig, BertModel


def expect(condition, changed):
    """End with status 1 where the behaviour is no longer the one described above."""
    if not condition:
        sys.exit(f"CHANGED: {changed}")


VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
VOCABULARY += ["##" + letter for letter in "abcdefghijklmnopqrstuvwxyz"] + ["query", ":", "ab"]


def embedder(pooling, settings={}):
    """Return a random sentence-transformers model with this pooling and these settings."""
    folder = pathlib.Path("folder")
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=32, initializer_range=0.3,
    )
    BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    types = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (path, name) in enumerate(types.items())
    ]
    files = {
        "tokenizer_config.json": {"tokenizer_class": "BertTokenizer"},
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": 32, **pooling},
        "config_sentence_transformers.json": settings,
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return SentenceTransformer("folder", device="cpu")


def token_vectors(model, text):
    """Return the vectors of the text's tokens, before pooling."""
    return model.encode(text, output_value="token_embeddings").numpy()


print(*(f"{name} {version(name)}" for name in ("torch", "transformers", "sentence-transformers")), sep=", ")
off = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": False}
off |= {"pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False}
model = embedder(off)
mean = token_vectors(model, "a b c").mean(axis=0)
difference = np.abs(model.encode("a b c") - mean).max()
print(f"all modes false; largest difference to the mean of the token vectors: {difference:.2e}")
expect(difference < 1e-5, "the mean is no longer computed where each mode is false")
print("seen: a pooling without a mode is the mean")
PY
