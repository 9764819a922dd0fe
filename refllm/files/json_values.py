"""What every JSON file must keep: a limit, checked before parsing, and no key twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Final

from refllm.errors import LlmRuntimeError

__all__ = [
    "MAX_TOKENIZER_VALUES",
    "MAX_VALUES",
    "check_json_values",
    "object_without_duplicates",
]

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


def object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dict, as `object_pairs_hook` of `json.loads`.

    Raises:
        ValueError: For a key that appears twice; readers disagree which of the two counts.
    """
    result = dict(pairs)
    if len(result) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!r:.80} appears twice")
    return result
