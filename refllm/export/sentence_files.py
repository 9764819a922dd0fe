"""Pooling, dense layers and prompts in an export: as files of a folder, or as GGUF's one key.

A folder says all of it; a GGUF file has `pooling_type` and nothing else, and Spin's engine always
takes the mean and normalizes it. What a target cannot say is refused, never left out silently.
"""

from __future__ import annotations

from refllm.checkpoints.safetensors import SINGLE
from refllm.checkpoints.sentence_config import (
    GGUF_POOLING_TYPES,
    SENTENCE_FILES,
    SWITCHES,
    SentenceConfig,
    module_folders,
)
from refllm.errors import ModelNotSupported
from refllm.export.model import Description
from refllm.export.tokenizer_files import json_bytes
from refllm.pooling import MEAN_NORMALIZED, Dense, Normalize

__all__ = ["gguf_pooling_type", "refuse_head_that_spin_cannot", "sentence_files"]

PLACE = "sentence_transformers.models."  # where every version finds its modules


def gguf_pooling_type(model: Description, sentence: SentenceConfig) -> int:
    """Return the number for `pooling_type`.

    Programs that read GGUF files leave normalization to their caller and do it by default, so only
    a vector that is normalized last is what the file stands for.

    Raises:
        ModelNotSupported: Naming what a GGUF file has no key for.
    """
    modes = sentence.head.pooling.modes
    numbers = {mode: number for number, mode in GGUF_POOLING_TYPES.items()}
    problems = _beyond_pooling(model, sentence)
    if len(modes) > 1 or modes[0] not in numbers:
        problems.insert(0, f"pooling by {' and '.join(modes)}")
    if problems:
        raise ModelNotSupported(
            f"{model.path}: has {problems[0]}, which a GGUF file has no key for; only "
            "--format hf keeps it"
        )
    return numbers[modes[0]]


def refuse_head_that_spin_cannot(model: Description, sentence: SentenceConfig) -> None:
    """Raise `ModelNotSupported` unless the vector is the normalized mean, as Spin computes it."""
    problems = _beyond_pooling(model, sentence)
    if sentence.head.pooling.modes != MEAN_NORMALIZED.pooling.modes:
        problems.insert(0, f"pooling by {' and '.join(sentence.head.pooling.modes)}")
    if problems:
        raise ModelNotSupported(
            f"{model.path}: has {problems[0]}, which Spin's engine does not know; export it for "
            "another program with --format hf or gguf"
        )


def sentence_files(model: Description, sentence: SentenceConfig) -> dict[str, bytes]:
    """Return file name to content.

    A folder's own files are kept, of a module its config.json and its tensors: each of their keys
    and tensors was read, or is irrelevant. For a GGUF file they are made.
    """
    if model.weights.source == "hf":
        places = [*SENTENCE_FILES]
        for place in module_folders(model.path):
            places += [f"{place}/config.json", f"{place}/{SINGLE}"]
        return {
            place: (model.path / place).read_bytes()
            for place in places
            if (model.path / place).is_file()
        }
    config = model.config
    modes = sentence.head.pooling.modes
    modules = ["Transformer", "Pooling", "Normalize"]
    places = ["", "1_Pooling", "2_Normalize"]
    listed = [
        {"idx": i, "name": str(i), "path": place, "type": PLACE + module}
        for i, (module, place) in enumerate(zip(modules, places, strict=True))
    ]
    # Older versions refuse switches that are newer than they are, so others stand only if on.
    switches = {
        key: mode in modes
        for key, mode in SWITCHES.items()
        if mode in ("cls", "max", "mean", "mean_sqrt_len_tokens", *modes)
    }
    return {
        "modules.json": json_bytes(listed),
        "1_Pooling/config.json": json_bytes(
            {"word_embedding_dimension": config.n_embd, **switches}
        ),
        "sentence_bert_config.json": json_bytes(
            {"max_seq_length": config.n_ctx, "do_lower_case": False}
        ),
    }


def _beyond_pooling(model: Description, sentence: SentenceConfig) -> list[str]:
    """Return what there is beside pooling and a normalization that comes last."""
    head = sentence.head
    found = {
        "a Dense layer": any(isinstance(step, Dense) for step in head.steps),
        "vectors that are not normalized": not any(
            isinstance(step, Normalize) for step in head.steps
        ),
        f"vectors cut to {head.truncate_dim} numbers (truncate_dim)": head.truncate_dim is not None,
        f"a default prompt, {sentence.default_prompt!r:.80}": sentence.default_prompt != "",
        "lower-casing before the tokenizer (do_lower_case)": sentence.do_lower_case
        and _keeps_case(model),
    }
    return [what for what, is_there in found.items() if is_there]


def _keeps_case(model: Description) -> bool:
    tokenizer = model.words.tokenizer
    return tokenizer.encode("A", parse_special=False) != tokenizer.encode("a", parse_special=False)
