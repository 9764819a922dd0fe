"""The one way this package compiles a function: `jit`, and `prange` for its parallel loops.

Every kernel is compiled with the same options, and the options are part of the numerics:
no `fastmath`, so that LLVM neither fuses, reorders nor approximates; `error_model="numpy"`, so
that x/0 is an IEEE value and not an exception. `cache=True` keeps the machine code on disk,
`nogil=True` lets other Python threads run meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING, TypeVar, cast

import numba

__all__ = ["inner", "jit", "parallel_jit", "prange", "specialized", "use_threads"]

F = TypeVar("F", bound=Callable[..., object])


def jit(function: F) -> F:
    """`function`, compiled for the calling thread alone."""
    return cast(F, numba.njit(cache=True, nogil=True, error_model="numpy")(function))


def inner(function: F) -> F:
    """`function`, compiled into the kernels that call it, and not kept on disk by itself.

    For functions that take functions: numba cannot find those in its cache again.
    """
    return cast(F, numba.njit(nogil=True, error_model="numpy")(function))


def parallel_jit(function: F) -> F:
    """`function`, compiled so that its `prange` loops are shared among threads.

    A `prange` body may write only to places that belong to its own index: then the number of
    threads cannot change a bit.
    """
    compile_ = numba.njit(cache=True, nogil=True, error_model="numpy", parallel=True)
    return cast(F, compile_(function))


def specialized(template: F, name: str, **names: object) -> F:
    """A copy of `template` called `name`, in which the given global names mean these values.

    One kernel's text, compiled once for each value of a name. A closure would do, but numba keys
    its cache on what a closure holds, and a function held there is never found again; what a
    global name means is not part of the key, but the copy's own name is.
    """
    copy = FunctionType(template.__code__, {**template.__globals__, **names}, name)
    copy.__qualname__ = name
    copy.__module__ = template.__module__
    copy.__annotations__ = template.__annotations__
    copy.__doc__ = template.__doc__
    return cast(F, copy)


def use_threads(n_threads: int | None) -> None:
    """Let the calling thread's kernels run on `n_threads`; None: all CPUs this process may use.

    More than there are CPUs is as many as there are: the results are the same for any number.
    """
    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    numba.set_num_threads(min(n_threads or most, most))


if TYPE_CHECKING:
    prange = range
else:
    prange = numba.prange
