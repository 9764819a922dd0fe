#!/usr/bin/env bash
# One would guess that the table of block sizes in gguf, ggml's own Python package, has ggml's sizes.
# Of all types that both know, one differs: a block of Q8_1 has 36 bytes in ggml (two halves and 32
# quants), and 40 in gguf's GGML_QUANT_SIZES (two floats and 32 quants, as in ggml's first versions).
# It matters to readers and writers of GGUF that take sizes from the table: the writer refuses
# ggml's blocks, and a reader takes four bytes of the next block for each one.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet llama-cpp-python==0.3.36 gguf==0.19.0 numpy==2.4.6
export OMP_NUM_THREADS=1
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import ctypes
import pathlib
import sys
from importlib.metadata import version

import gguf
import llama_cpp
import numpy as np


def expect(condition, changed):
    """End with status 1 where the behaviour is no longer the one described above."""
    if not condition:
        sys.exit(f"CHANGED: {changed}")


[library] = (pathlib.Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.so")
ggml = ctypes.CDLL(str(library))
ggml.ggml_type_size.restype = ctypes.c_size_t
ggml.ggml_blck_size.restype = ctypes.c_int64
ggml.ggml_type_name.restype = ctypes.c_char_p

print("llama-cpp-python", version("llama-cpp-python"), "gguf", version("gguf"))
differing = {}
for kind, sizes in gguf.GGML_QUANT_SIZES.items():
    in_ggml = ggml.ggml_blck_size(int(kind)), ggml.ggml_type_size(int(kind))
    if in_ggml[0] > 0 and in_ggml != sizes and ggml.ggml_type_name(int(kind)):
        differing[kind.name] = (sizes, in_ggml)
print("types whose numbers in a block and bytes differ (gguf, ggml):", differing)
expect(differing == {"Q8_1": ((32, 40), (32, 36))}, "which block sizes differ")

block = np.zeros((1, 36), np.uint8)
writer = gguf.GGUFWriter(None, "llama")
try:
    writer.add_tensor("t", block, raw_dtype=gguf.GGMLQuantizationType.Q8_1)
    outcome = "accepted"
except ValueError as error:
    outcome = f"ValueError: {error}"
print("GGUFWriter.add_tensor of a block of 36 bytes:", outcome)
expect(outcome.startswith("ValueError"), "the writer's answer to ggml's block of Q8_1")
PY
