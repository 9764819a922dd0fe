"""The machine that a figure was measured on, as Linux describes it."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Machine", "this_machine"]

TELLING_FLAGS = ("avx2", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "asimd", "asimddp", "i8mm")
CPUS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a reader needs to judge a figure; `load_average` tells whether others were at work."""

    cpu: str
    cpu_flags: tuple[str, ...]
    n_cpus: int
    caches: tuple[str, ...]
    memory_gib: float
    kernel: str
    is_virtual: bool
    load_average: float


def this_machine() -> Machine:
    """This machine; `n_cpus` are those that this process may use."""
    flags = set((_cpu_info("flags") or _cpu_info("Features")).split())
    return Machine(
        cpu=_cpu_info("model name") or platform.processor() or platform.machine(),
        cpu_flags=tuple(flag for flag in TELLING_FLAGS if flag in flags),
        n_cpus=len(os.sched_getaffinity(0)),
        caches=_caches(),
        memory_gib=round(_memory_bytes() / 2**30, 1),
        kernel=f"{platform.system()} {_version(platform.release())} {platform.machine()}",
        is_virtual="hypervisor" in flags,
        load_average=round(os.getloadavg()[0], 2),
    )


def _cpu_info(field: str) -> str:
    """The first value of a field of /proc/cpuinfo, empty where there is none."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""


def _version(release: str) -> str:
    """The numbers of a kernel's release; the rest names the builder."""
    return ".".join(release.partition("-")[0].split(".")[:2])


def _caches() -> tuple[str, ...]:
    """The caches of the first CPU, such as "L2 1024K"; one that several CPUs share says so."""
    caches = []
    for folder in sorted(CPUS.glob("cpu0/cache/index*")):
        level, kind, size, sharers = (
            (folder / name).read_text().strip()
            for name in ("level", "type", "size", "shared_cpu_list")
        )
        letter = {"Data": "d", "Instruction": "i"}.get(kind, "")
        shared = f" shared by CPUs {sharers}" if not sharers.isdigit() else ""
        caches.append(f"L{level}{letter} {size}{shared}")
    return tuple(caches)


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
