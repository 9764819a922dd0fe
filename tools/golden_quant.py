"""Writes golden/quant/cases.json: raw blocks, and the float32 values that they mean.

    python -m tools.golden_quant [--ggml LIBRARY]

The values are those of the gguf package. What it has no decoder for (F64, the integers, Q8_1,
Q8_K, Q1_0) is computed here, in fractions rounded once. Nothing is written where refllm decodes
one bit otherwise, nor where LIBRARY does: a libggml-base of llama.cpp or whisper.cpp, ggml's own C.
The questions are in tools/golden_quant_blocks.py.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np

from refllm.quant import FORMATS
from tools.golden_quant_blocks import QUICK, Question, questions
from tools.make_sampling_goldens import on_lines, rounded

__all__ = ["DisagreementError", "answer", "as_c_prints", "compare_with_ggml", "document"]

FOLDER = Path(__file__).resolve().parent.parent / "golden" / "quant"


class DisagreementError(Exception):
    """Two decoders read the same bytes differently."""


# --- The answers ----------------------------------------------------------------------------------


def _nearest(x: Fraction | int | float) -> float:
    """The float32 nearest to a number, as a float; infinite beyond the largest, a zero's sign kept.

    Rounded in whole numbers, by the code of the sampling vectors.
    """
    if isinstance(x, float) and (not math.isfinite(x) or x == 0):
        return x
    nearest = rounded(Fraction(x), precision=24, lowest_exponent=-149)
    magnitude = math.inf if abs(nearest) >= 2**128 else float(abs(nearest))
    return -magnitude if x < 0 else magnitude


def _q8(data: bytes, code: str) -> list[float]:
    """d times each of the bytes that follow; the product of the two is exact in float64."""
    d, *quants = struct.unpack(code, data)
    return [_nearest(d * float(q)) for q in quants]


def _q1_0(data: bytes) -> list[float]:
    (d,) = struct.unpack("<e", data[:2])
    return [d if data[2 + i // 8] >> i % 8 & 1 else -d for i in range(128)]


def _plain(code: str) -> Callable[[bytes], list[float]]:
    return lambda data: [_nearest(x) for x in struct.unpack(f"<{code}", data)]


# Each for one block.
WITHOUT_GGUF: Mapping[str, Callable[[bytes], list[float]]] = MappingProxyType(
    {
        **{f: _plain(c) for f, c in zip(("F64", "I8", "I16", "I32", "I64"), "dbhiq", strict=True)},
        "Q8_1": lambda data: _q8(data, "<e2x32b"),
        "Q8_K": lambda data: _q8(data, "<f256b32x"),
        "Q1_0": _q1_0,
    }
)


def answer(question: Question) -> list[float]:
    """The values of the blocks. Errors: `DisagreementError` where refllm has others."""
    form, data = question.format, np.frombuffer(question.data, np.uint8)
    if form in WITHOUT_GGUF:
        size = FORMATS[form].block_bytes
        blocks = [question.data[at : at + size] for at in range(0, len(data), size)]
        values = [value for block in blocks for value in WITHOUT_GGUF[form](block)]
    else:
        decoded = gguf.quants.dequantize(data[None], gguf.GGMLQuantizationType[form])
        values = np.asarray(decoded, np.float32).ravel().tolist()
    _agree(question, values, FORMATS[form].decode(data[None])[0].tolist(), "refllm")
    return values


def _agree(question: Question, values: list[float], others: list[float], who: str) -> None:
    for i, (value, other) in enumerate(zip(values, others, strict=True)):
        if value.hex() != other.hex():
            raise DisagreementError(
                f"{question.id}: value {i} is {value.hex()}, but {other.hex()} by {who}"
            )


# ggml's conversions of plain numbers; its other functions are named after the format.
ROW_FUNCTIONS = MappingProxyType({"F16": "ggml_fp16_to_fp32_row", "BF16": "ggml_bf16_to_fp32_row"})


def compare_with_ggml(question: Question, values: list[float], library: ctypes.CDLL) -> bool:
    """Whether ggml's own C has a decoder for it. Errors: `DisagreementError`."""
    named = f"dequantize_row_{question.format.lower().replace('_k', '_K')}"
    function = getattr(library, ROW_FUNCTIONS.get(question.format, named), None)
    if function is None:
        return False
    out = (ctypes.c_float * question.n)()
    function(ctypes.create_string_buffer(question.data), out, ctypes.c_int64(question.n))
    _agree(question, values, list(out), "ggml")
    return True


# --- The file -------------------------------------------------------------------------------------


def as_c_prints(x: float) -> str:
    """The number as C's printf("%a") has it: no zeros at the end of a fraction."""
    if not math.isfinite(x):
        return x.hex()
    digits, exponent = x.hex().split("p")
    return f"{digits.rstrip('0').rstrip('.') if '.' in digits else digits}p{exponent}"


def case_of(question: Question, values: Sequence[float]) -> Mapping[str, Any]:
    """The question and its answer as the file has them."""
    quick = {"quick": True} if question.id in QUICK else {}
    return {
        "id": question.id,
        "proves": question.proves,
        "clause": question.clause,
        "input": {"format": question.format, "bytes": question.data.hex(), "n": question.n},
        "expected": {"values": [as_c_prints(value) for value in values]},
        **quick,
    }


def document(library: ctypes.CDLL | None = None) -> str:
    """The whole file. Errors: `DisagreementError`."""
    cases = []
    for question in questions():
        values = answer(question)
        if library is not None:
            compare_with_ggml(question, values, library)
        cases.append(case_of(question, values))
    return on_lines({"$schema": "schema.json", "group": "quant", "cases": cases}) + "\n"


def main() -> None:
    """Write the file where all decoders agree."""
    parser = argparse.ArgumentParser(description="Decode the blocks of golden/quant.")
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER, help="to write into")
    parser.add_argument("--ggml", metavar="LIBRARY", help="a libggml-base to compare with")
    arguments = parser.parse_args()
    library = ctypes.CDLL(arguments.ggml) if arguments.ggml else None
    (arguments.folder / "cases.json").write_text(document(library), encoding="ascii")


if __name__ == "__main__":
    main()
