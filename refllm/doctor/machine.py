"""Checks of the machine: CPU, numerics, the folders of compiled kernels and packed weights."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from refllm.doctor.finding import Finding
from refllm.interface import NUMERICS_REVISION
from refllm.jit.cpu import CPU, NAME
from refllm.jit.disk_cache import SUFFIX, find_cache, kernel_sources, named_in_vain
from refllm.jit.threads import available_cpus
from refllm.models import kept_panels

__all__ = ["check_cpu", "check_kept_panels", "check_kernel_cache", "check_numerics"]


def check_cpu() -> Finding:
    """Return what kernels are compiled for, and how many threads run them."""
    n_cpus = available_cpus()
    what = (
        f"{NAME}, {CPU.registers} vector registers of {CPU.float_lanes} floats; kernels run on "
        f"{n_cpus} thread{'s' if n_cpus > 1 else ''}"
    )
    return Finding("cpu", "ok", what)


def check_numerics() -> Finding:
    """Return by which revision of the rule of numerics this refllm computes."""
    what = f"revision {NUMERICS_REVISION}; every CPU computes the same bits"
    return Finding("numerics", "ok", what)


def check_kernel_cache(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Yield where compiled kernels are kept, and which folders another user can write to."""
    folder, refused = find_cache(environment, kernel_sources())
    choose = "export REFLLM_CACHE_DIR=FOLDER, a folder that {}"
    for error in refused:
        what = f"{error}, so another user could put code there, and no kernel is loaded from it"
        remedy = error.remedy or choose.format("only you can write to")
        yield Finding("kernel-cache", "warning", what, remedy)
    if folder is None:
        what = "no writable cache folder: kernels are recompiled in every process"
        yield Finding("kernel-cache", "warning", what, choose.format("can be written to"))
        return
    if not refused and (named := named_in_vain(environment, folder)):
        yield Finding("kernel-cache", "warning", named, choose.format("can be written to"))
    what = f"kernels are kept in {folder}, {sum(1 for _ in folder.glob(f'*{SUFFIX}'))} so far"
    if not os.access(folder, os.W_OK):
        what += "; it is read-only, so each process recompiles the kernels that are not in it"
    yield Finding("kernel-cache", "ok", what)


def check_kept_panels(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Yield where packed weights are kept, if some are or if the environment asks for it."""
    kernels, _ = find_cache(environment, kernel_sources())
    allowed = kept_panels.bytes_to_keep(environment)
    if kernels is None:
        return
    folder = kernels.parent / kept_panels.FOLDER
    sizes = [path.stat().st_size for path in folder.glob(f"*{kept_panels.SUFFIX}")]
    if not sizes and allowed == 0:
        return
    what = (
        f"packed weights are kept in {folder}: {len(sizes)} file{'s' if len(sizes) != 1 else ''}, "
        f"{sum(sizes) / 2**20:.0f} MiB; {kept_panels.VARIABLE} "
    )
    what += f"allows {allowed / 2**20:.0f} MiB" if allowed else "is not set"
    yield Finding("packed-weights", "ok", what)
