"""How numba compiles a part of kernels: to LLVM's intermediate code, not to machine code.

numba compiles every function to machine code, also one that is inlined into its callers. No caller
uses the machine code of an `inner` function, so its library ends here before code generation. The
callers get the same intermediate code as before; compiling attention takes a quarter less time.
"""

from __future__ import annotations

from typing import Any

from llvmlite.binding import parse_assembly
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder

__all__ = ["InlinedCompiler"]

# Where machine code finds a function's Python objects; numba sets it when it has compiled one.
ENVIRONMENT_PREFIX = "_ZN08NumbaEnv"


class _InlinedLibrary(JITCodeLibrary):
    """A library that other libraries link, and that has no machine code."""

    def _finalize_final_module(self) -> None:
        """Give LLVM's JIT the variables of environments alone; numba's method gives it all."""
        self._finalize_dynamic_globals()  # type: ignore[no-untyped-call]
        variables = self._final_module.global_variables
        lines = [str(each) for each in variables if each.name.startswith(ENVIRONMENT_PREFIX)]
        self._environments = parse_assembly("\n".join(lines))  # the JIT holds no reference
        self._codegen._add_module(self._environments)  # type: ignore[no-untyped-call]
        self._codegen._engine.finalize_object()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """Return 0, numba's address of a function without machine code."""
        self._ensure_finalized()  # type: ignore[no-untyped-call]
        return 0


class InlinedCompiler(CompilerBase):
    """numba's compiler, with a library that ends before code generation."""

    def define_pipelines(self) -> list[Any]:
        """Return numba's passes; the library is made here, where they would make their own."""
        name = self.state.func_id.func_qualname
        library: Any = _InlinedLibrary(self.state.targetctx.codegen(), name)  # type: ignore[no-untyped-call]
        library.enable_object_caching()
        self.state.library = library
        builder: Any = DefaultPassBuilder
        return [builder.define_nopython_pipeline(self.state)]
