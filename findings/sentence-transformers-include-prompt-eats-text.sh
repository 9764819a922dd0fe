#!/usr/bin/env bash
# One would guess that include_prompt = false leaves the prompt's tokens, and only these, out of
# the mean.
# As many tokens are left out as the prompt alone has, counted from the front: [CLS] is left out,
# too, and a first word that the tokenizer joins with the prompt. With the prompt "a" the text "b"
# becomes the token "ab", and [SEP] alone is averaged.
# It matters for prompts without a space at their end, and to programs that drop the prompt's own
# tokens only: the vectors differ.
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
model = embedder({"pooling_mode_mean_tokens": True, "include_prompt": False})


def dropped(prompt, text):
    """Return how many leading tokens the mean leaves out."""
    vector, vectors = model.encode(text, prompt=prompt), token_vectors(model, prompt + text)
    return next(
        n for n in range(len(vectors)) if np.abs(vectors[n:].mean(axis=0) - vector).max() < 1e-5
    )


for prompt, text, expected in (("", "a b", 0), ("query: ", "a b", 3), ("a", "b", 2)):
    tokens = model.tokenizer.convert_ids_to_tokens(model.tokenizer(prompt + text).input_ids)
    n = dropped(prompt, text)
    print(f"prompt {prompt!r}, text {text!r}: of {tokens} the first {n} are left out")
    expect(n == expected, f"{n} tokens are left out, not {expected}")
print("seen: [CLS] and a joined first word are left out with the prompt")
PY
