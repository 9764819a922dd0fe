"""The golden cases of networks: the logits of llamas, and the vectors of tiny-embed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from tests.conftest import PROJECT
from tools.golden_logits import ARRAYS

__all__ = [
    "EMBEDDINGS_FILE",
    "LOGITS_BY_NAME",
    "LOGITS_FILE",
    "OF_TINY_EMBED",
    "ROWS",
    "VECTOR_TOLERANCE",
    "WIDTH",
    "Case",
    "error_in_bounds",
    "floats",
    "vectors_of",
]

Array: TypeAlias = NDArray[Any]
Case: TypeAlias = Mapping[str, Any]

LOGITS_FILE = json.loads((PROJECT / "golden/logits/cases.json").read_text("ascii"))
LOGITS_BY_NAME = {case["id"].removeprefix("logits/"): case for case in LOGITS_FILE["cases"]}
ROWS = load_file(PROJECT / "golden" / "logits" / ARRAYS)

EMBEDDINGS_FILE = json.loads((PROJECT / "golden/embeddings/cases.json").read_text("utf-8"))
OF_TINY_EMBED = [case for case in EMBEDDINGS_FILE["cases"] if case["models"] == ["tiny-embed"]]
VECTOR_TOLERANCE = 1e-6
WIDTH = 384


def floats(values: Mapping[str, Any]) -> Array:
    return np.array([float.fromhex(x) for x in values["values"]]).reshape(values["shape"])


def error_in_bounds(got: Array, case: Case) -> float:
    """Return the error of the logits [T, V] in units of the case's bound; see golden/logits."""
    wanted, bound = case["expected"], float.fromhex(case["tolerance"]["absolute"])
    assert list(got.shape) == wanted["shape"]
    assert np.isfinite(got).all()
    wide = got.astype(np.float64)
    in_rows = np.abs(wide[wanted["positions"]] - ROWS[wanted["rows"]["tensor"]]).max()
    best = wide[np.arange(len(wide)), wanted["best"]["ids"]]
    of_best = np.abs(best - floats(wanted["best"]["logits"])).max()
    beyond = (wide.max(axis=1) - best).max() / 2
    return float(max(in_rows, of_best, beyond) / bound)


def vectors_of(case: Case) -> NDArray[np.float64]:
    """Return the vectors that a case of embeddings expects, [N, D]."""
    rows = case["expected"]["embeddings"]
    return np.array([[float.fromhex(x) for x in row] for row in rows]).reshape(len(rows), WIDTH)
