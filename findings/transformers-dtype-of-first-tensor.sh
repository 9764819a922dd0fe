#!/usr/bin/env bash
# One would guess that a float32 model whose config.json names no dtype is computed in float32, or
# each tensor in its own type.
# The type of the first tensor by name decides for all: one lm_head.weight stored in float16 turns
# the whole float32 model into float16.
# It matters for mixed files, such as a quantized or trimmed output matrix: the numbers of all
# layers are rounded, without a warning.
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


print(*(f"{name} {version(name)}" for name in ("torch", "transformers", "safetensors")), sep=", ")
model = llama()
model.save_pretrained("folder")
path = pathlib.Path("folder/config.json")
entries = json.loads(path.read_text())
path.write_text(json.dumps({key: value for key, value in entries.items() if "dtype" not in key}))


def loaded_type(half):
    """Return the types of all parameters where the tensor named `half` is stored as float16."""
    tensors = {name: tensor.half() if name == half else tensor for name, tensor in stored.items()}
    save_file(tensors, "folder/model.safetensors", metadata={"format": "pt"})
    return {p.dtype for p in LlamaForCausalLM.from_pretrained("folder").parameters()}


stored = load_file("folder/model.safetensors")
first, later = min(stored), "model.norm.weight"
by_first, by_later = loaded_type(first), loaded_type(later)
print(f"only {first} is float16: all parameters are {by_first}")
print(f"only {later} is float16: all parameters are {by_later}")
expect(by_first == {torch.float16}, "the first tensor no longer decides")
expect(by_later == {torch.float32}, "a later tensor counts now")
print("seen: the type of the first tensor is the type of the model")
PY
