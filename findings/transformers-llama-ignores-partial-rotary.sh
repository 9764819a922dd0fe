#!/usr/bin/env bash
# One would guess that partial_rotary_factor of a llama's config.json rotates only a part of each
# head, as it does for other architectures of the library.
# A llama ignores it, at the top and within rope_parameters: the logits are the same as without
# it.
# It matters for models that were derived from llama and published with its model_type: programs
# that follow the entry compute something else.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
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


print(*(f"{name} {version(name)}" for name in ("torch", "transformers")), sep=", ")
tokens = torch.arange(12)[None] * 7 % 64
rope = {"rope_type": "default", "rope_theta": 10000.0}
with torch.no_grad():
    plain = llama(rope_parameters=rope)(tokens).logits
    top = llama(rope_parameters=rope, partial_rotary_factor=0.5)(tokens).logits
    within = llama(rope_parameters=rope | {"partial_rotary_factor": 0.5})(tokens).logits
    other = llama(rope_parameters=rope | {"rope_theta": 100.0})(tokens).logits
for name, logits in (("at the top", top), ("in rope_parameters", within)):
    print(f"partial_rotary_factor 0.5 {name}: {(logits - plain).abs().max().item()}")
print(f"rope_theta 100, for comparison: {(other - plain).abs().max().item():.3f}")
expect(not torch.equal(other, plain), "rope_parameters are not read")
expect(torch.equal(top, plain) and torch.equal(within, plain), "the factor counts now")
print("seen: a llama ignores partial_rotary_factor")
PY
