"""How many of a kernel's threads get a CPU of their own, beside the machine's other processes.

The threads of a kernel wait for each other at its end, and a kernel of a tiny model is done in
microseconds. If another process runs on the CPU of one thread, the others wait until the scheduler
moves it: milliseconds, kernel after kernel. Then one thread less is faster; on an idle machine one
thread for each CPU is. No bit depends on their number.

Linux counts for each thread how long it was ready to run and had no CPU. If a thread waited for a
large part of the time, the number of threads is reduced by as many as waited; after a pause one
more is tried. The pause doubles with each trial that fails. Other systems have no such counts; all
threads are used there.

Sources: https://docs.kernel.org/scheduler/sched-stats.html (/proc/<pid>/schedstat: the second
number); Chiu and Jain 1989, "Analysis of the Increase and Decrease Algorithms for Congestion
Avoidance in Computer Networks" (additive increase, multiplicative decrease).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

__all__ = ["CpuSharing", "waited_ns"]

MS = 1_000_000  # ns
# A scheduler's slice is about 3 ms; a shorter window would contain all of one or nothing.
SHORTEST_WINDOW_NS = 5 * MS
# Reading the counts takes 0.05 ms: too long for each 5 ms of a calm machine.
LONGEST_WINDOW_NS = 80 * MS
# The kernels were idle for a part of a longer window, so shares of it mean nothing.
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
        except (OSError, IndexError, ValueError):  # the thread has ended, or there are no counts
            continue
    return waited


class CpuSharing:
    """Decides how many threads a kernel runs on; any thread may call it, before each kernel.

    Args:
        max_threads: The number of threads on an idle machine.
        waited: The counts, as `waited_ns` returns them.
        clock: The time in ns.
    """

    def __init__(
        self,
        max_threads: int,
        *,
        waited: Callable[[], Mapping[int, int]] = waited_ns,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._max_threads = max_threads
        self._n_threads = max_threads
        self._waited = waited
        self._clock = clock
        self._lock = threading.Lock()
        self._window_ns = SHORTEST_WINDOW_NS
        self._pause_ns = SHORTEST_PAUSE_NS
        self._try_at_ns = 0
        self._is_trial = False
        self._open_window(clock())

    def n_threads(self) -> int:
        """Return the number of threads for the next kernel, 1 to `max_threads`."""
        if (
            self._max_threads > 1
            and self._clock() >= self._look_at_ns
            and self._lock.acquire(False)
        ):
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
        if self._n_threads < self._max_threads and now >= self._try_at_ns:
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
