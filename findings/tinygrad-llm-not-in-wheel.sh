#!/usr/bin/env bash
# One would guess that python -m tinygrad.llm, tinygrad's own program for GGUF files, works where the
# wheel of tinygrad is installed, since the wheel has it.
# The wheel of 0.14.0 lacks the package tinygrad.llm.kernels, which tinygrad.llm.model imports: no
# model loads. Its reader of GGUF, tinygrad.llm.gguf, is there and works.
# It matters to users who pin tinygrad from the package index: the program exists in a checkout
# only.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tinygrad==0.14.0
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import sys
from importlib import import_module
from importlib.metadata import version

import tinygrad.llm.gguf


def expect(condition, changed):
    """End with status 1 where the behaviour is no longer the one described above."""
    if not condition:
        sys.exit(f"CHANGED: {changed}")


print("tinygrad", version("tinygrad"))
print("tinygrad.llm.gguf has", tinygrad.llm.gguf.gguf_load.__name__)
try:
    import_module("tinygrad.llm.model")
except ModuleNotFoundError as error:
    seen = str(error)
else:
    seen = ""
print("import tinygrad.llm.model:", seen or "works")
expect("tinygrad.llm.kernels" in seen, "tinygrad.llm.model can be imported")
print("seen: the wheel lacks tinygrad.llm.kernels, so python -m tinygrad.llm cannot start")
PY
