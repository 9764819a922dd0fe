"""Models by path: loaded once, and unloaded beyond a budget, the least recently used first.

A model is in memory as long as an object refers to it: this table, or a request that uses it.
Unloading removes it from this table; its memory is freed when the last request with it ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from refllm.bert import Bert
from refllm.checkpoints.open import open_weights
from refllm.errors import InvalidInput, LlmError
from refllm.jit.buffers import begin_arena
from refllm.llama import Llama
from refllm.models.load import BertModel, LlamaModel

__all__ = ["LoadedModels", "weight_bytes"]

Model: TypeAlias = LlamaModel | BertModel


class LoadedModels:
    """Models that are loaded on request; the caller locks.

    Attributes:
        max_bytes: The maximum bytes of weights; None is no limit. A larger model is loaded
            nevertheless, but alone.
    """

    def __init__(self, max_bytes: int | None = None) -> None:
        """Raises `InvalidInput` for a negative limit."""
        if max_bytes is not None and max_bytes < 0:
            raise InvalidInput(f"max_models_bytes must be at least 0, got {max_bytes}")
        self.max_bytes = max_bytes
        self._kept: OrderedDict[Path, Model] = OrderedDict()  # least recently used first
        # Kept models and models that requests still use.
        self._in_memory: dict[Path, weakref.ref[Model]] = {}
        self._bytes_in_files: dict[Path, int] = {}

    @property
    def n_bytes(self) -> int:
        """The bytes of the weights of all models in memory, kept or still in use.

        Counted now: a model that starts without kernels packs its weights later.
        """
        # A copy, because another thread may load one meanwhile.
        models = [model() for model in list(self._in_memory.values())]
        return sum(weight_bytes(model) for model in models if model is not None)

    def get(self, path: Path, load: Callable[[Path], Model]) -> Model:
        """Return the model at `path`, loaded if it is not in memory. Raises as `load`."""
        model = self._model_in_memory(path)
        if model is None:
            self._make_room(path)
            begin_arena()  # an arena of its own is freed with the model
            try:
                model = load(path)
            finally:
                begin_arena()
            self._in_memory[path] = weakref.ref(model)
        self._kept[path] = model
        self._kept.move_to_end(path)
        # Weights may take more in memory than in the file: some formats become float32.
        while self.max_bytes is not None and self.n_bytes > self.max_bytes and len(self._kept) > 1:
            self._kept.popitem(last=False)
        return model

    def has_room(self, path: Path) -> bool:
        """Return whether the model at `path` is in memory, or fits beside the models in use.

        Models that are not in use are unloaded for it. If no model is in use, a model of any size
        fits.
        """
        return self._model_in_memory(path) is not None or self._make_room(path)

    def _model_in_memory(self, path: Path) -> Model | None:
        model = self._in_memory.get(path)
        return None if model is None else model()

    def _make_room(self, path: Path) -> bool:
        """Unload models until the model at `path` fits, and return whether it does."""
        if self.max_bytes is None:
            return True
        if path not in self._bytes_in_files:
            self._bytes_in_files[path] = 0
            with contextlib.suppress(LlmError):  # loading raises it again
                tensors = open_weights(path).tensors.values()
                self._bytes_in_files[path] = sum(tensor.data.nbytes for tensor in tensors)
        n_more = self._bytes_in_files[path]
        while self._kept and self.n_bytes + n_more > self.max_bytes:
            self._kept.popitem(last=False)
        n_in_use = self.n_bytes
        return n_in_use == 0 or n_in_use + n_more <= self.max_bytes


def weight_bytes(model: Model) -> int:
    """Return the bytes of a model's weights, each array counted once.

    A table that stays in the model's mapped file counts as a whole, although the system keeps only
    the used pages in memory.
    """
    found = {
        (array.__array_interface__["data"][0], array.nbytes)
        for part in (model.network, getattr(model, "sentence", None))
        for array in _arrays(part)
    }
    return sum(n_bytes for _, n_bytes in found)


def _arrays(part: object) -> Iterator[NDArray[np.generic]]:
    """Yield the arrays in an object, its attributes and its items."""
    if isinstance(part, np.ndarray):
        yield part
    elif isinstance(part, list | tuple):
        for item in part:
            yield from _arrays(item)
    elif isinstance(part, Llama | Bert):
        yield from _arrays(list(vars(part).values()))
    elif dataclasses.is_dataclass(part):
        yield from _arrays([getattr(part, each.name) for each in dataclasses.fields(part)])
