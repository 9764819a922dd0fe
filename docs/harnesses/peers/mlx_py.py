"""A harness for mlx: the tensors that mx.load reads from a GGUF file."""

import struct
from pathlib import Path
from tempfile import TemporaryDirectory

import mlx.core as mx
import numpy as np
from protocol import Skip, numbers, serve

# GGML's numbers of the formats.
TYPES = {
    **{"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q8_1": 9},
    **{"Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "Q8_K": 15},
    **{"I8": 24, "I16": 25, "I32": 26, "I64": 27, "F64": 28, "BF16": 30},
}


def quant(asked):
    """Return the values of blocks, as the one tensor of a file."""
    if asked["format"] not in TYPES:
        raise Skip(f"it has no {asked['format']}")
    number = TYPES[asked["format"]]
    with TemporaryDirectory() as folder:
        file = Path(folder, "blocks.gguf")
        file.write_bytes(gguf_file("x.weight", number, asked["n"], bytes.fromhex(asked["bytes"])))
        try:
            tensors = mx.load(str(file))
        except RuntimeError as error:
            raise Skip(f"mx.load: {error}") from None
    values = tensors["x.weight"]
    if "x.scales" in tensors:  # its own quantized form
        bits = 32 * values.size // asked["n"]
        values = mx.dequantize(values, tensors["x.scales"], tensors["x.biases"], 32, bits)
    return {"values": numbers(np.array(values.astype(mx.float32)).ravel())}


def gguf_file(name, number, n, data):
    """Return a GGUF file with one tensor, [1, n], and no keys."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, 1, 0) + struct.pack("<Q", len(name)) + name.encode()
    head += struct.pack("<IQQIQ", 2, n, 1, number, 0)
    return head + bytes(-len(head) % 32) + data


serve(["mlx"], {"quant": quant})
