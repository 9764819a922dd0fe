#!/usr/bin/env bash
# One would guess that a config.json with the new rope_parameters and, for older programs, the old
# rope_scaling is read by its new entry.
# The old rope_scaling wins as a whole: the rope_theta of rope_parameters is lost and the default
# of 10000 is used.
# It matters for config files that are written to serve both generations of the library: the
# frequencies are another model's, without a warning.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 tokenizers==0.23.3
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import json
import pathlib
import sys
from importlib.metadata import version

from transformers import AutoConfig


def expect(condition, changed):
    """End with status 1 where the behaviour is no longer the one described above."""
    if not condition:
        sys.exit(f"CHANGED: {changed}")


print(*(f"{name} {version(name)}" for name in ("transformers", "tokenizers")), sep=", ")
def rope(**entries):
    pathlib.Path("folder").mkdir(exist_ok=True)
    config = {"model_type": "llama", "max_position_embeddings": 64, **entries}
    pathlib.Path("folder/config.json").write_text(json.dumps(config))
    return AutoConfig.from_pretrained("folder").rope_parameters


new = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500000.0}
alone = rope(rope_parameters=new)
both = rope(rope_parameters=new, rope_scaling={"rope_type": "linear", "factor": 4.0})
print(f"rope_parameters alone: {alone}")
print(f"with the same rope_scaling beside it: {both}")
expect(alone["rope_theta"] == 500000.0, "rope_theta of rope_parameters is not read")
expect(both["rope_theta"] == 10000.0, "rope_parameters is no longer hidden by rope_scaling")
print("seen: rope_scaling hides rope_parameters and its rope_theta")
PY
