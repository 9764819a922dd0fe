"""How this package compiles a function; every kernel goes through one of the functions here.

    jit             a kernel for the calling thread
    parallel_jit    a kernel whose `prange` loops are shared among threads
    both            a kernel in both forms, chosen at each call by the amount of work
    inner           a part of kernels, inlined into each of them
    elementary      an `inner` function that Python can call too
    template        a function that is compiled several times, with other parts filled in

All kernels are compiled with the same options, which are part of the numerics: no `fastmath`, so
LLVM neither fuses, reorders nor approximates what is written with + and * (a fused multiply-add
stands in the code as `fma`); `error_model="numpy"`, so x/0 is an IEEE value instead of an
exception. `nogil=True` lets other Python threads run meanwhile. A kernel is compiled at its first
call, and later processes load it from disk (`refllm.jit.disk_cache`).

Kernels copy arrays element by element: numba takes seconds to compile `a[t] = b[t]`, because it
also compiles the error for shapes that do not agree.

Templates
---------

A product with Q4_0 weights and one with Q6_K weights are one text with different parts. That text
is written once, as a template. Its parts are *holes*, global names that are declared so:

    decode_block: Any = HOLE
    block_bytes: Any = HOLE

    @template
    def gemv(panel, x):
        for block in range(...):
            total = decode_block(panel, block * block_bytes, ...)

    gemv.fill("Q4_0_gemv", decode_block=q4_0, block_bytes=18)      a function, ready for `inner`

`fill` returns a copy of the function in which the holes have these values, and raises `TypeError`
where a hole is left open or a name is no hole of the function. A template that is called by another
is a hole of it as well, under its own name. A closure over the parts would be
plainer Python, but numba treats a function in a closure as an address in memory, and machine code
with addresses cannot be stored on disk. A global name is a constant for numba, and the copy's own
name, which must differ for other values, identifies it in the cache.
"""

from __future__ import annotations

import dis
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, update_wrapper
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

import numba
from numba.core.dispatcher import Dispatcher
from numba.core.registry import CPUDispatcher

from refllm.jit.cpu_sharing import CpuSharing
from refllm.jit.disk_cache import KernelCache
from refllm.jit.inlined import InlinedCompiler
from refllm.jit.threads import default_threads

__all__ = [
    "HOLE",
    "SERIAL_WORK",
    "Both",
    "Missing",
    "Template",
    "both",
    "elementary",
    "inner",
    "is_single",
    "jit",
    "n_threads",
    "parallel_jit",
    "prange",
    "recorded",
    "stand_in",
    "template",
    "use_threads",
]

F = TypeVar("F", bound=Callable[..., object])

# Work that one thread finishes before a second one has started: so many elements of an elementwise
# kernel. Other kernels divide their multiplications by how many of them take as long as an element.
SERIAL_WORK = 1 << 15

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
# What an `inner` function does without: entries for Python and for C.
NO_ENTRIES: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}

# numba's own thread pool, which it uses where there is neither OpenMP nor TBB, aborts the process
# when two threads call it at once.
UNSAFE_LAYER = "workqueue"
ONE_AT_A_TIME = threading.Lock()


def jit(function: F) -> F:
    """Return `function` compiled for the calling thread alone."""
    return cast(F, _kept_on_disk(numba.njit(**OPTIONS)(function)))


def parallel_jit(function: F) -> F:
    """Return `function` compiled so that its `prange` loops are shared among threads.

    A `prange` body may write only to places that belong to its own index; then no bit depends on
    the number of threads. Several Python threads may call the result at once.
    """
    compiled = numba.njit(**OPTIONS, parallel=True)(function)
    return cast(F, _ParallelKernel(_kept_on_disk(compiled)))


@dataclass(frozen=True, slots=True)
class Both(Generic[F]):
    """One function compiled twice: `serial` as by `jit`, `parallel` as by `parallel_jit`."""

    serial: F
    parallel: F

    def choose(self, work: int) -> F:
        """Return the faster one for this much work, counted as `SERIAL_WORK` is."""
        if _calling.recorder is not None and _calling.recorder.every_form:
            return cast(F, self._call_each)
        return self.serial if work < SERIAL_WORK or is_single() else self.parallel

    def _call_each(self, *arguments: object) -> None:
        self.serial(*arguments)
        self.parallel(*arguments)


def both(function: F) -> Both[F]:
    """Return `function` compiled for one thread and for several.

    Its loops are written with `prange`, which means `range` in what is compiled for one thread.
    """
    name = function.__name__
    return Both(
        jit(_copy(function, f"{name}_serial", {})),
        parallel_jit(_copy(function, f"{name}_parallel", {})),
    )


def elementary(function: F) -> F:
    """Return `function` compiled into the kernels that call it; Python can call it as well.

    Such a function is compiled again by each process: numba cannot load a forcibly inlined function
    from a cache.
    """
    return cast(F, numba.njit(**OPTIONS, forceinline=True)(function))


def inner(function: F) -> F:
    """Return `function` compiled into the kernels that call it; Python cannot call it.

    It may take and return values that only numba has, such as vectors and pointers. Without the
    code that converts Python's arguments it takes half as long to compile.
    """
    compiled = numba.njit(
        **OPTIONS, **NO_ENTRIES, forceinline=True, pipeline_class=InlinedCompiler
    )(function)
    if isinstance(compiled, Dispatcher):
        compiled.__class__ = _Inner
    return cast(F, compiled)


class _Inner(CPUDispatcher):
    """A compiled function that has no entry for Python; calling it would crash the process."""

    def __call__(self, *_arguments: object) -> object:
        raise TypeError(f"{self.py_func.__qualname__} can be called by kernels only")


# --- Templates -----------------------------------------------------------------------------------


class _Hole:
    """The type of `HOLE`."""

    def __repr__(self) -> str:
        return "HOLE"


# The value of a global name that `Template.fill` gives a meaning.
HOLE: Final[Any] = _Hole()


class Template(Generic[F]):
    """A function with holes: global names that have the value `HOLE` or are templates."""

    def __init__(self, function: F) -> None:
        self._function = function
        self.name = function.__name__
        self.__doc__ = function.__doc__

    def __call__(self, *_arguments: object) -> Any:
        """Raise `TypeError`: kernels call what `fill` returns."""
        raise TypeError(f"{self.name} is a template; fill its holes and compile it")

    @property
    def holes(self) -> frozenset[str]:
        """The names that `fill` needs values for."""
        names = self._function.__globals__
        loaded = {
            each.argval
            for each in dis.get_instructions(self._function)
            if each.opname == "LOAD_GLOBAL"
        }
        return frozenset(
            name
            for name in loaded
            if names.get(name) is HOLE or isinstance(names.get(name), Template)
        )

    def fill(self, name: str, **values: object) -> F:
        """Return a copy of the function called `name` in which each hole has its value.

        Raises:
            TypeError: A hole has no value, or a value has no hole.
        """
        if values.keys() != self.holes:
            raise TypeError(
                f"the template {self.name} has the holes {sorted(self.holes)}, and values were "
                f"given for {sorted(values)}"
            )
        return _copy(self._function, name, values)


def template(function: F) -> Template[F]:
    """Return `function` as a template; the module's documentation has an example."""
    return Template(function)


def _copy(function: F, name: str, values: dict[str, object]) -> F:
    """Return the function under another name, in which these global names have these values."""
    # Its module's own names where there are no values: they may be defined later.
    names = {**function.__globals__, **values} if values else function.__globals__
    copy = FunctionType(function.__code__, names, name)
    copy.__qualname__ = name
    copy.__module__ = function.__module__
    copy.__annotations__ = function.__annotations__
    copy.__doc__ = function.__doc__
    return cast(F, copy)


# --- Threads -------------------------------------------------------------------------------------


class _Calling(threading.local):
    """The calling thread's number of threads, whether `CpuSharing` chooses it, and `recorded`."""

    is_sharing = False
    n_threads = 0
    recorder: _Recorder | None = None


_calling = _Calling()


def use_threads(n_threads: int | None) -> None:
    """Run the calling thread's kernels on `n_threads`. No result depends on the number.

    Args:
        n_threads: At most numba's number of threads is used. None: as many as find a free CPU, at
            most one for each CPU that this process may use (`refllm.jit.cpu_sharing`).
    """
    chosen = _sharing().n_threads() if n_threads is None else n_threads
    _calling.is_sharing = n_threads is None
    _calling.n_threads = chosen
    numba.set_num_threads(min(chosen, _max_threads()))


def n_threads() -> int:
    """Return the number of threads that the calling thread's kernels run on."""
    return min(numba.get_num_threads(), _default_threads())


def is_single() -> bool:
    """Return whether `use_threads(1)` chose one thread for the calling thread's kernels."""
    return _calling.n_threads == 1 and not _calling.is_sharing


@cache
def _sharing() -> CpuSharing:
    return CpuSharing(min(_default_threads(), _max_threads()))


@cache
def _default_threads() -> int:
    return default_threads(os.environ)


def _max_threads() -> int:
    threads: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    return threads


def _kept_on_disk(dispatcher: Any) -> Any:
    """Give the dispatcher a `KernelCache`, if its function is in this package.

    The cache's stamp covers this package's sources only. With NUMBA_DISABLE_JIT the argument is a
    plain function.
    """
    if isinstance(dispatcher, Dispatcher) and dispatcher.py_func.__module__.startswith("refllm."):
        dispatcher.__class__ = _Kernel
        dispatcher._cache = KernelCache(dispatcher.py_func)  # type: ignore[attr-defined]
    return dispatcher


# --- Which kernels a call needs ------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Missing:
    """A kernel that is not on disk for arguments of these types.

    Attributes:
        name: The module and the function, for messages.
        path: The file that will have its machine code.
    """

    name: str
    path: Path
    _kernel: Any
    _signature: tuple[Any, ...]

    @property
    def is_kept(self) -> bool:
        """Whether the file is there now."""
        return self.path.exists()

    def compile(self) -> None:
        """Compile the kernel for these types and write the file."""
        self._kernel.compile(self._signature)


@dataclass(slots=True)
class _Recorder:
    result_of: Callable[..., Any]
    every_form: bool
    missing: dict[Path, Missing]


@contextmanager
def recorded(
    result_of: Callable[..., Any], *, every_form: bool = False
) -> Iterator[dict[Path, Missing]]:
    """Run no kernel that this process has not loaded; yield those of them that are not on disk.

    For the calling thread, until the `with` block ends. A dictionary is filled meanwhile, by path.
    Without a folder for compiled kernels it stays empty.

    Args:
        result_of: Called with a kernel's name and arguments; returns an array of the type and shape
            of its result, or None.
        every_form: Whether a kernel of `both` is recorded in both forms, instead of the faster.
    """
    _calling.recorder = _Recorder(result_of, every_form, {})
    try:
        yield _calling.recorder.missing
    finally:
        _calling.recorder = None


def stand_in(kernel: Callable[..., object], function: Callable[..., object] | None) -> None:
    """Call a Python function that computes the same, as long as the kernel would be compiled.

    A kernel that this process has loaded is called as ever.

    Args:
        kernel: What `jit` returned.
        function: The function; None to compile the kernel.
    """
    if isinstance(kernel, _Kernel):  # not with NUMBA_DISABLE_JIT
        kernel.stand_in = function


class _Kernel(CPUDispatcher):
    """A function that is compiled or loaded at its first call with arguments of some types."""

    stand_in: Callable[..., object] | None = None
    _cache: Any

    def _compile_for_args(self, *arguments: Any, **keywords: Any) -> Any:
        """Return what the call calls: numba's dispatcher finds no version for its arguments."""
        recorder = _calling.recorder
        if recorder is None:
            numbas: Any = super()
            return self.stand_in or numbas._compile_for_args(*arguments, **keywords)
        signature = tuple(map(self.typeof_pyval, arguments))
        path = self._cache.path_of(signature, self.targetctx)
        if path is not None and not path.exists():
            name = f"{self.py_func.__module__}.{self.py_func.__qualname__}"
            recorder.missing.setdefault(path, Missing(name, path, self, signature))
        return lambda *given: recorder.result_of(self.py_func.__name__, *given)


class _ParallelKernel:
    """A compiled function that several Python threads may call at once, on any thread pool.

    Its other attributes (`stats`, `inspect_asm`, …) are the dispatcher's.
    """

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        update_wrapper(self, kernel)

    def __call__(self, *arguments: object) -> object:
        if _calling.recorder is not None:  # without starting threads
            return self._kernel(*arguments)
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
    numba.get_num_threads()  # starts the thread pool; `threading_layer` raises before that
    layer: str = numba.threading_layer()  # type: ignore[attr-defined]
    return layer != UNSAFE_LAYER


if TYPE_CHECKING:
    prange = range
else:
    prange = numba.prange
