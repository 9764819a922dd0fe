#!/usr/bin/env bash
# One would guess that tie_word_embeddings = true in config.json ties, so that an lm_head.weight
# in the file is ignored.
# If the tensor is there and differs from the embedding it counts: the model is not tied, while
# tie_word_embeddings of its config is still true.
# It matters for conversions and other readers that trust the config: they compute another output
# matrix than transformers.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import json
import pathlib
import sys
from importlib.metadata import version

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def expect(condition, changed):
    """End with status 1 where the behaviour is no longer the one described above."""
    if not condition:
        sys.exit(f"CHANGED: {changed}")


def config(**settings):
    """Return the configuration of a tiny llama; `settings` replace its entries."""
    entries = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 16, "initializer_range": 0.3,
    }
    return LlamaConfig(**(entries | settings))


def llama(**settings):
    """Return a random llama, the same at each call."""
    torch.manual_seed(0)
    return LlamaForCausalLM(config(**settings)).eval()


def change(**entries):
    """Replace entries of the config.json in the folder."""
    path = pathlib.Path("folder/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


print(*(f"{name} {version(name)}" for name in ("torch", "transformers")), sep=", ")
model = llama(tie_word_embeddings=False)
model.save_pretrained("folder")
change(tie_word_embeddings=True)
loaded = LlamaForCausalLM.from_pretrained("folder")
own = torch.equal(loaded.lm_head.weight, model.lm_head.weight)
tied = torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight)
print(f"config: tied {loaded.config.tie_word_embeddings}; output is the embedding: {tied}")
print(f"output is lm_head.weight of the file: {own}")
expect(loaded.config.tie_word_embeddings is True, "the config of the loaded model is untied")
expect(own and not tied, "tie_word_embeddings wins over the file now")
print("seen: a different lm_head.weight wins over tie_word_embeddings")
PY
