"""Open a trace, and read its arrays one at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from refllm.errors import InvalidInput, LlmRuntimeError
from refllm.sampling import Candidates, Penalties, Stage, Step
from refllm.trace.metadata import METADATA_KEY, Metadata

__all__ = ["Trace", "open_trace"]

FLOATS = ("float16", "float32", "float64")


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace whose metadata is read; arrays are read from the file when they are asked for.

    Attributes:
        path: The file.
        metadata: Everything but the arrays.
    """

    path: Path
    metadata: Metadata
    _file: Any = field(repr=False, compare=False)
    _state: tuple[int, ...] = field(repr=False, compare=False)

    def value(self, name: str, call: int = 0) -> NDArray[np.float32]:
        """Return one of the network's values.

        Args:
            name: llama.cpp's name with the layer's number, such as "attn_norm-0"; "NAME#2" is the
                second value of the name in the call: "Qcur-0#2" is Qcur-0 after RoPE.
            call: The call of the network; `metadata.calls[call]` has its text, its first token and
                its number of tokens. Of a prompt in one call, 0 is the prompt, i the i-th drawn
                token; of an embedding model, i is text i.

        Returns:
            A copy, float32 in refllm's traces.

        Raises:
            InvalidInput: If the trace has no such call or value.
            LlmRuntimeError: If the array is not one of floats with at least one number, or the file
                changed since it was opened.

        Example:
            >>> from tempfile import TemporaryDirectory
            >>> from refllm.trace import record
            >>> with TemporaryDirectory() as folder:
            ...     trace = record("tiny-chat", "Once", to=Path(folder, "run.safetensors"))
            ...     trace.value("l_out-3").shape  # [T, D]
            (2, 256)
        """
        calls = self.metadata.calls
        if not 0 <= call < len(calls):
            raise InvalidInput(
                f"{self.path}: has no call {call}; it has calls 0 to {len(calls) - 1}"
            )
        if name not in calls[call].values:
            near = get_close_matches(name, calls[call].values, 3)
            hint = f"; near it are {', '.join(near)}" if near else ""
            raise InvalidInput(f"{self.path}: call {call} has no value {name!r:.80}{hint}")
        found = self._array(f"calls/{call}/{name}")
        if str(found.dtype) not in FLOATS:
            raise LlmRuntimeError(
                f"{self.path}: calls/{call}/{name} has the type {found.dtype}; a value must have "
                f"one of {', '.join(FLOATS)}"
            )
        if found.size == 0:
            raise LlmRuntimeError(
                f"{self.path}: calls/{call}/{name} has the shape {list(found.shape)}; a value must "
                "have a number"
            )
        return found

    def step(self, draw: int) -> Step:
        """Return what the sampler did in a draw, counted from 0.

        Raises:
            InvalidInput: If the trace has no such draw.
            LlmRuntimeError: If an array of it is missing, or has no axis.
        """
        draws = self.metadata.draws
        if not 0 <= draw < len(draws):
            raise InvalidInput(f"{self.path}: has no draw {draw}; it has {len(draws)}")
        found, prefix = draws[draw], f"draws/{draw}"
        penalties = (self._array(f"{prefix}/penalties/{n}") for n in ("ids", "before", "after"))
        stages = (
            Stage(
                name,
                Candidates(
                    self._array(f"{prefix}/{name}/ids"),
                    self._array(f"{prefix}/{name}/probabilities"),
                ),
            )
            for name in found.stages
        )
        return Step(
            step=draw,
            profile=self.metadata.profile or "",
            n_vocab=found.n_vocab,
            penalties=Penalties(*penalties),
            stages=tuple(stages),
            u=found.u,
            token=found.token_id,
        )

    def _array(self, key: str) -> NDArray[Any]:
        try:
            # The file is mapped: pages that were cut off its end would end the process.
            if _state_of(self.path) != self._state:
                raise LlmRuntimeError(f"{self.path}: changed since it was opened; open it again")
            array: NDArray[Any] = self._file.get_tensor(key)
        except TypeError as error:  # NumPy has no such type
            raise LlmRuntimeError(
                f"{self.path}: {key} cannot be read: {error}; a value must have one of "
                f"{', '.join(FLOATS)}"
            ) from error
        except (SafetensorError, OSError) as error:
            raise LlmRuntimeError(f"{self.path}: {key} cannot be read: {error}") from error
        if array.ndim == 0:
            raise LlmRuntimeError(
                f"{self.path}: {key} has the shape []; an array must have at least one axis"
            )
        return array


def open_trace(path: Path | str) -> Trace:
    """Return the trace in a file; its arrays are read when they are asked for.

    Raises:
        InvalidInput: If there is no such file.
        LlmRuntimeError: With the file and the key, for a file that is no trace, is truncated, or
            has a newer version of the schema.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, and a trace is a file" if path.is_dir() else "no such file"
        raise InvalidInput(f"{path}: {what}; to make a trace: refllm trace MODEL PROMPT --to FILE")
    try:
        state = _state_of(path)
        file: Any = safe_open(path, framework="numpy")
        stored, keys = file.metadata() or {}, frozenset(file.keys())
    except (SafetensorError, OSError) as error:
        raise LlmRuntimeError(
            f"{path}: is no trace: it is no whole safetensors file ({error})"
        ) from error
    if METADATA_KEY not in stored:
        raise LlmRuntimeError(
            f"{path}: is no trace: its __metadata__ has no key {METADATA_KEY!r}, which "
            "refllm trace writes"
        )
    metadata = Metadata.from_json(stored[METADATA_KEY], path=path)
    arrays = [f"calls/{i}/{n}" for i, call in enumerate(metadata.calls) for n in call.values]
    missing = next((key for key in arrays if key not in keys), None)
    if missing is not None:
        raise LlmRuntimeError(f"{path}: lacks the array {missing}, which its metadata names")
    return Trace(path, metadata, file, state)


def _state_of(path: Path) -> tuple[int, ...]:
    """Return what differs once a file is replaced or written again."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
