"""What an input may do: end in a result or in one of the three errors, soon, and within its memory.

The bounds are those of docs/security.md: processor time as the target states it, and twice the
input's size and 200 MB of memory beyond what the process had. Processes that refllm keeps for the
target count, too. The peak is Linux's `VmHWM`, which a process can reset; elsewhere memory is not
judged.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from random import Random

from refllm.api import InvalidInput, LlmRuntimeError, ModelNotSupported
from tools.attack.target import Input, NotFinite, Target

__all__ = ["OUTCOMES", "Verdict", "random_of", "verdict_of"]

OUTCOMES = ("result", "ModelNotSupported", "LlmRuntimeError", "InvalidInput")
"""How an input may end."""

PROCESSES = Path("/proc")
RESET_PEAK = "5"
LONGEST_NOTE = 3000  # characters


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one input ended.

    Attributes:
        number: Its number.
        outcome: One of `OUTCOMES`, or what the fault is.
        seconds: Processor time of the first reading.
        n_bytes: Memory beyond what the process had before, at its peak.
        note: Of a fault, what was seen.
    """

    number: int
    outcome: str
    seconds: float
    n_bytes: int
    note: str = ""


def random_of(target: Target, seed: int, number: int) -> Random:
    """The numbers that one input is built from."""
    return Random(f"{target.name} {seed} {number}")


def verdict_of(target: Target, seed: int, number: int, folder: Path) -> Verdict:
    """Build an input, give it to refllm, and judge what happens."""
    if sum(1 for _ in folder.iterdir()) > 0:
        shutil.rmtree(folder)
        folder.mkdir()
    given = target.build(random_of(target, seed, number), folder)
    before = {process: _memory(process, "VmRSS") for process in (os.getpid(), *target.helpers())}
    for process in before:
        with contextlib.suppress(OSError):  # no Linux, or a process that has ended
            (PROCESSES / str(process) / "clear_refs").write_text(RESET_PEAK)
    started = _seconds(target)
    outcome, result, note = _read(target, given)
    seconds = _seconds(target) - started
    n_bytes = sum(
        max(_memory(process, "VmHWM") - before.get(process, 0), 0)
        for process in (os.getpid(), *target.helpers())
    )
    if outcome in OUTCOMES:
        if seconds > target.max_seconds:  # the first reading may compile a kernel
            started = _seconds(target)
            _read(target, given)
            seconds = _seconds(target) - started
        if seconds > target.max_seconds:
            outcome, note = "too slow", f"{outcome} after {seconds:.1f} s"
        elif n_bytes > 2 * given.n_bytes + target.spare_bytes:
            outcome, note = "too much memory", f"{n_bytes} bytes for {given.n_bytes}"
        elif outcome == "result" and (again := _read(target, given)) != (outcome, result, note):
            outcome = "another result"
            note = f"the second reading differs from the first: {again[0]}\n{again[2]}"
    return Verdict(number, outcome, seconds, n_bytes, note)


def _read(target: Target, given: Input) -> tuple[str, bytes, str]:
    """How one reading ended, what came out, and a note."""
    try:
        return "result", target.read(given), ""
    except (ModelNotSupported, LlmRuntimeError, InvalidInput) as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        return next(kind for kind in kinds if kind in OUTCOMES), b"", ""
    except NotFinite as error:
        return "not finite", b"", str(error)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - a panic of native code is no Exception
        return "another exception", b"", traceback.format_exc()[-LONGEST_NOTE:]


def _seconds(target: Target) -> float:
    """Processor time of this process, and of those that it keeps and those that have ended."""
    spent = os.times()
    seconds = time.process_time() + spent.children_user + spent.children_system
    for process in target.helpers():
        with contextlib.suppress(OSError, IndexError):
            # Behind the name, which may have spaces: utime and stime are the 12th and 13th.
            behind = (PROCESSES / str(process) / "stat").read_text().rpartition(")")[2].split()
            seconds += (int(behind[11]) + int(behind[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def _memory(process: int, key: str) -> int:
    """Bytes that a process's status has under `key`, 0 where there is no such file."""
    try:
        lines = (PROCESSES / str(process) / "status").read_text().splitlines()
    except OSError:
        return 0
    found = (int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
    return next(found, 0) * 1024
