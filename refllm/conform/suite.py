"""The golden suite as it ships: every case of every group.

suite = load_suite()
[case.id for case in suite.cases if case.is_quick]
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from refllm.conform.bits import PublishedBits, load_published_bits
from refllm.conform.case import GROUPS, Case, Group, Json
from refllm.conform.wire import decoded
from refllm.errors import InvalidInput

__all__ = ["Suite", "chosen", "golden_root", "is_bits_chosen", "load_suite", "nearest"]

# Every sixth of the sampling cases runs with --quick: their older format has no mark for it.
QUICK_SAMPLING = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """The golden suite.

    Attributes:
        version: Its version.
        numerics_revision: The revision of the rule of numerics by which its answers were computed.
        cases: In the order in which they run.
        bits: The question after the cases: whose bits the target computes.
    """

    version: str
    numerics_revision: int
    cases: tuple[Case, ...]
    bits: PublishedBits


def golden_root() -> Path:
    """Return the folder of the golden files: inside an installed package, beside a checkout's."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "golden"
    return inside if inside.is_dir() else package.parent / "golden"


def load_suite(root: Path | None = None) -> Suite:
    """Return every case.

    Args:
        root: The folder of the golden files, by default that of `golden_root`.

    Raises:
        OSError: Where a golden file is missing.
        ValueError: Where a golden file is damaged.
    """
    root = golden_root() if root is None else root
    manifest = json.loads((root / "manifest.json").read_text(encoding="utf-8"))
    cases = tuple(case for group in GROUPS for case in _cases(root, group))
    return Suite(
        version=str(manifest["suite"]),
        numerics_revision=int(manifest["numerics_revision"]),
        cases=cases,
        bits=load_published_bits(root),
    )


def chosen(
    suite: Suite, *, groups: Collection[str] = (), only: Sequence[str] = (), quick: bool = False
) -> tuple[Case, ...]:
    """Return the cases of these groups whose ids match one of these patterns, by default all.

    None of them where only the question of `Suite.bits` is chosen.

    Args:
        suite: All cases.
        groups: Names of groups; none stands for all.
        only: Patterns of ids, with * and ?; none stands for all.
        quick: Whether only quick cases are wanted.

    Raises:
        InvalidInput: For an unknown group and for a pattern without a match, with the nearest that
            there are; and where no case is left.
    """
    unknown = sorted(set(groups) - set(GROUPS))
    if unknown:
        raise InvalidInput(
            f"there is no group {unknown[0]!r:.80}{nearest(unknown[0], GROUPS)} The groups are "
            + ", ".join(GROUPS)
        )
    known = (*suite.cases, suite.bits.case)
    for pattern in only:
        if not any(fnmatchcase(case.id, pattern) for case in known):
            raise InvalidInput(
                f"no case's id matches {pattern!r:.80}"
                + nearest(
                    pattern, [*(f"{group}/*" for group in GROUPS), *(case.id for case in known)]
                )
                + " A pattern has * and ?, as text/* has"
            )
    cases = tuple(
        case
        for case in suite.cases
        if _is_chosen(case, groups, only) and (not quick or case.is_quick)
    )
    if not cases and not is_bits_chosen(suite, groups=groups, only=only):
        raise InvalidInput("these options together leave no case; leave one of them out")
    return cases


def is_bits_chosen(suite: Suite, *, groups: Collection[str] = (), only: Sequence[str] = ()) -> bool:
    """Return whether the question of `Suite.bits` is in these groups and matches a pattern.

    Args:
        suite: The suite.
        groups: Names of groups; none stands for all.
        only: Patterns of ids, with * and ?; none stands for all.
    """
    return _is_chosen(suite.bits.case, groups, only)


def _is_chosen(case: Case, groups: Collection[str], only: Sequence[str]) -> bool:
    return (not groups or case.group in groups) and (
        not only or any(fnmatchcase(case.id, pattern) for pattern in only)
    )


def nearest(name: str, known: Collection[str]) -> str:
    """Return the end of a sentence about an unknown name, with the nearest of `known`.

    Example:
        >>> nearest("txt", ["text", "ops"]), nearest("x", ["text", "ops"])
        ('; did you mean text?', '.')
    """
    found = get_close_matches(name, known, n=1)
    return f"; did you mean {found[0]}?" if found else "."


def _cases(root: Path, group: Group) -> Iterator[Case]:
    path = root / group / "cases.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    if group == "sampling":
        yield from map(_sampling_case, range(len(document["cases"])), document["cases"])
        return
    arrays: dict[str, Mapping[str, Any]] = {}
    for entry in document["cases"]:
        yield Case(
            id=entry["id"],
            group=group,
            proves=entry["proves"],
            clause=entry["clause"],
            input=decoded(_with_arrays(entry["input"], path.parent, arrays)),
            expected=decoded(_with_arrays(entry["expected"], path.parent, arrays)),
            models=tuple(entry.get("models", ())),
            is_quick=entry.get("quick", False),
            tolerance=decoded(entry.get("tolerance", {})),
        )


def _sampling_case(number: int, entry: Json) -> Case:
    """Return a case of the sampling vectors, whose format is older than the suite."""
    asked = ("profile", "logits", "params", "previous_tokens", "u")
    answered = ("stages", "token", "error")
    return Case(
        id=f"sampling/{entry['id']}",
        group="sampling",
        proves=entry["proves"],
        clause=entry["clause"],
        input=decoded({key: entry[key] for key in asked if key in entry}),
        expected=decoded({key: entry[key] for key in answered if key in entry}),
        is_quick=number % QUICK_SAMPLING == 0,
    )


def _with_arrays(value: Any, folder: Path, files: dict[str, Mapping[str, Any]]) -> Any:
    """Return the value with every {"file", "tensor"} in it replaced by the array that it names."""
    if isinstance(value, list):
        return [_with_arrays(each, folder, files) for each in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"file", "tensor"}:
        name = value["file"]
        if name not in files:
            files[name] = load_file(folder / name)
        array = np.asarray(files[name][value["tensor"]])
        return {"shape": list(array.shape), "values": array.ravel().tolist()}
    return {key: _with_arrays(each, folder, files) for key, each in value.items()}
