"""`refllm kernels`: compile kernels before they are needed, list them, and carry them along."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refllm.cli.common import JsonOption, model_path, write_json, write_text
from refllm.errors import InvalidInput, LlmRuntimeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from refllm.jit.compile import Missing

__all__ = ["export", "import_", "list_", "warm"]

NUMERICS = ("exact", "int8")


def warm(
    *,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...", help="Names of models, or paths of .gguf files or folders."
        ),
    ],
    numerics: Annotated[
        list[str] | None,
        typer.Option(help="exact or int8; can be given twice.", show_default="exact"),
    ] = None,
) -> None:
    """Compile all kernels that each MODEL needs, on all CPUs, so that no later run compiles any.

    That is for one token, a few and many, on one thread and on several. Kernels that are there
    already are not compiled again. Models of the same formats need the same kernels.
    """
    chosen = numerics or ["exact"]
    for each in chosen:
        if each not in NUMERICS:
            raise InvalidInput(f"numerics must be one of exact, int8; got {each!r:.80}")
    paths = [model_path(model) for model in models]
    folder = _folder()
    if not os.access(folder, os.W_OK):
        raise LlmRuntimeError(f"the folder of compiled kernels, {folder}, is read-only")

    from refllm.jit.workers import Workers
    from refllm.models.compiling import missing_of_models

    start = time.monotonic()
    missing = missing_of_models(paths, chosen)
    if missing:
        arguments = {"paths": [str(path.absolute()) for path in paths], "numerics": chosen}
        function = "refllm.models.compiling:compile_models"
        try:
            workers = Workers(function, arguments, n_kernels=len(missing))
        except OSError as error:
            raise LlmRuntimeError(f"no process can be started: {error.strerror}") from error
        try:
            workers.wait_for(missing, _progress(len(missing), len(workers)))
        except BaseException:
            workers.stop()
            raise
        _compile_rest(missing)
    seconds = time.monotonic() - start
    write_text(f"{len(missing)} kernels compiled in {seconds:.0f} s, in {folder}\n")


def _progress(n_kernels: int, n_processes: int) -> Callable[[int], None]:
    """Return the callback that keeps one line of a terminal up to date, or writes one line."""
    what = f"refllm: compiling kernels in {n_processes} processes"
    if not sys.stderr.isatty():
        typer.echo(f"{what}: {n_kernels} kernels", err=True)
        return lambda _: None
    shown = -1

    def show(n_done: int) -> None:
        nonlocal shown
        if n_done != shown:
            shown = n_done
            end = "\n" if n_done == n_kernels else ""
            typer.echo(f"\r{what}: {n_done} of {n_kernels}{end}", err=True, nl=False)

    return show


def _compile_rest(missing: list[Missing]) -> None:
    """Compile what the processes could not, which raises their error."""
    for kernel in missing:
        if not kernel.is_kept:
            kernel.compile()


def list_(*, json: JsonOption = False) -> None:
    """Print the folder of compiled kernels, and the kernels in it with their bytes."""
    from refllm.jit.archive import kernel_files

    folder = _folder()
    kernels = [(path.name.rpartition("-")[0], path.stat().st_size) for path in kernel_files(folder)]
    if json:
        listed = [{"kernel": name, "bytes": n_bytes} for name, n_bytes in kernels]
        write_json({"folder": str(folder), "kernels": listed})
        return
    lines = [f"{n_bytes:>8}  {name}" for name, n_bytes in kernels]
    write_text("".join(f"{line}\n" for line in [str(folder), *lines]))


def export(
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The archive to write, a .zip.")],
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
) -> None:
    """Write the compiled kernels of this version to FILE, for machines with the same CPU."""
    from refllm.jit.archive import export_kernels, kernel_files

    folder = _folder()
    if not kernel_files(folder):
        raise LlmRuntimeError(
            f"there are no compiled kernels in {folder}; refllm kernels warm MODEL compiles those "
            "of a model"
        )
    if file.exists() and not force:
        raise InvalidInput(f"{file} exists already; --force replaces it")
    contents = export_kernels(folder, file, overwrite=force)
    write_text(f"{contents.n_kernels} kernels, {contents.n_bytes} bytes, in {file}\n")


def import_(
    *, file: Annotated[Path, typer.Argument(metavar="FILE", help="What export has written.")]
) -> None:
    """Add the kernels of FILE to the compiled ones. Kernels are machine code: trust the source.

    Import only archives that you have exported: refllm runs what is in them with your rights, and
    the checksums find damage, not malice. An archive of another version of refllm or its compiler,
    or for another CPU, is refused, and nothing is written; refllm kernels warm compiles them here.
    """
    from refllm.jit.archive import ArchiveError, import_kernels

    folder = _folder()
    if file.exists() and not file.is_file():
        raise InvalidInput(f"{file} is no file; name an archive that refllm kernels export wrote")
    try:
        contents = import_kernels(file, folder)
    except ArchiveError as error:
        raise InvalidInput(f"{file} is not imported: {error}") from error
    except FileNotFoundError as error:
        raise InvalidInput(f"there is no file {file}") from error
    except OSError as error:
        raise LlmRuntimeError(f"{file} is not imported: {error}") from error
    write_text(f"{contents.n_kernels} kernels, {contents.n_bytes} bytes, added to {folder}\n")


def _folder() -> Path:
    """Return the folder of compiled kernels."""
    from refllm.jit.disk_cache import cache_folder, kernel_sources

    folder = cache_folder(os.environ, kernel_sources())
    if folder is None:
        raise LlmRuntimeError(
            "no folder can keep compiled kernels; name a private one in REFLLM_CACHE_DIR"
        )
    return folder
