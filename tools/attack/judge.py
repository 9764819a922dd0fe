"""What an input may do: end in a result or in one of the three errors, soon, and within its memory.

The bounds are those of docs/security.md: processor time as the target states it, and twice the
input's size and 200 MB of memory beyond what the process had. The peak is Linux's `VmHWM`, which a
process can reset; elsewhere memory is not judged.
"""

from __future__ import annotations

import shutil
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from random import Random

from refllm.api import InvalidInput, LlmRuntimeError, ModelNotSupported
from tools.attack.target import NotFinite, Target

__all__ = ["OUTCOMES", "Verdict", "random_of", "verdict_of"]

OUTCOMES = ("result", "ModelNotSupported", "LlmRuntimeError", "InvalidInput")
"""How an input may end."""

SPARE_BYTES = 200_000_000
STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
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
    before = _memory("VmRSS")
    if CLEAR.exists():
        CLEAR.write_text(RESET_PEAK)
    started = time.process_time()
    result = b""
    outcome, note = "result", ""
    try:
        result = target.read(given)
    except (ModelNotSupported, LlmRuntimeError, InvalidInput) as error:
        outcome = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in OUTCOMES)
    except NotFinite as error:
        outcome, note = "not finite", str(error)
    except BaseException as error:  # a panic of native code is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome, note = "another exception", traceback.format_exc()[-LONGEST_NOTE:]
    seconds = time.process_time() - started
    n_bytes = max(_memory("VmHWM") - before, 0)
    if outcome in OUTCOMES:
        if seconds > target.max_seconds:
            outcome, note = "too slow", f"{outcome} after {seconds:.1f} s"
        elif n_bytes > 2 * given.n_bytes + SPARE_BYTES:
            outcome, note = "too much memory", f"{n_bytes} bytes for {given.n_bytes}"
        elif outcome == "result" and target.read(given) != result:
            outcome, note = "another result", "the second reading differs from the first"
    return Verdict(number, outcome, seconds, n_bytes, note)


def _memory(key: str) -> int:
    """Bytes that /proc/self/status has under `key`, 0 where there is no such file."""
    if not STATUS.exists():
        return 0
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024
