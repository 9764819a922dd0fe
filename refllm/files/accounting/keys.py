"""The values of one file by key: each is checked when it is read, and accounted for.

Errors name the key that the file uses, because the same number is `llama.attention.head_count` in
one file and `num_attention_heads` in another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from refllm.errors import LlmRuntimeError, ModelNotSupported
from refllm.files.accounting.ledger import Ledger

__all__ = ["Keys", "Known", "MustBe"]

MAX_KEYS = 2**12  # of one object; each is compared with all patterns (a config.json has some 60)


@dataclass(frozen=True, slots=True)
class MustBe:
    """A key that may only have these values, because no other is computed.

    Attributes:
        values: The values that are computed. A JSON null always is one.
        otherwise: The meaning of any other value, and what the user can do.
    """

    values: tuple[object, ...]
    otherwise: str


Known = Mapping[str, str | MustBe]
"""Patterns of keys (as `fnmatch` reads them): the reason why a key is irrelevant, or its value."""


class Keys:
    """The values of one file, or of one object inside it.

    Args:
        path: The file, for error messages.
        values: Key to value.
        ledger: Where each key is recorded.
        where: The ledger's name of the file: "metadata", "config.json".
        by: The reader of the keys: "llama", "tokenizer", "pooling".
        prefix: The prefix of each key in errors and in the ledger: "rope_scaling.".
    """

    def __init__(
        self,
        path: Path,
        values: Mapping[str, Any],
        *,
        ledger: Ledger | None = None,
        where: str = "metadata",
        by: str = "network",
        prefix: str = "",
    ) -> None:
        self.path = path
        self.values = values
        self._ledger = Ledger() if ledger is None else ledger
        self._where = where
        self._by = by
        self._prefix = prefix
        self._read: set[str] = set()
        self._ruled: set[str] = set()

    def __contains__(self, key: str) -> bool:
        """Whether the file has the key, with a value other than null."""
        return self.values.get(key) is not None

    def get(self, key: str, default: object = None) -> Any:
        """Return the value as it is, or `default` where it is absent or null."""
        self._read.add(key)
        value = self.values.get(key)
        return default if value is None else value

    def integer(
        self, key: str, *, maximum: int, default: int | None = None, minimum: int = 1
    ) -> int:
        """Return the whole number under `key`, from `minimum` to `maximum`.

        In GGUF metadata an array of equal numbers, one for each layer, counts as that number.

        Raises:
            LlmRuntimeError: for a missing or impossible number.
            ModelNotSupported: for an array of different numbers.
        """
        value = self._one_for_all_layers(key, self._required(key, default))
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise self.error(
                key, f"must be a whole number from {minimum} to {maximum}, is {value!r:.80}"
            )
        return value

    def number(self, key: str, *, default: float | None = None, zero: bool = False) -> float:
        """Return the finite number under `key`, greater than 0, or also 0 if `zero`."""
        value = self._one_for_all_layers(key, self._required(key, default))
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(key, f"must be a number, is {value!r:.80}")
        try:
            number = float(value)
        except OverflowError:  # a whole number beyond float64
            number = math.inf
        if not math.isfinite(number) or not (number > 0 or (zero and number == 0)):
            raise self.error(key, f"must be finite and greater than 0, is {value!r:.80}")
        return number

    def flag(self, key: str, *, default: bool) -> bool:
        """Return true or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"must be true or false, is {value!r:.80}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """Return the string under `key`."""
        value = self._required(key, default)
        if not isinstance(value, str):
            raise self.error(key, f"must be a string, is {value!r:.80}")
        return value

    def table(self, key: str) -> Keys:
        """Return the object under `key`, empty where it is absent or null.

        The caller accounts for its keys, too.
        """
        value = self.get(key, {})
        if not isinstance(value, Mapping):
            raise self.error(key, f"must be an object, is {value!r:.80}")
        return Keys(
            self.path,
            value,
            ledger=self._ledger,
            where=self._where,
            by=self._by,
            prefix=f"{self._prefix}{key}.",
        )

    def account(
        self,
        *known: Known,
        unknown: Literal["refuse", "warn"],
        among: str = "*",
        apart_from: Sequence[str] = (),
    ) -> None:
        """Record the verdict on every key whose name matches `among` and not `apart_from`.

        A key that was read is used. For each other one the tables decide: the entry of its own
        name, else the first pattern that matches it.

        Args:
            known: Tables of keys that are irrelevant or must have one value.
            unknown: The verdict on a key that no table lists.
            among: A pattern; other keys are left to another reader of the same file.
            apart_from: Patterns of keys that are left to another reader.

        Raises:
            ModelNotSupported: naming the key and its value.
            LlmRuntimeError: for a file of more keys than any needs.
        """
        if len(self.values) > MAX_KEYS:
            raise LlmRuntimeError(
                f"{self.path}: has {len(self.values)} keys, and no such file needs more than "
                f"{MAX_KEYS}"
            )
        by_name = {key: rule for table in reversed(known) for key, rule in table.items()}
        by_pattern = [pair for table in known for pair in table.items() if "*" in pair[0]]
        for key, value in self.values.items():
            if not fnmatchcase(key, among) or any(fnmatchcase(key, each) for each in apart_from):
                continue
            if key in self._ruled:
                continue
            name = self._prefix + key
            if key in self._read:
                self._ledger.use(self._where, name, self._by)
                continue
            ruling = by_name.get(key) or next(
                (rule for pattern, rule in by_pattern if fnmatchcase(key, pattern)), None
            )
            match ruling:
                case str():
                    self._ledger.dismiss(self._where, name, ruling)
                case MustBe() if value is None or value in ruling.values:
                    self._ledger.use(self._where, name, f"{self._by}: only this value is computed")
                case MustBe():
                    self._refuse(name, value, ruling.otherwise)
                case None if value is None:
                    self._ledger.dismiss(self._where, name, "null counts as absent")
                case None if unknown == "refuse":
                    self._refuse(name, value, "no table of refllm lists the key")
                case None:
                    self._ledger.unknown(
                        self._where,
                        name,
                        f"{self.path}: {name} = {value!r:.80} is a key that no table of refllm "
                        "lists",
                    )

    def dismiss(self, key: str, because: str) -> None:
        """Record that the value under `key`, which the caller read, changes no result."""
        self._ruled.add(key)
        self._ledger.dismiss(self._where, self._prefix + key, because)

    def refuse(self, key: str, why: str) -> None:
        """Refuse the value under `key`, which the caller read."""
        self._ruled.add(key)
        self._refuse(self._prefix + key, self.values.get(key), why)

    def error(self, key: str, what: str) -> LlmRuntimeError:
        """Return the error that names the file and the key."""
        return LlmRuntimeError(f"{self.path}: {self._prefix}{key} {what}")

    def _refuse(self, name: str, value: object, why: str) -> None:
        problem = f"{self.path}: {name} = {value!r:.80} is not supported: {why}"
        self._ledger.refuse(self._where, name, ModelNotSupported(problem))

    def _required(self, key: str, default: object) -> object:
        value = self.get(key, default)
        if value is None and key not in self.values:
            raise self.error(key, "is missing")
        return value

    def _one_for_all_layers(self, key: str, value: object) -> object:
        if self._where != "metadata" or not isinstance(value, list) or not value:
            return value
        if any(item != value[0] for item in value):
            raise ModelNotSupported(
                f"{self.path}: {self._prefix}{key} = {value!r:.80} is not supported: layers that "
                "differ from each other"
            )
        return value[0]
