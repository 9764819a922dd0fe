"""Backends that are wrong in one place each: refllm, with one function replaced.

A mutant is what somebody else's bug looks like from outside. The suite must fail each of them, and
`refllm.conform.faults` must say what is wrong with it.

    mutants_of_texts.py      what is added to texts and taken from them, counts, refusals
    mutants_of_sampling.py   the sampler
    mutants_of_networks.py   blocks, the llama, the BERT
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest import mock

from refllm.conform.case import Group

__all__ = ["Mutant", "applied"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A wrong backend.

    `changes` are what takes the place of what, by its dotted name: where it is used, not where it
    comes from. `groups` are those that are asked. `symptoms` are the names of the mistakes that may
    be believed, and no others.
    """

    name: str
    groups: tuple[Group, ...]
    changes: Mapping[str, object]
    symptoms: frozenset[str]

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


@contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """While refllm is this mutant. What was loaded before may be what it was."""
    with ExitStack() as stack:
        for target, replacement in mutant.changes.items():
            stack.enter_context(mock.patch(target, replacement))
        yield
