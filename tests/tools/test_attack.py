"""`tools.attack`: the same number is the same input, and every fault is seen for what it is."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

from tests.support.attack_stubs import BEHAVIORS, STUB
from tools.attack.judge import Verdict, random_of
from tools.attack.target import Target
from tools.attack.targets import TARGETS
from tools.attack.watch import verdicts

SEED = 16


def first_number_that(behavior: str) -> int:
    """The first number whose input of the stub behaves so."""
    return next(
        number
        for number in itertools.count()
        if random_of(STUB, SEED, number).choice(BEHAVIORS) == behavior
    )


@pytest.fixture(scope="module")
def judged() -> dict[str, Verdict]:
    """The verdict on each behavior, all of them read by one process as long as it lives."""
    # An input behind the one that ends its process: the next process goes on there.
    names = [*BEHAVIORS[:-1], "returns, in the next process", BEHAVIORS[-1]]
    numbers = [first_number_that(name.partition(",")[0]) for name in names]
    found = verdicts("stub", SEED, numbers, targets={"stub": STUB}, silence=4.0)
    return dict(zip(names, found, strict=True))


def built(target: Target, number: int, folder: Path) -> tuple[str, int, dict[str, bytes]]:
    """What a target builds: the input without the folder's name, its size, and its files."""
    given = target.build(random_of(target, SEED, number), folder)
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return repr(given.value).replace(str(folder), ""), given.n_bytes, files


@pytest.mark.parametrize("name", TARGETS)
def test_the_same_number_is_the_same_input(name: str, tmp_path: Path) -> None:
    for number in range(3):
        folders = [tmp_path / f"{number}-{i}" for i in (0, 1)]
        for folder in folders:
            folder.mkdir()
        one, other = (built(TARGETS[name], number, folder) for folder in folders)
        assert one == other


@pytest.mark.parametrize("name", TARGETS)
def test_another_number_is_another_input(name: str, tmp_path: Path) -> None:
    inputs = set()
    for number in range(8):
        folder = tmp_path / str(number)
        folder.mkdir()
        inputs.add(repr(built(TARGETS[name], number, folder)))
    assert len(inputs) > 4


@pytest.mark.parametrize(
    ("behavior", "outcome"),
    [
        ("returns", "result"),
        ("writes a file", "result"),
        ("refuses", "ModelNotSupported"),
        ("names what is damaged", "LlmRuntimeError"),
        ("names what is invalid", "InvalidInput"),
    ],
)
def test_a_result_and_the_three_errors_are_no_faults(
    behavior: str, outcome: str, judged: dict[str, Verdict]
) -> None:
    assert judged[behavior].outcome == outcome
    assert judged[behavior].note == ""


@pytest.mark.parametrize(
    ("behavior", "outcome", "note"),
    [
        ("raises", "another exception", "ZeroDivisionError: a fault"),
        ("is not finite", "not finite", "one number"),
        ("prints", "printed", "a panic"),
        ("changes", "another result", "differs"),
        ("breaks the second time", "another result", "LlmRuntimeError"),
        ("takes time", "too slow", "result after 0."),
        ("ends the process", "the process ended", "ended with 3"),
        ("never ends", "no end", "no end"),
    ],
)
def test_each_kind_of_fault_gets_its_verdict(
    behavior: str, outcome: str, note: str, judged: dict[str, Verdict]
) -> None:
    assert judged[behavior].outcome == outcome
    assert note in judged[behavior].note


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports a process's peak")
def test_memory_beyond_the_bound_is_a_fault(judged: dict[str, Verdict]) -> None:
    assert judged["takes memory"].outcome == "too much memory"
    assert judged["takes memory"].n_bytes > 40_000_000


def test_the_inputs_behind_a_fault_are_judged_too(judged: dict[str, Verdict]) -> None:
    assert judged["returns, in the next process"].outcome == "result"
