"""A limit for JSON texts, checked before a parser makes objects of them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from refllm.api import LlmRuntimeError

__all__ = ["MAX_TOKENIZER_VALUES", "MAX_VALUES", "check_json_values"]

# Llasa's tokenizer_config.json has 460,000: 65,536 and more added tokens of seven values each.
MAX_VALUES: Final = 2**19
# Gemma's tokenizer.json has 1.9 million: 262,144 tokens, and 514,906 merges as lists.
MAX_TOKENIZER_VALUES: Final = 2**21


def check_json_values(text: bytes | str, *, path: Path, most: int = MAX_VALUES) -> None:
    """Raise `LlmRuntimeError` for a JSON text that may have more than `most` values.

    Each value but the first follows a comma or an opening bracket, so these are counted; in
    strings they count, too.
    """
    if isinstance(text, str):
        n_values = 1 + sum(map(text.count, ",[{"))
    else:
        n_values = 1 + sum(map(text.count, (b",", b"[", b"{")))
    if n_values > most:
        raise LlmRuntimeError(
            f"{path}: has up to {n_values} JSON values, and no such file needs more than {most}"
        )
