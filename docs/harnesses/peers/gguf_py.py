"""A harness for gguf, the package of the llama.cpp project: formats of blocks in NumPy."""

import gguf
import numpy as np
from protocol import Skip, numbers, serve


def quant(asked):
    """Return the values of blocks."""
    try:
        kind = gguf.GGMLQuantizationType[asked["format"]]
    except KeyError:
        raise Skip(f"it has no {asked['format']}") from None
    data = np.frombuffer(bytes.fromhex(asked["bytes"]), np.uint8)
    try:
        return {"values": numbers(gguf.quants.dequantize(data, kind).ravel())}
    except NotImplementedError:
        raise Skip(f"it has no decoder for {asked['format']}") from None


serve(["gguf"], {"quant": quant})
