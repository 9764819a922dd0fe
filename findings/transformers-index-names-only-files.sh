#!/usr/bin/env bash
# One would guess that model.safetensors.index.json decides which tensors are loaded, and from
# which shard.
# Only the set of its file names counts. A tensor in a shard that the index does not list is
# loaded all the same, and of a tensor that two shards hold the one of the last file (in the order
# of names) is taken, whatever the index has.
# It matters for folders that were edited or merged by hand, and to readers that follow the index:
# they load another model.
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
name = "model.norm.weight"
llama().save_pretrained("folder", max_shard_size="20KB")
index_path = pathlib.Path("folder/model.safetensors.index.json")
index = json.loads(index_path.read_text())
files = sorted(set(index["weight_map"].values()))
home = index["weight_map"].pop(name)


def load_with(norms, listed):
    """Return the first norm after loading shards that hold `norms`, with the index as `listed`."""
    for file in files:
        tensors = load_file(f"folder/{file}")
        tensors.pop(name, None)
        if file in norms:
            tensors[name] = torch.full((32,), norms[file])
        save_file(tensors, f"folder/{file}", metadata={"format": "pt"})
    entries = index["weight_map"] | ({name: listed} if listed else {})
    index_path.write_text(json.dumps(index | {"weight_map": entries}))
    return LlamaForCausalLM.from_pretrained("folder").model.norm.weight[0].item()


unlisted = load_with({home: 7.0}, None)
print(f"{len(files)} shards; a norm of 7 in a shard, not in the index: loaded {unlisted}")
expect(unlisted == 7.0, "a tensor that the index does not list is not loaded")
for listed in (files[0], files[-1]):
    loaded = load_with({files[0]: 2.0, files[-1]: 3.0}, listed)
    print(f"2 in the first shard, 3 in the last, index names {listed}: loaded {loaded}")
    expect(loaded == 3.0, "the index decides which of two shards counts")
print("seen: the index only names files")
PY
