"""Shared by all commands: options, reading and writing text, and exit codes.

A command is a plain function that raises the interface's errors. The decorator `with_exit_codes`
turns each into an exit code and lines on standard error: the error, and how to fix it.
"""

from __future__ import annotations

import functools
import io
import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn, ParamSpec

import typer

from refllm.errors import InvalidInput, LlmError, LlmRuntimeError
from refllm.interface import InferencingParams, as_f32

__all__ = [
    "DEFAULT",
    "FAILED",
    "INTERRUPTED",
    "MEBIBYTE",
    "PROMPT_CACHE_MIB",
    "STANDARD_STREAM",
    "JsonOption",
    "KeepPackedOption",
    "MaxArrivalSecondsOption",
    "MaxConnectionsOption",
    "MaxModelsOption",
    "MaxTokensOption",
    "ModelArgument",
    "NumericsOption",
    "ProfileOption",
    "PromptCacheOption",
    "RepeatLastNOption",
    "RepeatPenaltyOption",
    "SeedOption",
    "StandInsOption",
    "TemperatureOption",
    "ThreadsOption",
    "TopKOption",
    "TopOption",
    "TopPOption",
    "argument_text",
    "bytes_of",
    "model_of",
    "model_path",
    "names_a_model",
    "one_line",
    "params_of",
    "read_text",
    "refuse_swapped",
    "run_app",
    "text_of",
    "warn_of_a_file",
    "with_exit_codes",
    "write_bytes",
    "write_json",
    "write_text",
]

P = ParamSpec("P")

STANDARD_STREAM = "-"
MAX_INPUT_BYTES = 128 * 1024 * 1024  # Spin's limit of a result; a pipe can be endless

UTF_16 = "to convert UTF-16 to UTF-8: iconv -f UTF-16 -t UTF-8 FILE"
OTHER = "to convert another encoding, such as Latin-1, to UTF-8: iconv -f ISO-8859-1 -t UTF-8 FILE"
MAGIC: Mapping[bytes, str] = {
    b"\xff\xfe": UTF_16,
    b"\xfe\xff": UTF_16,
    b"\x1f\x8b": "to unpack gzip: gunzip -c FILE",
    b"PK\x03\x04": "to read a ZIP archive, such as a spreadsheet: save it as a .csv file in UTF-8",
    b"PAR1": "to read Parquet: write its texts as JSON lines",
}
"""Advice about data that is not UTF-8, by its first bytes."""

DEFAULT = InferencingParams()
"""The interface's defaults of the options of sampling."""

MAX_PATH = 1000  # characters of a text that may be a path

MEBIBYTE = 2**20
PROMPT_CACHE_MIB = 256  # as refllm.models.prompt_cache.DEFAULT_BYTES, which takes long to import

FAILED = 1
INTERRUPTED = 128 + 2  # as a shell reports SIGINT
BROKEN_PIPE = 128 + 13  # as a shell reports SIGPIPE


def _complete_model(incomplete: str) -> list[str]:
    """Return the names of models that begin with a text, for the shell's completion."""
    from refllm.models.find import default_roots, list_models

    try:
        names = [model.name for model in list_models(default_roots())]
    except LlmError:
        return []
    return [name for name in names if name.startswith(incomplete)]


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model's name, or the path of a .gguf file or a folder.",
        autocompletion=_complete_model,
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(help="CPUs to use; no result depends on it.", show_default="all that are free"),
]
MaxTokensOption = Annotated[int, typer.Option(help="Stop after this many tokens.")]
RepeatPenaltyOption = Annotated[
    float, typer.Option(help="Divides the logits of recent tokens; 1 is off.")
]
RepeatLastNOption = Annotated[
    int, typer.Option(help="The number of recent tokens to penalize; 0 is off.")
]
TemperatureOption = Annotated[
    float, typer.Option(help="Divides all logits; 0 always takes the likeliest token.")
]
TopKOption = Annotated[int, typer.Option(help="Sample from this many likeliest tokens; 0 is off.")]
TopPOption = Annotated[
    float, typer.Option(help="Sample from the likeliest tokens of this probability; 1 is off.")
]
SeedOption = Annotated[int, typer.Option(help="Seed of the random numbers.")]
ProfileOption = Annotated[
    str, typer.Option(help="Order of the sampling steps: contract, spin-local or llama.cpp.")
]
NumericsOption = Annotated[
    str, typer.Option(help="exact, or int8: multiply quantized weights as llama.cpp does.")
]
StandInsOption = Annotated[
    bool, typer.Option("--stand-ins", help="Let a bundled model answer for one that is not here.")
]
MaxConnectionsOption = Annotated[
    int, typer.Option(min=1, help="Maximum open connections; further ones get 503.")
]
MaxArrivalSecondsOption = Annotated[
    float, typer.Option(min=0.001, help="Maximum time for a request, head and body, to arrive.")
]
PromptCacheOption = Annotated[
    int, typer.Option(min=0, help="MiB of keys and values of recent prompts to keep; 0 keeps none.")
]
MaxModelsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Maximum MiB of weights; beyond it the least recently used model is unloaded.",
        show_default="no limit",
    ),
]
KeepPackedOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Maximum MiB of packed weights on disk, for the next start; 0 keeps none.",
        show_default="REFLLM_KEEP_PACKED_MIB, or 0",
    ),
]
TopOption = Annotated[
    int, typer.Option("--top", min=1, help="The number of candidates to list at each step.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]


# --- In ------------------------------------------------------------------------------------------


def model_of(argument: str) -> str | Path:
    """Return the argument MODEL for the engine: a `Path`, or a name.

    A path has a separator, ends in .gguf, or exists.
    """
    separators = [separator for separator in (os.sep, os.altsep) if separator]
    looks_like_path = argument.endswith(".gguf") or any(s in argument for s in separators)
    return Path(argument) if looks_like_path or _exists(argument) else argument


def bytes_of(mebibytes: int | None) -> int | None:
    """Return the bytes of an option in MiB; None stays None."""
    return None if mebibytes is None else mebibytes * MEBIBYTE


def model_path(argument: str) -> Path:
    """Return the path of the argument MODEL. Raises as `find_model`."""
    from refllm.models.find import default_roots, find_model

    model = model_of(argument)
    return model if isinstance(model, Path) else find_model(model, default_roots())


def names_a_model(argument: str) -> bool:
    """Return whether the argument is the name, and not the path, of a model that is here."""
    from refllm.models.find import default_roots, has_model

    try:
        return isinstance(model_of(argument), str) and has_model(argument, default_roots())
    except LlmError:  # not a valid name, or a folder that cannot be read
        return False


def refuse_swapped(model: str, text: str, command: str) -> None:
    """Raise `InvalidInput` if `model` is not here and `text` is the name of a model that is.

    The engine handles a model that has a stand-in.
    """
    from refllm.models.bundled import STAND_INS

    could_be_swapped = isinstance(model_of(model), str) and model not in STAND_INS
    if could_be_swapped and names_a_model(text) and not names_a_model(model):
        raise InvalidInput(
            f"there is no model {model[:60]!r}, but {text!r} is one",
            f"to name the model first: refllm {command} {text} {shlex.quote(model[:60])}",
        )


def warn_of_a_file(text: str, instead: str) -> None:
    """Write a warning on standard error if an argument that is used as text is a file's path."""
    if len(text) <= MAX_PATH and _exists(text) and Path(text).is_file():
        typer.echo(f"refllm: {text!r} is used as text; to use the file: {instead}", err=True)


def params_of(
    *,
    max_tokens: int,
    repeat_penalty: float,
    repeat_last_n: int,
    temperature: float,
    top_k: int,
    top_p: float,
) -> InferencingParams:
    """Return the parameters of a command's options, unchecked.

    Writes a line on standard error for each value outside its range, with its effect. The contract
    defines the effect, so the result is still the contract's.
    """
    if temperature < 0 and math.isfinite(as_f32(temperature)):
        typer.echo(
            f"refllm: --temperature {temperature:g} is below 0 and used as 0: always the "
            "likeliest token",
            err=True,
        )
    if not 0 <= top_p <= 1 and math.isfinite(as_f32(top_p)):
        typer.echo(
            f"refllm: --top-p {top_p:g} is no probability (0 to 1) and used as 1: off", err=True
        )
    return InferencingParams(
        max_tokens=max_tokens,
        repeat_penalty=repeat_penalty,
        repeat_penalty_last_n_token_count=repeat_last_n,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )


def text_of(argument: str, what: str) -> str:
    """Return an argument as text, or with "-" all of standard input.

    Raises:
        InvalidInput: With `what`, if its bytes are not UTF-8.
    """
    if argument == STANDARD_STREAM:
        return read_text(STANDARD_STREAM)
    return argument_text(argument, what)


def argument_text(argument: str, what: str) -> str:
    """Return an argument's bytes decoded as UTF-8, whatever the locale.

    Raises:
        InvalidInput: With `what`, if they are not UTF-8.
    """
    try:
        data = os.fsencode(argument)
    except UnicodeEncodeError as error:  # from a caller of `app`; a command line cannot hold it
        raise InvalidInput(f"{what} has a lone surrogate at index {error.start}") from error
    return _decoded(data, what)


def read_text(file: str) -> str:
    """Return the content of a file, or with "-" of standard input; line ends are kept.

    Raises:
        InvalidInput: If it cannot be read, is not UTF-8, or is longer than 128 MiB.
    """
    name = "standard input" if file == STANDARD_STREAM else file
    try:
        if file != STANDARD_STREAM:
            with Path(file).open("rb") as stream:
                data = stream.read(MAX_INPUT_BYTES + 1)
        elif sys.stdin is None:
            raise InvalidInput("standard input is closed")
        else:
            data = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
    except OSError as error:
        raise InvalidInput(f"{name} cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_INPUT_BYTES:
        raise InvalidInput(f"{name} is longer than the limit of {MAX_INPUT_BYTES} bytes")
    advice = next((advice for start, advice in MAGIC.items() if data.startswith(start)), OTHER)
    return _decoded(data, name, advice)


def _exists(argument: str) -> bool:
    try:
        return bool(argument) and Path(argument).exists()  # Path("") is the current folder
    except (OSError, ValueError):  # too long for a file name, or with a NUL
        return False


def _decoded(data: bytes, what: str, *advice: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{what} is not UTF-8: byte 0x{data[error.start]:02X} at byte index {error.start}",
            *advice,
        ) from error


# --- Out -----------------------------------------------------------------------------------------


def write_text(text: str) -> None:
    """Write to standard output and flush. Raises `LlmRuntimeError` if that is impossible."""
    with _named_output():
        sys.stdout.write(text)
        sys.stdout.flush()


def write_bytes(data: bytes) -> None:
    """Write to standard output and flush. Raises `LlmRuntimeError` if that is impossible."""
    write_text("")
    with _named_output():
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


@contextmanager
def _named_output() -> Iterator[None]:
    """Name standard output in an `OSError`, except in that of a closed pipe."""
    if sys.stdout is None:
        raise LlmRuntimeError("standard output is closed")
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard_unwritable_output()
        raise LlmRuntimeError(f"standard output: {error.strerror or error}") from error


def write_json(value: object) -> None:
    """Write one JSON value as one line; a float32 appears as the float64 that equals it."""
    write_text(json.dumps(value, ensure_ascii=False) + "\n")


def one_line(text: str) -> str:
    """Return the text with line breaks and other unprintable characters escaped as in Python."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


# --- Begin and end -------------------------------------------------------------------------------


def run_app(app: typer.Typer, name: str) -> None:
    """Run the command of `sys.argv`, and end the process with its exit code.

    Standard output becomes UTF-8 and its lines end in a line feed, in every locale and system.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A path that is not UTF-8 is escaped, which JSON reads back.
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace", newline="\n")
    try:
        app(prog_name=name)
    except OSError as error:  # of typer's own output: help, the version, completion
        _discard_unwritable_output()
        message = f"standard output: {error.strerror or error}"
        typer.echo(f"refllm: {LlmRuntimeError.kind}: {message}", err=True)
        sys.exit(FAILED)


def with_exit_codes(command: Callable[P, None], *, failed: int = FAILED) -> Callable[P, None]:
    """Return `command` with the exit codes of `refllm.cli`, and without tracebacks.

    `failed` is the exit code of an error, where 1 is an answer of the command. An error that is not
    the interface's is a bug; `python -X dev -m refllm` shows its traceback.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (typer.Exit, typer.BadParameter):
            raise
        except LlmError as error:
            _fail(error.kind, error, *map(str, error.args), exit_code=failed)
        except KeyboardInterrupt as error:
            raise typer.Exit(INTERRUPTED) from error
        except BrokenPipeError as error:
            _discard_unwritable_output()
            raise typer.Exit(BROKEN_PIPE) from error
        except MemoryError as error:
            _fail(LlmRuntimeError.kind, error, "there is not enough memory", exit_code=failed)
        except OSError as error:
            _discard_unwritable_output()
            _fail(LlmRuntimeError.kind, error, str(error), exit_code=failed)
        except Exception as error:
            if sys.flags.dev_mode:
                raise
            message = f"unexpected {type(error).__name__}: {error}; this is a bug in refllm"
            _fail(LlmRuntimeError.kind, error, message, exit_code=failed)

    return run


def _fail(kind: str, error: BaseException, *lines: str, exit_code: int) -> NoReturn:
    typer.echo(f"refllm: {kind}: " + "\n".join(map(one_line, lines)), err=True)
    raise typer.Exit(exit_code) from error


def _discard_unwritable_output() -> None:
    """Discard output that cannot be written: Python would retry at exit, and print an error."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
