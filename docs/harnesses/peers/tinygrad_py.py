"""A harness for tinygrad: its decoder of GGML's block formats."""

from protocol import Skip, numbers, serve
from tinygrad import Tensor, dtypes
from tinygrad.llm.gguf import ggml_data_to_tensor

# GGML's numbers of the formats that its documentation lists.
TYPES = {
    **{"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8},
    **{"Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "IQ3_XXS": 18, "IQ3_S": 21, "IQ2_S": 22, "IQ4_XS": 23},
    **{"I8": 24, "I16": 25, "I32": 26, "I64": 27, "F64": 28, "BF16": 30, "MXFP4": 39, "Q1_0": 41},
}


def quant(asked):
    """Return the values of blocks."""
    if asked["format"] not in TYPES:
        raise Skip(f"it has no decoder for {asked['format']}")
    data = Tensor(list(bytes.fromhex(asked["bytes"])), dtype=dtypes.uint8)
    values = ggml_data_to_tensor(data, asked["n"], TYPES[asked["format"]])
    return {"values": numbers(values.cast(dtypes.float32).flatten().tolist())}


serve(["tinygrad"], {"quant": quant})
