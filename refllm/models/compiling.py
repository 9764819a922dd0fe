"""Which kernels a model needs, found without compiling or computing.

The network runs with weights that have shapes and no contents, and its kernels are recorded instead
of run (`refllm.jit.compile.recorded`). So the list is right by construction: the wrappers choose
each kernel, by the shapes of a real call.

T tokens, D columns and N rows of a matrix, R rotated part of a head.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from refllm.bert import Bert
from refllm.checkpoints.config import bert_config, llama_config
from refllm.checkpoints.open import Weights, open_weights
from refllm.checkpoints.sentence_config import sentence_config
from refllm.files.accounting.ledger import Ledger
from refllm.jit.compile import Missing, is_single, recorded, use_threads
from refllm.jit.first_compilation import IN_BACKGROUND
from refllm.jit.workers import Workers, compile_all, largest_first, may_start_workers
from refllm.kernels.elementwise import gelu
from refllm.kernels.linear import Matrix, linear
from refllm.kernels.math64 import softmax
from refllm.kernels.simd.lanes import LANES
from refllm.kernels.topk import topk
from refllm.llama import Llama, LlamaConfig, Segment
from refllm.parameters import Parameters
from refllm.quant import Tensor
from refllm.tap import ignore

__all__ = [
    "EVERY_STEP",
    "Compilation",
    "ShapedParameters",
    "Step",
    "compile_models",
    "compile_steps",
    "compile_texts",
    "missing_of_llama",
    "missing_of_model",
    "missing_of_models",
    "result_of",
]

Step = tuple[int, int]
"""The new tokens of a call, and the tokens before them."""

# One row, few rows and many rows: the algorithms of `refllm.kernels.linear`.
EVERY_STEP: tuple[Step, ...] = ((1, 1), (4, 0), (64, 0))

logger = logging.getLogger("refllm.kernels")


class Compilation:
    """The processes that compile one model's kernels while it is used."""

    def __init__(self, path: Path, numerics: str) -> None:
        self._path = path
        self._numerics = numerics
        self._workers: Workers | None = None
        self._started: set[Path] = set()  # what they compile

    def start(
        self,
        missing: Collection[Missing],
        function: str,
        *,
        is_in_background: bool = False,
        **arguments: Any,
    ) -> None:
        """Start processes for the kernels that no process has got yet, and announce it.

        Where they cannot be started, this process compiles each kernel at its first call.

        Args:
            missing: The kernels.
            function: The function of this module that the processes call.
            is_in_background: Whether this process computes meanwhile.
            arguments: The function's, besides the path and the numerics of the model.
        """
        new = {each.path for each in missing} - self._started
        if not new or not may_start_workers(missing, os.environ):
            return
        # The processes look for the kernels again, and have to find the same forms of them.
        n_threads = 1 if is_single() else None
        task = {
            "path": str(self._path),
            "numerics": self._numerics,
            "n_threads": n_threads,
            **arguments,
        }
        if is_in_background:
            task["is_in_background"] = True
        try:
            self._workers = Workers(
                f"{__name__}:{function}",
                task,
                n_kernels=len(new),
                is_in_background=is_in_background,
            )
        except OSError:
            return
        self._started |= new
        what = "compiling %d kernels in %d processes (first run only)"
        background = {IN_BACKGROUND: is_in_background}
        logger.info(what, len(new), len(self._workers), extra=background)

    def wait(self, kernels: Collection[Missing]) -> None:
        """Wait for kernels, or until no process compiles any more."""
        if self._workers is not None and not self._workers.wait_for(kernels):
            self._workers = None


@dataclass(frozen=True, slots=True)
class ShapedParameters(Parameters):
    """Parameters whose matrices have shapes and types, and arbitrary contents."""

    def _packed(self, *tensors: Tensor) -> Matrix:
        """Return a matrix of the right size, packed from its first rows; for `recorded` only."""
        first, n_rows = tensors[0], sum(tensor.shape[0] for tensor in tensors)
        shape = (min(LANES, first.shape[0]), first.shape[1])
        part = Tensor(first.name, first.format, shape, first.data[: shape[0]])
        packed = Parameters._packed(replace(self, consumed=None), part)
        n_panels = -(-n_rows // LANES)
        data = np.empty((n_panels, packed.data.shape[1]), np.uint8)
        return replace(packed, n_rows=n_rows, data=data)


def missing_of_llama(
    config: LlamaConfig,
    parameters: Parameters,
    steps: Iterable[Step],
    *,
    every_form: bool = False,
) -> list[Missing]:
    """Return the kernels that are not on disk for loading a llama and for these steps.

    Args:
        config: Its hyperparameters.
        parameters: Its tensors and numerics.
        steps: The steps, each of one sequence, with the draw of a token behind it.
        every_form: Whether to name both forms of each kernel, serial and parallel.

    Raises:
        LlmRuntimeError: As `Llama`.
    """
    shaped = ShapedParameters(parameters.path, parameters.tensors, parameters.numerics)
    with recorded(result_of, every_form=every_form) as missing, np.errstate(all="ignore"):
        network = Llama(config, shaped)
        for n_tokens, n_before in steps:
            cache = network.new_cache()
            length = max(0, min(n_before, config.n_ctx - n_tokens))
            cache.reserve(length + n_tokens)
            cache.length = length
            hidden = network._layers([Segment([0] * n_tokens, cache)], ignore)
            linear(hidden[-1:], network.output)
            scores = np.zeros(config.n_vocab)
            softmax(scores)
            topk(scores, 1)
    return list(missing.values())


def missing_of_model(
    path: Path, numerics: str, steps: Collection[Step], *, every_form: bool = False
) -> list[Missing]:
    """Return the kernels that are not on disk for the model at `path`.

    Args:
        path: A .gguf file or a folder.
        numerics: "exact" or "int8".
        steps: The steps of a llama; an encoder gets texts of as many tokens.
        every_form: Whether to name both forms of each kernel.

    Raises:
        LlmError: As `refllm.models.load.load_path`.
    """
    weights = open_weights(path)
    if weights.architecture == "llama":
        shaped = ShapedParameters(weights.path, weights.tensors, numerics)
        config = llama_config(weights, ledger=Ledger())
        return missing_of_llama(config, shaped, steps, every_form=every_form)
    groups = [[n_tokens] for n_tokens, _ in steps]
    return _missing_of_encoder(weights, numerics, groups, every_form=every_form)


def _missing_of_encoder(
    weights: Weights, numerics: str, groups: Iterable[Sequence[int]], *, every_form: bool = False
) -> list[Missing]:
    """Return the kernels that are not on disk for an encoder and for groups of texts.

    Args:
        weights: Its files.
        numerics: "exact" or "int8".
        groups: The numbers of tokens of the texts that are computed together.
        every_form: As `missing_of_model`.
    """
    shaped = ShapedParameters(weights.path, weights.tensors, numerics)
    with recorded(result_of, every_form=every_form) as missing, np.errstate(all="ignore"):
        bert = Bert(bert_config(weights, ledger=Ledger()), shaped)
        sentence = sentence_config(weights, n_embd=bert.config.n_embd, ledger=Ledger())
        for lengths in groups:
            hidden = bert._layers([[0] * n for n in lengths], gelu, ignore)
            sentence.head(hidden, np.cumsum([0, *lengths]).tolist())
    return list(missing.values())


def compile_steps(
    path: str,
    numerics: str,
    steps: list[Step],
    later: list[Step],
    *,
    n_threads: int | None,
    is_in_background: bool = False,
) -> None:
    """Compile what a llama needs for these steps, then for later ones: a process's whole work."""
    use_threads(n_threads)
    missing = missing_of_model(Path(path), numerics, steps)
    first = {each.path for each in missing}
    others = missing_of_model(Path(path), numerics, later)
    rest = [each for each in others if each.path not in first]
    kernels = [*largest_first(missing), *largest_first(rest)]
    compile_all(kernels, is_in_background=is_in_background)


def compile_texts(path: str, numerics: str, lengths: list[int], *, n_threads: int | None) -> None:
    """Compile what an encoder needs for texts of these lengths: a process's whole work."""
    use_threads(n_threads)
    missing = _missing_of_encoder(open_weights(Path(path)), numerics, [lengths])
    compile_all(largest_first(missing), is_in_background=False)


def missing_of_models(paths: Iterable[Path], numerics: Collection[str]) -> list[Missing]:
    """Return all kernels that are not on disk for some models, in every form; raises `LlmError`."""
    missing = {
        kernel.path: kernel
        for path in paths
        for each in numerics
        for kernel in missing_of_model(path, each, EVERY_STEP, every_form=True)
    }
    return list(missing.values())


def compile_models(paths: list[str], numerics: list[str]) -> None:
    """Compile all that models need, in every form: a process's whole work."""
    missing = missing_of_models([Path(path) for path in paths], numerics)
    compile_all(largest_first(missing), is_in_background=False)


def result_of(name: str, *arguments: Any) -> Any:
    """Return an array like a kernel's result; of most the type and shape of its first argument."""
    first = arguments[0]
    if name == "rope_table":
        return np.empty((2, len(first), len(arguments[1])), np.float32)  # [2, T, R/2]
    if name == "topk":
        return np.zeros(arguments[1], np.int64)
    if name.endswith("_rows"):  # pooling
        return np.empty(first.shape[1], np.float32)  # [D]
    return np.empty_like(first)
