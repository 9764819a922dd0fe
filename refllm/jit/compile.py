"""The one way this package compiles a function: `jit`, and `prange` for its parallel loops.

Every kernel is compiled with the same options, and the options are part of the numerics:
no `fastmath`, so that LLVM neither fuses, reorders nor approximates; `error_model="numpy"`, so
that x/0 is an IEEE value and not an exception. `nogil=True` lets other Python threads run
meanwhile. Nothing is compiled before its first call, and what was compiled once on a machine is
found on disk from then on (`refllm.jit.disk_cache`).

Kernels copy arrays element by element: `a[t] = b[t]` takes numba seconds to compile, because the
shapes might not agree.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import cache, update_wrapper
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numba
from numba.core.dispatcher import Dispatcher

from refllm.jit.cpu_sharing import CpuSharing
from refllm.jit.disk_cache import KernelCache
from refllm.jit.threads import default_threads

__all__ = ["inner", "jit", "n_threads", "parallel_jit", "prange", "specialized", "use_threads"]

F = TypeVar("F", bound=Callable[..., object])

# numba's own thread pool, its last resort where there is neither OpenMP nor TBB, ends the process
# when two threads use it at once.
UNSAFE_LAYER = "workqueue"
ONE_AT_A_TIME = threading.Lock()


def jit(function: F) -> F:
    """`function`, compiled for the calling thread alone."""
    return cast(F, _kept_on_disk(numba.njit(nogil=True, error_model="numpy")(function)))


def inner(function: F) -> F:
    """`function`, compiled into the kernels that call it, and not kept on disk by itself.

    For functions that take functions: numba cannot find those in its cache again.
    """
    return cast(F, numba.njit(nogil=True, error_model="numpy", forceinline=True)(function))


def parallel_jit(function: F) -> F:
    """`function`, compiled so that its `prange` loops are shared among threads.

    A `prange` body may write only to places that belong to its own index: then the number of
    threads cannot change a bit. Several Python threads may call it at once.
    """
    compile_ = numba.njit(nogil=True, error_model="numpy", parallel=True)
    return cast(F, _ParallelKernel(_kept_on_disk(compile_(function))))


def specialized(template: F, name: str, **names: object) -> F:
    """A copy of `template` called `name`, in which the given global names mean these values.

    One kernel's text, compiled once for each value of a name. A closure would do, but a function
    held there counts as an address in memory, and code with addresses cannot be kept on disk; what
    a global name means is fixed by the copy's own name.
    """
    copy = FunctionType(template.__code__, {**template.__globals__, **names}, name)
    copy.__qualname__ = name
    copy.__module__ = template.__module__
    copy.__annotations__ = template.__annotations__
    copy.__doc__ = template.__doc__
    return cast(F, copy)


class _Calling(threading.local):
    """Whether the calling thread leaves its number of threads to `CpuSharing`, and the number."""

    is_sharing = False
    n_threads = 0


_calling = _Calling()


def use_threads(n_threads: int | None) -> None:
    """Let the calling thread's kernels run on `n_threads`.

    Args:
        n_threads: More than numba has threads is as many as it has. None: as many as find a CPU,
            at most one for each CPU that this process may use (`refllm.jit.cpu_sharing`). The
            results are the same for any number.
    """
    chosen = _sharing().n_threads() if n_threads is None else n_threads
    _calling.is_sharing = n_threads is None
    _calling.n_threads = chosen
    numba.set_num_threads(min(chosen, _most_threads()))


def n_threads() -> int:
    """How many threads the calling thread's kernels run on."""
    return min(numba.get_num_threads(), _default_threads())


@cache
def _sharing() -> CpuSharing:
    return CpuSharing(min(_default_threads(), _most_threads()))


@cache
def _default_threads() -> int:
    return default_threads(os.environ)


def _most_threads() -> int:
    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    return most


def _kept_on_disk(dispatcher: Any) -> Any:
    """The dispatcher, with our cache if the function is ours: of others we know no sources.

    NUMBA_DISABLE_JIT makes it a plain function.
    """
    if isinstance(dispatcher, Dispatcher) and dispatcher.py_func.__module__.startswith("refllm."):
        dispatcher._cache = KernelCache(dispatcher.py_func)  # type: ignore[attr-defined]
    return dispatcher


class _ParallelKernel:
    """A compiled function that several Python threads may call at once, whatever shares its work.

    All that a dispatcher can tell (`stats`, `inspect_asm`, …) this tells too.
    """

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        update_wrapper(self, kernel)

    def __call__(self, *arguments: object) -> object:
        if _calling.is_sharing:
            n_threads = _sharing().n_threads()
            if n_threads != _calling.n_threads:
                _calling.n_threads = n_threads
                numba.set_num_threads(n_threads)
        if _calls_may_overlap():
            return self._kernel(*arguments)
        with ONE_AT_A_TIME:
            return self._kernel(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)


@cache
def _calls_may_overlap() -> bool:
    numba.get_num_threads()  # starts the threads: only then is it known which kind they are
    layer: str = numba.threading_layer()  # type: ignore[attr-defined]
    return layer != UNSAFE_LAYER


if TYPE_CHECKING:
    prange = range
else:
    prange = numba.prange
