"""Models by path: loaded once, and unloaded beyond a budget, the least recently used first.

A model is in memory as long as an object refers to it: this table, or a request that computes with
it. Unloading is to forget it here; its memory goes back when the last request with it ends.
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
from refllm.jit.buffers import begin_piece
from refllm.llama import Llama
from refllm.models.load import BertModel, LlamaModel

__all__ = ["LoadedModels", "weight_bytes"]

Model: TypeAlias = LlamaModel | BertModel


class LoadedModels:
    """Models that are loaded when they are asked for; the caller locks.

    Attributes:
        max_bytes: The most bytes of weights; None is no limit. A model that is larger is loaded
            nevertheless, and alone.
    """

    def __init__(self, max_bytes: int | None = None) -> None:
        """Raises `InvalidInput` for a negative limit."""
        if max_bytes is not None and max_bytes < 0:
            raise InvalidInput(f"max_models_bytes must be at least 0, got {max_bytes}")
        self.max_bytes = max_bytes
        self._kept: OrderedDict[Path, Model] = OrderedDict()  # least recently used first
        # The kept ones, and those that requests still use, with the bytes of their weights.
        self._in_memory: dict[Path, tuple[weakref.ref[Model], int]] = {}
        self._bytes_in_files: dict[Path, int] = {}

    @property
    def n_bytes(self) -> int:
        """What the weights of all models in memory take, those that requests still use included."""
        each = list(self._in_memory.values())  # another thread may load one meanwhile
        return sum(n for model, n in each if model() is not None)

    def get(self, path: Path, load: Callable[[Path], Model]) -> Model:
        """Return the model at `path`; `load` it if it is not in memory. Errors: those of `load`."""
        model = self._model_in_memory(path)
        if model is None:
            self._unload_until_there_is_room(path)
            begin_piece()  # memory that no other model has a part of goes back with this one
            try:
                model = load(path)
            finally:
                begin_piece()
            self._in_memory[path] = (weakref.ref(model), weight_bytes(model))
        self._kept[path] = model
        self._kept.move_to_end(path)
        # In memory, weights may take more than in the file: some formats become float32.
        while self.max_bytes is not None and self.n_bytes > self.max_bytes and len(self._kept) > 1:
            self._kept.popitem(last=False)
        return model

    def has_room(self, path: Path) -> bool:
        """Return whether the model at `path` is in memory, or fits beside those that are in use.

        Models that are not in use are unloaded for it. Where no model is in use there is room for
        one of any size.
        """
        if self._model_in_memory(path) is not None:
            return True
        return self._unload_until_there_is_room(path)

    def _model_in_memory(self, path: Path) -> Model | None:
        model, _ = self._in_memory.get(path, (None, 0))
        return None if model is None else model()

    def _unload_until_there_is_room(self, path: Path) -> bool:
        if self.max_bytes is None:
            return True
        n_more = self._bytes_to_load(path)
        while self._kept and self.n_bytes + n_more > self.max_bytes:
            self._kept.popitem(last=False)
        n_in_use = self.n_bytes
        return n_in_use == 0 or n_in_use + n_more <= self.max_bytes

    def _bytes_to_load(self, path: Path) -> int:
        """What the tensors of a model take in its files; 0 where they cannot be read."""
        if path not in self._bytes_in_files:
            n_bytes = 0
            with contextlib.suppress(LlmError):  # the same one comes from loading
                tensors = open_weights(path).tensors
                n_bytes = sum(tensor.data.nbytes for tensor in tensors.values())
            self._bytes_in_files[path] = n_bytes
        return self._bytes_in_files[path]


def weight_bytes(model: Model) -> int:
    """Return what the weights of a model take, each array once.

    A table that stays in the model's mapped file, to look rows up in, counts as a whole: the
    system keeps what of it is used.
    """
    found = {
        (array.__array_interface__["data"][0], array.nbytes)
        for part in (model.network, getattr(model, "sentence", None))
        for array in _arrays(part)
    }
    return sum(n_bytes for _, n_bytes in found)


def _arrays(part: object) -> Iterator[NDArray[np.generic]]:
    """The arrays in an object, and in what its attributes and items are."""
    if isinstance(part, np.ndarray):
        yield part
    elif isinstance(part, list | tuple):
        for item in part:
            yield from _arrays(item)
    elif isinstance(part, Llama | Bert):
        yield from _arrays(list(vars(part).values()))
    elif dataclasses.is_dataclass(part):
        yield from _arrays([getattr(part, each.name) for each in dataclasses.fields(part)])
