"""Pooling, dense layers and prompts in an export: as files of a folder, or as GGUF's one key.

A GGUF file has the key `pooling_type` alone, and Spin's engine always normalizes the mean. A step
that a target cannot describe is refused, never left out silently.
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
from refllm.export.model import NOT_IN_SPIN, Description, refuse_any
from refllm.export.tokenizer_files import json_bytes
from refllm.pooling import MEAN_NORMALIZED, Dense, Normalize

__all__ = ["gguf_pooling_type", "refuse_head_that_spin_cannot", "sentence_files"]

PLACE = "sentence_transformers.models."  # where every version finds its modules


def gguf_pooling_type(model: Description, sentence: SentenceConfig) -> int:
    """Return the number for `pooling_type`.

    Programs that read GGUF files normalize by default and let their caller choose, so the file
    stands for a vector that is normalized last.

    Raises:
        ModelNotSupported: naming a step that a GGUF file has no key for.
    """
    modes = sentence.head.pooling.modes
    numbers = {mode: number for number, mode in GGUF_POOLING_TYPES.items()}
    has_no_number = len(modes) > 1 or modes[0] not in numbers
    problems = _problems(model, sentence, is_other_pooling=has_no_number)
    refuse_any(model, problems, "which a GGUF file has no key for; only --format hf keeps it")
    return numbers[modes[0]]


def refuse_head_that_spin_cannot(model: Description, sentence: SentenceConfig) -> None:
    """Raise `ModelNotSupported` unless the vector is the normalized mean, as Spin computes it."""
    is_other = sentence.head.pooling.modes != MEAN_NORMALIZED.pooling.modes
    refuse_any(model, _problems(model, sentence, is_other_pooling=is_other), NOT_IN_SPIN)


def sentence_files(model: Description, sentence: SentenceConfig) -> dict[str, bytes]:
    """Return file name to content.

    A folder's own files are kept, each module's config.json and tensors included: each of their
    keys and tensors was read, or is irrelevant. For a GGUF file they are made.
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
    # Older versions refuse newer switches, so those are written only if they are on.
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


def _problems(
    model: Description, sentence: SentenceConfig, *, is_other_pooling: bool
) -> dict[str, bool]:
    """Return the steps that are neither pooling nor a last normalization, and if they are there."""
    head, encode = sentence.head, model.words.tokenizer.encode
    keeps_case = encode("A", parse_special=False) != encode("a", parse_special=False)
    is_normalized = any(isinstance(step, Normalize) for step in head.steps)
    return {
        f"pooling by {' and '.join(head.pooling.modes)}": is_other_pooling,
        "a Dense layer": any(isinstance(step, Dense) for step in head.steps),
        "vectors that are not normalized": not is_normalized,
        f"vectors cut to {head.truncate_dim} numbers (truncate_dim)": head.truncate_dim is not None,
        f"a default prompt, {sentence.default_prompt!r:.80}": sentence.default_prompt != "",
        "lower-casing before the tokenizer (do_lower_case)": sentence.do_lower_case and keeps_case,
    }
