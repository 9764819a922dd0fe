"""A model written for other programs, from whichever files it is in.

    spin   DIR/.spin/ai-models/llama/NAME/   config.json, tokenizer.json, an index and its shard
           DIR/.spin/ai-models/NAME/         an embedding model: model.safetensors beside them
    hf     DIR/NAME/                         what transformers loads
    gguf   DIR/NAME.gguf                     what llama.cpp loads

    export_model.py, export_needs.py                      the description that all start from
    export_hf.py, export_config.py, export_tokenizer.py   folders: tensors, config.json, tokenizer
    export_gguf.py, gguf_writer.py, export_vocab.py       GGUF: types, the file, its vocabulary
    export_sentence.py                                    what makes a text's vector, in both
    export_pieces.py, export_unigram.py                   vocabularies of SentencePiece, in both
    export_names.py, export_tensors.py                    tensors, in both

Everything is written as `refllm.files.whole` does, so there is never half a model; what exists is
never overwritten.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from refllm.errors import InvalidInput
from refllm.export.config_json import DTYPES
from refllm.export.gguf import FILE_TYPES, is_for_llama_cpp, write_gguf
from refllm.export.huggingface import write_hf_folder, write_spin_folder
from refllm.export.model import Description, describe
from refllm.files.whole import whole_file, whole_folder
from refllm.models.find import INFERENCING_ARCHITECTURE, check_name

__all__ = ["LAYOUTS", "Layout", "export", "quantize"]

Layout = Literal["spin", "hf", "gguf"]

LAYOUTS: tuple[Layout, ...] = ("spin", "hf", "gguf")
LOSSLESS = "F32"


def export(
    model: Path, *, to: Path, name: str, layout: Layout, type_name: str | None = None
) -> Path:
    """Write the model at `model`, a GGUF file or a folder, into `to`, and return what was written.

    `type_name` is for the matrices: F32, F16 or BF16 in folders, by default F32; any of
    `refllm.ggml.encode.QUANTIZABLE` in a GGUF file, by default what they are; where a row is no
    whole number of blocks, the next larger type (see `refllm.export.gguf`). A GGUF file exported as
    one without a type is copied byte for byte, unless it is in several parts, which become one, or
    llama.cpp would compute something else (special tokens or token types without a key, vectors
    that are not F32). Everything else is written from a description of the model, see
    `refllm.export.model`. What a GGUF file cannot hold and no vector depends on by default is left
    out: a text's limit in tokens, prompts that a caller chooses by name.

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
    description = describe(model)
    target, write = to / name, write_hf_folder
    if layout == "spin":
        target, write = to.joinpath(*_place_in_spin(description), name), write_spin_folder
    with whole_folder(target, parents=True) as folder:
        write(description, folder, type_name=type_name or LOSSLESS)
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
    description = describe(model)
    with whole_file(target, parents=True, overwrite=False) as path:
        if type_name is None and is_for_llama_cpp(description):
            shutil.copyfile(description.path, path)
        else:
            write_gguf(description, path, name=name, type_name=type_name)
    return target


def _place_in_spin(model: Description) -> tuple[str, ...]:
    """The folders between the project's and the model's."""
    root = (".spin", "ai-models")
    return (*root, INFERENCING_ARCHITECTURE) if model.sentence is None else root
