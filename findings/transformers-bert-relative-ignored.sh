#!/usr/bin/env bash
# One would guess that a BERT with position_embedding_type = "relative_key" is computed so, or
# refused.
# The entry is ignored and the distance tables of the checkpoint are dropped as unexpected: the
# model is computed with absolute positions.
# It matters for checkpoints trained with relative positions by an older release: they load with a
# report and give other vectors.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 safetensors==0.8.0
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import json
import pathlib
import sys
from importlib.metadata import version

import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel


def expect(condition, changed):
    """End with status 1 where the behaviour is no longer the one described above."""
    if not condition:
        sys.exit(f"CHANGED: {changed}")


def change(**entries):
    """Replace entries of the config.json in the folder."""
    path = pathlib.Path("folder/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


print(*(f"{name} {version(name)}" for name in ("torch", "transformers", "safetensors")), sep=", ")
torch.manual_seed(0)
config = BertConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
    num_attention_heads=4, max_position_embeddings=16, initializer_range=0.3,
)
BertModel(config).save_pretrained("folder")
tokens = torch.arange(12)[None] * 5 % 64


def vectors():
    model, report = BertModel.from_pretrained("folder", output_loading_info=True)
    with torch.no_grad():
        return model.eval()(tokens).last_hidden_state, set(report["unexpected_keys"])


absolute, _ = vectors()
table = "encoder.layer.0.attention.self.distance_embedding.weight"
tensors = load_file("folder/model.safetensors") | {table: torch.randn(31, 8)}
save_file(tensors, "folder/model.safetensors", metadata={"format": "pt"})
change(position_embedding_type="relative_key")
relative, unexpected = vectors()
print(f"unexpected: {sorted(unexpected)}")
print(f"largest difference to absolute positions: {(relative - absolute).abs().max().item()}")
expect(unexpected == {table}, "the distance table is loaded now")
expect(torch.equal(relative, absolute), "relative positions are computed now")
print("seen: position_embedding_type is ignored, the positions are absolute")
PY
