#!/usr/bin/env bash
# One would guess that encode_document uses a model's "passage" prompt, since its documentation
# lists document, passage and corpus as names that it tries in turn.
# A model that is loaded from a folder with the prompts query and passage also gets an empty
# prompt "document", which comes first: the passage prompt is never used.
# It matters for models of the E5 kind, whose texts need "passage: " in front: encode_document
# leaves it away without a warning.
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
prompts = {"prompts": {"query": "query: ", "passage": "p: "}}
model = embedder({"pooling_mode_mean_tokens": True}, prompts)
document = model.encode_document("a b")
passage = np.abs(document - model.encode("a b", prompt="p: ")).max()
empty = np.abs(document - model.encode("a b")).max()
print(f"prompts of the loaded model: {model.prompts}")
print(f"encode_document against the passage prompt: {passage:.3f}, against no prompt: {empty}")
expect(model.prompts.get("document") == "", "no empty document prompt is added any more")
expect(passage > 0.01 and empty < 1e-6, "encode_document uses the passage prompt now")
print("seen: encode_document does not use the passage prompt")
PY
