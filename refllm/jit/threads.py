"""How many CPUs this process may use, and how many threads it runs on them.

Two things limit it: the CPUs that it is allowed to run on (its affinity), and the time that its
control group allows (a container's `--cpus 1.5`). More threads than that wait for each other.

Source: "CPU Interface Files" in https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max), and
https://docs.kernel.org/scheduler/sched-bwc.html (cpu.cfs_quota_us).
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["available_cpus", "cpu_quota", "default_threads"]

UNLIMITED = "max"


def available_cpus() -> int:
    """Return how many CPUs this process may use, at least 1; with a quota of 1.5 CPUs, 2."""
    quota = cpu_quota(Path("/"))
    n_cpus = _allowed_cpus()
    return n_cpus if quota is None else max(1, min(n_cpus, math.ceil(quota)))


def default_threads(environment: Mapping[str, str]) -> int:
    """Return the largest number of threads for kernels, if the caller gives none.

    Args:
        environment: OMP_NUM_THREADS in it is a limit, as in programs that use OpenMP; of several
            numbers ("4,2", one for each level of nesting) the first counts.
    """
    n_cpus = available_cpus()
    asked = environment.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(n_cpus, int(asked)) if asked.isdecimal() and int(asked) > 0 else n_cpus


def _allowed_cpus() -> int:
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(root: Path) -> float | None:
    """Return how many CPUs' time this process's control group gets, None if unlimited.

    A group is limited by its own quota and by those of the groups around it. A quota that cannot be
    read is no limit.

    Args:
        root: The folder that has proc and sys in it.
    """
    return min(_quotas(root), default=None)


def _quotas(root: Path) -> Iterator[float]:
    mounted = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0":  # version 2 has one tree for all controllers
            trees = [mounted]
        elif "cpu" in controllers.split(","):
            trees = [mounted / controllers, mounted / "cpu"]
        else:
            continue
        for tree in trees:
            # In a container the path can be the host's, of which only the tree's root is visible.
            folder = tree / group.lstrip("/")
            for place in (folder, *folder.parents):
                if place.is_relative_to(tree):
                    yield from _quota_of_v2(place)
                    yield from _quota_of_v1(place)


def _quota_of_v2(group: Path) -> Iterator[float]:
    """Yield cpu.max as a number: "150000 100000" is 150 ms of every 100 ms, on several CPUs."""
    for line in _lines(group / "cpu.max"):
        quota, _, period = line.partition(" ")
        if quota != UNLIMITED:
            yield from _ratio(quota, period)


def _quota_of_v1(group: Path) -> Iterator[float]:
    quotas, periods = _lines(group / "cpu.cfs_quota_us"), _lines(group / "cpu.cfs_period_us")
    for quota, period in zip(quotas, periods, strict=False):
        yield from _ratio(quota, period)


def _ratio(quota: str, period: str) -> Iterator[float]:
    """Yield quota / period, if that is a positive number (in version 1, -1 means no limit)."""
    try:
        ratio = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return
    if ratio > 0:
        yield ratio


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
