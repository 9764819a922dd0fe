"""A model written for other programs, from whichever files it is in.

    spin   DIR/.spin/ai-models/llama/NAME/   config.json, tokenizer.json, an index and its shard
           DIR/.spin/ai-models/NAME/         an embedding model: model.safetensors beside them
    hf     DIR/NAME/                         what transformers loads
    gguf   DIR/NAME.gguf                     what llama.cpp loads

    export_hf.py, export_config.py, export_tokenizer.py   folders: tensors, config.json, tokenizer
    export_gguf.py, gguf_writer.py, export_vocab.py       GGUF: types, the file, its vocabulary
    export_pieces.py, export_tensors.py                   what both need
    export_needs.py                                       what a model must have

Everything is written to a hidden file or folder beside the target and renamed when it is whole, so
there is never half a model; what exists is never overwritten.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from refllm.api import InvalidInput, LlmRuntimeError
from refllm.export_config import DTYPES
from refllm.export_gguf import FILE_TYPES, is_for_llama_cpp, write_gguf
from refllm.export_hf import write_hf_folder, write_spin_folder
from refllm.export_needs import refuse_incomplete
from refllm.export_sentence import sentence_of
from refllm.models import INFERENCING_ARCHITECTURE, absent_path, check_name
from refllm.weights import Weights, open_weights

__all__ = ["LAYOUTS", "Layout", "export", "quantize"]

Layout = Literal["spin", "hf", "gguf"]

LAYOUTS: tuple[Layout, ...] = ("spin", "hf", "gguf")
LOSSLESS = "F32"


def export(
    model: Path, *, to: Path, name: str, layout: Layout, type_name: str | None = None
) -> Path:
    """Write the model at `model`, a GGUF file or a folder, into `to`, and return what was written.

    `type_name` is for the matrices: F32, F16 or BF16 in folders, by default F32; any of
    `refllm.quantize.QUANTIZABLE` in a GGUF file, by default what they are; where a row is no whole
    number of blocks, the next larger type (see `refllm.export_gguf`). A GGUF file exported as one
    without a type is copied byte for byte, unless it is in several parts, which become one, or
    llama.cpp would compute something else (special tokens without a key, token types that are
    quantized). What a GGUF file cannot hold and no vector depends on by default is left out: a
    text's limit in tokens, prompts that a caller chooses by name.

    Errors: `InvalidInput` for a layout, type or name that is none, for numbers that the type cannot
    hold, or where the target exists; `ModelNotSupported` for what the layout cannot say, and for
    what refllm cannot load; `LlmRuntimeError` for a damaged model, naming the tensors that are
    missing, or a target that cannot be written.
    """
    if layout not in LAYOUTS:
        raise InvalidInput(f"the format must be one of {', '.join(LAYOUTS)}, got {layout!r:.60}")
    check_name(name)
    if layout == "gguf":
        return _export_gguf(model, to / f"{name}.gguf", name=name, type_name=type_name)
    if type_name not in (None, *DTYPES):
        raise InvalidInput(
            f"safetensors files hold {', '.join(DTYPES)}, and not {type_name!r:.60}; choose one of "
            "them, or --format gguf"
        )
    weights = _open(model)
    target, write = to / name, write_hf_folder
    if layout == "spin":
        target, write = to.joinpath(*_place_in_spin(weights), name), write_spin_folder
    with _new_folder(target) as folder:
        write(weights, folder, type_name=type_name or LOSSLESS)
    return target


def quantize(model: Path, target: Path, *, type_name: str) -> None:
    """Write the model at `model` as the GGUF file `target`, its matrices as `type_name`.

    Errors: as `export`.
    """
    if target.suffix != ".gguf":
        raise InvalidInput(f"{target}: a GGUF file's name ends in .gguf; give it one that does")
    _export_gguf(model, target, name=target.stem, type_name=type_name)


def _export_gguf(model: Path, target: Path, *, name: str, type_name: str | None) -> Path:
    if type_name not in (None, *FILE_TYPES):
        raise InvalidInput(
            f"the type must be one of {', '.join(FILE_TYPES)}, got {type_name!r:.60}"
        )
    weights = _open(model)
    with _new_path(target) as path:
        if weights.source == "gguf" and type_name is None and is_for_llama_cpp(weights):
            shutil.copyfile(weights.path, path)
        else:
            write_gguf(weights, path, name=name, type_name=type_name)
    return target


def _open(model: Path) -> Weights:
    if not model.exists():
        raise InvalidInput(*absent_path(model))
    weights = open_weights(model)
    refuse_incomplete(weights)
    if weights.architecture != "llama":
        sentence_of(weights)  # refuses what is not computed
    return weights


def _place_in_spin(weights: Weights) -> tuple[str, ...]:
    """The folders between the project's and the model's."""
    root = (".spin", "ai-models")
    return (*root, INFERENCING_ARCHITECTURE) if weights.architecture == "llama" else root


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    with _new_path(target) as path:
        path.mkdir()
        yield path


@contextmanager
def _new_path(target: Path) -> Iterator[Path]:
    """A hidden path beside `target`; what is there when the block ends becomes `target`.

    If the block fails, nothing stays. Errors: `InvalidInput` where `target` exists,
    `LlmRuntimeError` where it cannot be written.
    """
    if os.path.lexists(target):
        raise InvalidInput(f"{target} exists already; choose another place, or delete it first")
    hidden = target.parent / f".exporting-{secrets.token_hex(8)}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield hidden
            hidden.rename(target)
        finally:
            _delete(hidden)
    except OSError as error:
        raise LlmRuntimeError(f"{target}: cannot be written: {error.strerror or error}") from error


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
