#!/usr/bin/env bash
# One would guess that a forward pass without a cache depends on its tokens alone.
# With dynamic NTK RoPE it depends on the longest text that the model object has seen: the same 17
# tokens have other logits after a pass over 32, until a text of less than max_position_embeddings
# tokens passes.
# It matters to servers and tests: the answer to a request depends on the requests before it.
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
model = llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})
tokens = torch.arange(32)[None] * 7 % 64


def logits(n):
    with torch.no_grad():
        return model(tokens[:, :n], use_cache=False).logits


first = logits(17)
logits(32)
after_longer = (logits(17) - first).abs().max().item()
logits(8)
after_short = (logits(17) - first).abs().max().item()
print(f"17 tokens, again after a pass over 32: largest difference {after_longer:.3f}")
print(f"17 tokens, again after a pass over 8: largest difference {after_short}")
expect(after_longer > 0.1, "a longer text before no longer changes the logits")
expect(after_short == 0.0, "a short text no longer resets the frequencies")
print("seen: the same tokens have other logits after a longer text")
PY
