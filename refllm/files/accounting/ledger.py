"""The ledger of a model: a verdict on each of its tensors and keys."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from typing import Literal

from refllm.errors import LlmError, ModelNotSupported

__all__ = ["Entry", "Ledger", "Verdict"]

logger = logging.getLogger("refllm")

Verdict = Literal["used", "irrelevant", "unknown", "refused"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor or key of a model.

    Attributes:
        where: "tensors", "metadata" (of a GGUF file), or the name of a file in the model's folder.
        name: The tensor's name, or the key.
        verdict: What becomes of it. "unknown" is a key of a JSON file that no table lists.
        reason: What uses it, why it is irrelevant, or why it is refused.
    """

    where: str
    name: str
    verdict: Verdict
    reason: str


class Ledger:
    """The entries of one model, in the order in which its files are read.

    Args:
        strict: Refuse a key of a JSON file that no table lists, instead of logging a warning once.
        collecting: Record what is refused without raising, to show the whole ledger.
    """

    def __init__(self, *, strict: bool = False, collecting: bool = False) -> None:
        self.entries: list[Entry] = []
        self._strict = strict
        self._collecting = collecting

    def use(self, where: str, name: str, by: str) -> None:
        """Record that `by` reads the tensor or key."""
        self.entries.append(Entry(where, name, "used", by))

    def dismiss(self, where: str, name: str, because: str) -> None:
        """Record that the tensor or key changes no result."""
        self.entries.append(Entry(where, name, "irrelevant", because))

    def refuse(self, where: str, name: str, error: LlmError) -> None:
        """Record and raise `error`, which names the tensor or key."""
        self.entries.append(Entry(where, name, "refused", error.args[0]))
        if not self._collecting:
            raise error

    def mark_refused(self, where: str, name: str, reason: str) -> None:
        """Record one of several tensors or keys that a single error refuses."""
        self.entries.append(Entry(where, name, "refused", reason))

    def unknown(self, where: str, name: str, problem: str) -> None:
        """Record a key that no table lists: a warning once, an error where `strict`."""
        if self._strict:
            self.refuse(where, name, ModelNotSupported(problem))
            return
        self.entries.append(Entry(where, name, "unknown", problem))
        if not self._collecting:
            _warn_once(f"{problem}; it is ignored")


@functools.cache
def _warn_once(problem: str) -> None:
    logger.warning("refllm: %s", problem)
