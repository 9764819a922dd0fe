"""Many rows: vectors or answers for every row of files, and the same as functions of batches.

    columns      batches of Arrow, pandas and NumPy as columns, and back
    rows         `Embedder` and `Generator`: columns in, columns out
    template     prompts from the columns of a row
    reader       files as windows of rows
    writer       parts of Parquet, and the manifest by which a run is resumed
    local        one run on one machine
    ray          the same run on the machines of a Ray cluster

A row's result depends on the row, the model and the options: not on the batch, the window, the
part, the order or the thread, nor on the rows beside it. A row that cannot be computed costs that
row: its column `error` has the reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from refllm.errors import LlmRuntimeError, how_to_install

if TYPE_CHECKING:
    from refllm.batch.rows import Embedder, Generator

__all__ = ["Embedder", "Generator"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'refllm.batch' has no attribute {name!r}")
    try:
        from refllm.batch import rows  # now, because `refllm --help` needs no pyarrow
    except ModuleNotFoundError as error:
        raise LlmRuntimeError(
            f"refllm.batch needs the package {error.name}", how_to_install("batch")
        ) from error
    return getattr(rows, name)
