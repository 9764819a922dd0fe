#!/usr/bin/env bash
# One would guess that mx.load gives the weights of a GGUF file in Q4_K to within float16, since it
# loads the file without a word and its documentation names formats that it converts.
# Of each 64 weights the first 32 are right, and the other 32 are computed with wrong scales. The
# same block in Q6_K is right.
# It matters for Q4_K_M, the most common file of all: a model made of these arrays writes nonsense,
# and nothing says why.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet mlx==0.32.4 mlx-cpu==0.32.4 gguf==0.19.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import struct
import sys
from importlib.metadata import version
from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np


def expect(condition, changed):
    """End with status 1 where the behaviour is no longer the one described above."""
    if not condition:
        sys.exit(f"CHANGED: {changed}")


def from_file(kind, block):
    """Return the 256 numbers of a block that is the one tensor of a GGUF file."""
    head = struct.pack("<4sIQQQ", b"GGUF", 3, 1, 0, 1) + b"x"
    head += struct.pack("<IQIQ", 1, 256, int(kind), 0)
    Path("block.gguf").write_bytes(head + bytes(-len(head) % 32) + block.tobytes())
    return np.array(mx.load("block.gguf")["x"].astype(mx.float32)).ravel()


print(*(f"{name} {version(name)}" for name in ("mlx", "gguf")), sep=", ")
random = np.random.default_rng(0)
is_right = {}
for kind in (gguf.GGMLQuantizationType.Q4_K, gguf.GGMLQuantizationType.Q6_K):
    _, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    block = random.integers(0, 256, n_bytes, dtype=np.uint8)
    scales = np.array([0.0625, 0.125], np.float16).view(np.uint8)  # d and dmin
    if kind == gguf.GGMLQuantizationType.Q4_K:
        block[:4] = scales
    else:
        block[-2:] = scales[:2]
    right = gguf.quants.dequantize(block, kind).ravel()
    near = np.isclose(from_file(kind, block), right, rtol=2e-3, atol=1e-3).reshape(8, 32)
    is_right[kind.name] = near.all(axis=1).tolist()
    print(f"{kind.name}: each 32 of 256 weights right? {is_right[kind.name]}")
expect(is_right["Q6_K"] == [True] * 8, "Q6_K is read otherwise")
expect(is_right["Q4_K"][::2] == [True] * 4, "the first 32 of 64 are wrong, too")
expect(is_right["Q4_K"][1::2] == [False] * 4, "the other 32 of 64 are right now")
print("seen: mx.load gives wrong numbers for half of the weights of Q4_K")
PY
