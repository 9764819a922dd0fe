"""How many of a kernel's threads find a CPU, beside what else this machine does.

The threads of a kernel wait for each other at its end, and a kernel of a tiny model is done in
microseconds. Where another process has the CPU of one thread, the others wait until the scheduler
takes that CPU away from it: milliseconds, kernel after kernel. One thread less is faster then, and
as many as there are CPUs are faster on an idle machine. No bit depends on their number.

Linux counts for each thread how long it was ready to run and had no CPU. While a thread has waited
so for a good part of the time, as many threads as waited are given up; after a pause one more is
tried. The pause grows with each trial that fails, until one lasts. Where nothing is counted (other
systems), all threads are used.

Sources: https://docs.kernel.org/scheduler/sched-stats.html (/proc/<pid>/schedstat: the second
number); Chiu and Jain 1989, "Analysis of the Increase and Decrease Algorithms for Congestion
Avoidance in Computer Networks" (why one more, and many less).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

__all__ = ["CpuSharing", "waited_ns"]

MS = 1_000_000  # ns
# A scheduler's slice is about 3 ms: a shorter window would see all of one or nothing.
SHORTEST_WINDOW_NS = 5 * MS
# Reading the counts takes 0.05 ms: too long for each 5 ms of a calm machine.
LONGEST_WINDOW_NS = 80 * MS
# Work ended during a longer window, and a share of it says nothing.
LONGEST_MEASURED_NS = 4 * LONGEST_WINDOW_NS
CROWDED = 0.3  # of the window, that one thread waited
SHORTEST_PAUSE_NS = 100 * MS
LONGEST_PAUSE_NS = 3200 * MS

TASKS = Path("/proc/self/task")


def waited_ns() -> Mapping[int, int]:
    """Return how long each thread of this process has waited for a CPU so far, in ns.

    Returns:
        By thread id; empty where the system does not count.
    """
    waited = {}
    for file in TASKS.glob("*/schedstat"):
        try:
            waited[int(file.parent.name)] = int(file.read_bytes().split()[1])
        except (OSError, IndexError, ValueError):  # the thread has ended, or nothing is counted
            continue
    return waited


class CpuSharing:
    """Decides how many threads a kernel runs on; asked before each kernel, by any thread.

    Args:
        most: The threads of an idle machine.
        waited: The counts, as `waited_ns` returns them.
        clock: The time in ns.
    """

    def __init__(
        self,
        most: int,
        *,
        waited: Callable[[], Mapping[int, int]] = waited_ns,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._most = most
        self._n_threads = most
        self._waited = waited
        self._clock = clock
        self._lock = threading.Lock()
        self._window_ns = SHORTEST_WINDOW_NS
        self._pause_ns = SHORTEST_PAUSE_NS
        self._try_at_ns = 0
        self._is_trial = False
        self._open_window(clock())

    def n_threads(self) -> int:
        """Return the number of threads for the next kernel, 1 to `most`."""
        if self._most > 1 and self._clock() >= self._look_at_ns and self._lock.acquire(False):
            try:
                self._look()
            finally:
                self._lock.release()
        return self._n_threads

    def _look(self) -> None:
        """Compare the counts with those at the window's begin, and open the next window."""
        now = self._clock()
        elapsed = now - self._opened_at_ns
        before = self._counts
        is_longest = self._window_ns == LONGEST_WINDOW_NS
        self._window_ns = min(2 * self._window_ns, LONGEST_WINDOW_NS)
        self._open_window(now)
        if elapsed > LONGEST_MEASURED_NS:
            self._window_ns = SHORTEST_WINDOW_NS
            self._open_window(now)
            return
        shares = [
            (waited - before[thread_id]) / elapsed
            for thread_id, waited in self._counts.items()
            if thread_id in before
        ]
        if self._n_threads > 1 and max(shares, default=0.0) > CROWDED:
            self._give_up(max(1, round(sum(shares))), now)
            return
        if self._is_trial and is_longest:
            self._is_trial = False
            self._pause_ns = SHORTEST_PAUSE_NS
        if self._n_threads < self._most and now >= self._try_at_ns:
            self._n_threads += 1
            self._is_trial = True
            self._window_ns = SHORTEST_WINDOW_NS
            self._open_window(now)

    def _give_up(self, n_threads: int, now: int) -> None:
        self._n_threads = max(1, self._n_threads - n_threads)
        if self._is_trial:
            self._pause_ns = min(2 * self._pause_ns, LONGEST_PAUSE_NS)
        self._is_trial = False
        self._try_at_ns = now + self._pause_ns

    def _open_window(self, now: int) -> None:
        self._opened_at_ns = now
        self._look_at_ns = now + self._window_ns
        self._counts = self._waited()
