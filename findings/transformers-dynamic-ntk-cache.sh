#!/usr/bin/env bash
# One would guess that one forward pass over a text and token-by-token generation with the cache
# give the same logits up to rounding.
# With dynamic NTK RoPE they do not beyond max_position_embeddings: cached keys keep the
# frequencies of the length at which they were made.
# It matters to users who compare programs or score texts: a prompt's logits depend on how it was
# cut into passes.
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
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM


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
def largest_difference(n, rope):
    """Return how far the last logits of n tokens differ between one pass and n passes."""
    tokens = torch.arange(n)[None] * 7 % 64
    with torch.no_grad():
        whole = llama(rope_parameters=rope)(tokens).logits[0, -1]
        model, cache = llama(rope_parameters=rope), DynamicCache()
        for i in range(n):
            step = model(tokens[:, i : i + 1], cache=cache, use_cache=True)
    return (whole - step.logits[0, -1]).abs().max().item()


plain = {"rope_type": "default", "rope_theta": 10000.0}
dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
seen = {}
for n in (16, 17, 24, 32):
    seen[n] = largest_difference(n, plain), largest_difference(n, dynamic)
    print(f"{n} tokens (16 positions): default RoPE {seen[n][0]:.6f}, dynamic NTK {seen[n][1]:.6f}")
expect(max(plain for plain, _ in seen.values()) < 1e-3, "default RoPE depends on the passes")
expect(seen[16][1] < 1e-3, "dynamic NTK depends on the passes within max_position_embeddings")
expect(seen[32][1] > 0.1, "dynamic NTK no longer depends on the passes")
print("seen: beyond max_position_embeddings the logits depend on the passes")
PY
