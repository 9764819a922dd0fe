"""By how much float32 is off: the oracle's results beside float64, in both numerics revisions.

    python -m tools.rounding_errors                         tiny models, tiny-chat, tiny-embed
    python -m tools.rounding_errors --stories FILE --minilm DIR         stories260K and MiniLM, too
    python -m tools.rounding_errors --only tiny-chat                    one row

Revision 1 of the rule rounded each product and each sum of a matrix product, revision 2 rounds both
once, by an fma. Nothing else differs between them. The exact values are the same formulas in
float64 throughout, on the same weights. All three are computed by `refllm.oracle`; only the tokens
of a greedy text are chosen by the kernels. Printed is the table of docs/project/determinism.md.

T tokens, V vocabulary, N texts, D vector length.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from refllm import oracle
from refllm.checkpoints.config import bert_config, llama_config
from refllm.checkpoints.open import open_weights
from refllm.conform.models import suite_model
from tools.hash_bits import greedy_by_kernels, subjects

__all__ = ["HEAD", "Row", "main", "row", "rows"]

Array: TypeAlias = NDArray[Any]

LOGITS = Path(__file__).resolve().parent.parent / "golden" / "logits" / "cases.json"


@dataclass(frozen=True, slots=True)
class Row:
    """A model's largest value, and the largest and the root mean square error of each revision."""

    name: str
    n_tokens: int
    largest: float
    largest_errors: tuple[float, float]
    rms_errors: tuple[float, float]

    def __str__(self) -> str:
        errors = (f"{error:.1e}" for error in (*self.largest_errors, *self.rms_errors))
        cells = (self.name, str(self.n_tokens), f"{self.largest:.3g}", *errors)
        return f"| {' | '.join(cells)} |"


HEAD = """\
| model | tokens | largest value | largest error, revision 1 | 2 | root mean square, 1 | 2 |
|---|---|---|---|---|---|---|"""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Measure float32 against float64.")
    parser.add_argument("--stories", type=Path, metavar="FILE", help="stories260K.gguf")
    parser.add_argument("--minilm", type=Path, metavar="DIR", help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--only", action="append", metavar="NAME", help="this row; repeatable")
    arguments = parser.parse_args()
    sys.stdout.write(f"{HEAD}\n")
    with tempfile.TemporaryDirectory() as folder:
        for each in rows(Path(folder), arguments.stories, arguments.minilm, arguments.only):
            sys.stdout.write(f"{each}\n")
            sys.stdout.flush()


def rows(
    folder: Path, stories: Path | None, minilm: Path | None, only: Sequence[str] | None = None
) -> Iterator[Row]:
    """Compute each row whose model is at hand or is made in `folder`; of `only`, if it is given."""
    for subject in subjects(folder, stories, minilm):
        if only is None or subject.name in only:
            path, token_ids = subject.model(), subject.token_ids
            if subject.name.endswith("-greedy"):
                [prompt] = token_ids
                written = greedy_by_kernels(path, token_ids).tolist()
                token_ids = [[*prompt, *written[:-1]]]
            yield row(subject.name, path, token_ids)
    for name, ids in _golden_passages().items():
        if only is None or name in only:
            made = suite_model(name, folder)
            assert made is not None
            yield row(name, made, [ids])


def _golden_passages() -> Mapping[str, Sequence[int]]:
    """The longest passage that golden/logits has of each type of tiny-chat but its own."""
    cases = json.loads(LOGITS.read_text(encoding="utf-8"))["cases"]
    inputs = [case["input"] for case in cases if case["input"]["numerics"] == "exact"]
    by_length = sorted(inputs, key=lambda each: len(each["token_ids"]))
    return {each["model"]: each["token_ids"] for each in by_length if each["model"] != "tiny-chat"}


def row(name: str, path: Path, sequences: Sequence[Sequence[int]]) -> Row:
    """Return the errors of the logits of the one sequence, or of the embeddings of the texts."""
    compute = _network(path, sequences)
    exact = compute(np.float64)
    with mock.patch.object(oracle, "fma", rounded_twice):
        revision_1 = compute(np.float32)
    errors = [np.abs(each - exact) for each in (revision_1, compute(np.float32))]
    return Row(
        name=name,
        n_tokens=sum(map(len, sequences)),
        largest=float(np.abs(exact).max()),
        largest_errors=(float(errors[0].max()), float(errors[1].max())),
        rms_errors=(_root_mean_square(errors[0]), _root_mean_square(errors[1])),
    )


def rounded_twice(a: Array, b: Array, c: Array) -> Array:
    """Return a·b + c as revision 1 had it: the product rounded, then the sum."""
    result: Array = a * b + c
    return result


def _root_mean_square(errors: Array) -> float:
    return float(np.sqrt(np.mean(errors * errors)))


def _network(path: Path, sequences: Sequence[Sequence[int]]) -> Callable[[type], Array]:
    """Return dtype → logits [T, V] of the one sequence, or embeddings [N, D]."""
    weights = open_weights(path)
    # Columns lie together, because products walk along them.
    tensors = {name: np.asfortranarray(each.array()) for name, each in weights.tensors.items()}

    def compute(dtype: type) -> Array:
        w: dict[str, Array] = {name: array.astype(dtype) for name, array in tensors.items()}
        if weights.architecture == "llama":
            [token_ids] = sequences
            return oracle.llama(llama_config(weights), w, token_ids)
        config = bert_config(weights)
        return np.stack([oracle.bert(config, w, token_ids) for token_ids in sequences])

    return compute


if __name__ == "__main__":
    main()
