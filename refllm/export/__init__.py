"""Export: a model written for other programs, from whichever files it is in.

    spin   DIR/.spin/ai-models/llama/NAME/   config.json, tokenizer.json, an index and its shard
           DIR/.spin/ai-models/NAME/         an embedding model: model.safetensors beside them
    hf     DIR/NAME/                         what transformers loads
    gguf   DIR/NAME.gguf                     what llama.cpp loads

`export` and `quantize` start here. They write a target from the description of `model.py`:
`huggingface.py` a folder, with `config_json.py` and `tokenizer_files.py`; `gguf.py` a file, with
`gguf_vocabulary.py`; `sentence_files.py` and `sentencepiece.py` serve both. May import
`refllm.models` and every package below it. Files appear whole or not at all
(`refllm.files.whole`). Only `quantize` overwrites an existing file, and only if its caller asks for
that.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Literal

from refllm.checkpoints.open import open_weights
from refllm.errors import InvalidInput
from refllm.export.config_json import DTYPES
from refllm.export.gguf import (
    FILE_TYPES,
    is_for_llama_cpp,
    requantized_types,
    unfitting_matrices,
    write_gguf,
)
from refllm.export.huggingface import write_hf_folder, write_spin_folder
from refllm.export.model import Description, describe
from refllm.files.whole import whole_file, whole_folder
from refllm.models.find import INFERENCING_ARCHITECTURE, check_name, pulled_models_root
from refllm.quant import FORMATS

__all__ = ["LAYOUTS", "Layout", "export", "quantize", "quantized_path"]

Layout = Literal["spin", "hf", "gguf"]

LAYOUTS: tuple[Layout, ...] = ("spin", "hf", "gguf")
LOSSLESS = "F32"

logger = logging.getLogger("refllm")


def export(
    model: Path, *, to: Path, name: str, layout: Layout, type_name: str | None = None
) -> Path:
    """Write a model in another layout, and return the file or folder that was written.

    A GGUF file exported as one without a type is copied byte for byte, unless it is in several
    parts, which become one, or llama.cpp would compute something else (special tokens or token
    types without a key, vectors that are not F32). A GGUF file has no key for a text's limit in
    tokens and for prompts that a caller chooses by name; they are left out.

    Args:
        model: A GGUF file or a folder.
        to: The folder to write into.
        name: The name of the exported model.
        layout: One of `LAYOUTS`.
        type_name: The type of matrices: F32, F16 or BF16 in folders, by default F32; any of
            `refllm.ggml.encode.QUANTIZABLE` in a GGUF file, by default their own. A row that is no
            whole number of blocks gets the next larger type (see `refllm.export.gguf`).

    Raises:
        InvalidInput: for an unknown layout, type or name, for numbers that the type cannot hold, or
            if the target exists.
        ModelNotSupported: for a model that the layout cannot describe or refllm cannot load.
        LlmRuntimeError: for a damaged model, naming missing tensors, or a target that cannot be
            written.
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
    description = describe(model)
    target, write = to / name, write_hf_folder
    if layout == "spin":
        root = to / ".spin" / "ai-models"
        folder_of_kind = root / INFERENCING_ARCHITECTURE if description.sentence is None else root
        target, write = folder_of_kind / name, write_spin_folder
    with whole_folder(target, parents=True) as folder:
        write(description, folder, type_name=type_name or LOSSLESS)
    return target


def quantize(model: Path, target: Path, *, type_name: str, overwrite: bool = False) -> None:
    """Write the model at `model` as the GGUF file `target`, its matrices as `type_name`.

    A warning is logged if quantized matrices are quantized again: both rounding errors stay.

    Args:
        model: A GGUF file or a folder.
        target: The .gguf file to write.
        type_name: One of `refllm.ggml.encode.QUANTIZABLE`, as for `export`.
        overwrite: Whether to replace `target` if it exists.

    Raises:
        LlmError: as `export`.
    """
    if target.suffix != ".gguf":
        raise InvalidInput(f"{target}: a GGUF file's name ends in .gguf; give it one that does")
    _export_gguf(model, target, name=target.stem, type_name=type_name, overwrite=overwrite)


def quantized_path(model: Path, *, name: str, type_name: str) -> Path:
    """Return the file of the model NAME as a type, where commands find it as NAME-TYPE.

    It is in the folder of the model's architecture in `pulled_models_root()`. A type that ends NAME
    is replaced: a model called tiny-F16 becomes tiny-Q8_0.

    Args:
        model: The GGUF file or folder to be quantized.
        name: Its name.
        type_name: The type of matrices.

    Raises:
        InvalidInput: for an unknown type, or a name that is not valid.
        LlmError: as `open_weights`, for a model that refllm does not compute.

    Example:
        >>> from refllm.models.bundled import ROOT
        >>> model = ROOT / "bert" / "tiny-embed.gguf"
        >>> quantized_path(model, name="tiny-embed", type_name="Q4_0").parts[-2:]
        ('bert', 'tiny-embed-Q4_0.gguf')
    """
    _check_type(type_name)
    base, _, last = name.rpartition("-")
    new_name = f"{base if base and last.upper() in FORMATS else name}-{type_name}"
    check_name(new_name)
    return pulled_models_root() / open_weights(model).architecture / f"{new_name}.gguf"


def _check_type(type_name: str | None) -> None:
    if type_name not in (None, *FILE_TYPES):
        known = ", ".join(FILE_TYPES)
        raise InvalidInput(f"the type must be one of {known}, got {type_name!r:.60}")


def _warn_of_types(model: Description, type_name: str) -> None:
    """Log a warning if matrices lose twice by quantization, or cannot get the type."""
    if again := requantized_types(model, type_name):
        logger.warning(
            "refllm: %s: matrices are quantized again, from %s, and the errors of both roundings "
            "stay; quantize the model they were made from if you have it",
            *(model.path, " and ".join(f"{before} to {after}" for before, after in again)),
        )
    n_matrices, others = unfitting_matrices(model, type_name)
    for other, n in sorted(others.items()):
        logger.warning(
            "refllm: %s: %d of %d matrices become %s, because their rows are no multiple of the "
            "%d numbers of a block of %s",
            *(model.path, n, n_matrices, other, FORMATS[type_name].block_size, type_name),
        )


def _export_gguf(
    model: Path, target: Path, *, name: str, type_name: str | None, overwrite: bool = False
) -> Path:
    _check_type(type_name)
    description = describe(model)
    if type_name is not None:
        _warn_of_types(description, type_name)
    with whole_file(target, parents=True, overwrite=overwrite) as path:
        if type_name is None and is_for_llama_cpp(description):
            shutil.copyfile(description.path, path)
        else:
            write_gguf(description, path, name=name, type_name=type_name)
    return target
