"""What all commands share: text in, text out, and exit codes.

A command is a plain function that raises the interface's errors; `with_exit_codes` around it turns
every way to end into an exit code and a line on standard error, with advice below where there is.
"""

from __future__ import annotations

import functools
import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, NoReturn, ParamSpec

import typer

from refllm.errors import InvalidInput, LlmError, LlmRuntimeError

__all__ = [
    "FAILED",
    "MEBIBYTE",
    "PROMPT_CACHE_MIB",
    "STANDARD_STREAM",
    "JsonOption",
    "MaxArrivalSecondsOption",
    "MaxConnectionsOption",
    "MaxModelsOption",
    "ModelArgument",
    "NumericsOption",
    "ProfileOption",
    "PromptCacheOption",
    "SeedOption",
    "StandInsOption",
    "ThreadsOption",
    "model_of",
    "names_a_model",
    "one_line",
    "read_text",
    "refuse_swapped",
    "speak_utf8",
    "text_of",
    "warn_of_a_file",
    "with_exit_codes",
    "write_bytes",
    "write_json",
    "write_text",
]

P = ParamSpec("P")

STANDARD_STREAM = "-"
INPUT_LIMIT_BYTES = 128 * 1024 * 1024  # what Spin's host allows a result; an endless pipe must end

UTF_16 = "to make UTF-8 of UTF-16: iconv -f UTF-16 -t UTF-8 FILE"
OTHERWISE = "to make UTF-8 of another encoding, such as Latin-1: iconv -f ISO-8859-1 -t UTF-8 FILE"
BEGINNINGS: Mapping[bytes, str] = {
    b"\xff\xfe": UTF_16,
    b"\xfe\xff": UTF_16,
    b"\x1f\x8b": "to unpack gzip: gunzip -c FILE",
    b"PK\x03\x04": "to read a ZIP archive, as spreadsheets are: save it as a .csv file in UTF-8",
    b"PAR1": "to read Parquet: write its texts as JSON lines",
}
"""What to do with data that is not UTF-8, by how it begins."""

LONGEST_PATH = 1000  # characters of a text that may be a path

MEBIBYTE = 2**20
PROMPT_CACHE_MIB = 256  # as refllm.models.prompt_cache.DEFAULT_BYTES, which takes long to import

FAILED = 1
INTERRUPTED = 128 + 2  # as a shell reports SIGINT
NOBODY_READS = 128 + 13  # as a shell reports SIGPIPE


def _names_that_begin_with(incomplete: str) -> list[str]:
    """Return the names of the models that are here, for the shell's completion."""
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
        autocompletion=_names_that_begin_with,
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(help="CPUs to use; no result depends on it.", show_default="all that are free"),
]
SeedOption = Annotated[int, typer.Option(help="Chooses the random numbers.")]
ProfileOption = Annotated[
    str, typer.Option(help="Whose order of sampling: contract, spin-local or llama.cpp.")
]
NumericsOption = Annotated[
    str, typer.Option(help="exact, or int8: multiply quantized weights as llama.cpp does.")
]
StandInsOption = Annotated[
    bool,
    typer.Option("--stand-ins", help="Let an embedded model answer for one that is not here."),
]
MaxConnectionsOption = Annotated[
    int, typer.Option(min=1, help="Open at once; one more is sent away.")
]
MaxArrivalSecondsOption = Annotated[
    float, typer.Option(min=0.001, help="For a request, head and body, to arrive.")
]
PromptCacheOption = Annotated[
    int,
    typer.Option(min=0, help="MiB of keys and values of recent prompts to keep; 0 keeps none."),
]
MaxModelsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="MiB of weights; beyond it the model used least recently is unloaded.",
        show_default="no limit",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]


# --- In ------------------------------------------------------------------------------------------


def model_of(argument: str) -> str | Path:
    """The argument MODEL as the engine takes it: a `Path` given explicitly, or a name.

    A path has a separator, ends in .gguf, or names something that exists.
    """
    separators = [separator for separator in (os.sep, os.altsep) if separator]
    looks_like_path = argument.endswith(".gguf") or any(s in argument for s in separators)
    return Path(argument) if looks_like_path or _exists(argument) else argument


def names_a_model(argument: str) -> bool:
    """Return whether the argument is the name, and no path, of a model that is here."""
    from refllm.models.find import default_roots, has_model

    try:
        return isinstance(model_of(argument), str) and has_model(argument, default_roots())
    except LlmError:  # of what can be no name, or of a folder that cannot be read
        return False


def refuse_swapped(model: str, text: str, command: str) -> None:
    """Raise `InvalidInput` if `model` is not here and `text` is the name of a model that is.

    A model that another may stand in for is left to the engine.
    """
    from refllm.models.bundled import STAND_INS

    could_be_swapped = isinstance(model_of(model), str) and model not in STAND_INS
    if could_be_swapped and names_a_model(text) and not names_a_model(model):
        raise InvalidInput(
            f"there is no model {model[:60]!r}, but {text!r} is one",
            f"to name the model first: refllm {command} {text} {shlex.quote(model[:60])}",
        )


def warn_of_a_file(text: str, instead: str) -> None:
    """Write a line on standard error if an argument that is taken as text is a file's path."""
    if len(text) <= LONGEST_PATH and _exists(text) and Path(text).is_file():
        typer.echo(f"refllm: {text!r} is taken as a text; its content: {instead}", err=True)


def text_of(argument: str, what: str) -> str:
    """An argument of the command line, or with "-" all of standard input, as text.

    `what` it is goes into the error. Errors: `InvalidInput` if its bytes are not UTF-8.
    """
    if argument == STANDARD_STREAM:
        return read_text(STANDARD_STREAM)
    return argument_text(argument, what)


def argument_text(argument: str, what: str) -> str:
    """An argument's bytes, read as UTF-8 whatever the locale read them as.

    Errors: `InvalidInput` if they are something else.
    """
    try:
        data = os.fsencode(argument)
    except UnicodeEncodeError as error:  # no command line can hold it, but a caller of `app` can
        raise InvalidInput(f"{what} has a lone surrogate at index {error.start}") from error
    return _decoded(data, what)


def read_text(file: str) -> str:
    """The whole of a file, or with "-" of standard input; line ends stay what they are.

    Errors: `InvalidInput` if it cannot be read, is not UTF-8, or is longer than 128 MiB.
    """
    name = "standard input" if file == STANDARD_STREAM else file
    try:
        data = _read(file)
    except OSError as error:
        raise InvalidInput(f"{name} cannot be read: {error.strerror or error}") from error
    if len(data) > INPUT_LIMIT_BYTES:
        raise InvalidInput(f"{name} is longer than the limit of {INPUT_LIMIT_BYTES} bytes")
    advice = next((said for start, said in BEGINNINGS.items() if data.startswith(start)), OTHERWISE)
    return _decoded(data, name, advice)


def _exists(argument: str) -> bool:
    try:
        return bool(argument) and Path(argument).exists()  # Path("") is the current folder
    except (OSError, ValueError):  # longer than a file's name can be, or with a NUL
        return False


def _read(file: str) -> bytes:
    if file == STANDARD_STREAM:
        if sys.stdin is None:
            raise InvalidInput("standard input is closed")
        return sys.stdin.buffer.read(INPUT_LIMIT_BYTES + 1)
    with Path(file).open("rb") as stream:
        return stream.read(INPUT_LIMIT_BYTES + 1)


def _decoded(data: bytes, what: str, *advice: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{what} is not UTF-8: byte 0x{data[error.start]:02X} at byte index {error.start}",
            *advice,
        ) from error


# --- Out -----------------------------------------------------------------------------------------


def speak_utf8() -> None:
    """Make standard output UTF-8 and its lines end in a line feed, in every locale and system."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A path that is not UTF-8 has no other form than an escape, which JSON reads back.
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace", newline="\n")


def write_text(text: str) -> None:
    """Write to standard output, at once. Errors: `LlmRuntimeError` if it is closed."""
    if sys.stdout is None:
        raise LlmRuntimeError("standard output is closed")
    sys.stdout.write(text)
    sys.stdout.flush()


def write_bytes(data: bytes) -> None:
    """Write to standard output, at once. Errors: `LlmRuntimeError` if it is closed."""
    write_text("")
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def write_json(value: object) -> None:
    """Write one JSON value as one line; a float32 appears as the float64 that equals it."""
    write_text(json.dumps(value, ensure_ascii=False) + "\n")


def one_line(text: str) -> str:
    """The text with every line break and other unprintable character escaped as Python does."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


# --- The end -------------------------------------------------------------------------------------


def with_exit_codes(command: Callable[P, None]) -> Callable[P, None]:
    """`command`, ending as `refllm.cli` says and never with a traceback.

    An error that is none of the interface's is a bug; `python -X dev -m refllm` shows where.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (typer.Exit, typer.BadParameter):
            raise
        except LlmError as error:
            _fail(error.kind, error, *map(str, error.args))
        except KeyboardInterrupt as error:
            raise typer.Exit(INTERRUPTED) from error
        except BrokenPipeError as error:
            _discard_unwritable_output()
            raise typer.Exit(NOBODY_READS) from error
        except MemoryError as error:
            _fail(LlmRuntimeError.kind, error, "there is not enough memory")
        except OSError as error:
            _discard_unwritable_output()
            _fail(LlmRuntimeError.kind, error, str(error))
        except Exception as error:
            if sys.flags.dev_mode:
                raise
            message = f"unexpected {type(error).__name__}: {error}; this is a bug in refllm"
            _fail(LlmRuntimeError.kind, error, message)

    return run


def _fail(kind: str, error: BaseException, *lines: str) -> NoReturn:
    typer.echo(f"refllm: {kind}: " + "\n".join(map(one_line, lines)), err=True)
    raise typer.Exit(FAILED) from error


def _discard_unwritable_output() -> None:
    """Let what cannot be written vanish; Python would try again at exit, and complain."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
