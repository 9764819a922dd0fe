"""`python -m refllm.spin.shim app.py --request "POST /"`: one request to a handler, without Spin.

Prints the response's status, headers and body. Exit codes are those of the command `refllm`; for a
handler that raises, the error names its line.
"""

from __future__ import annotations

import contextlib
import http
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from refllm.cli.common import (
    SeedOption,
    StandInsOption,
    one_line,
    run_app,
    text_of,
    with_exit_codes,
    write_bytes,
    write_text,
)
from refllm.cli.waiting import announce_compiling, ending_workers
from refllm.errors import InvalidInput, LlmError, LlmRuntimeError
from refllm.spin.shim import Request, Response
from refllm.spin.shim.handlers import handle
from refllm.spin.shim.install import spin_sdk_backed_by
from refllm.spin.shim.wit import Err

__all__ = ["main"]

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def respond(
    *,
    handler: Annotated[
        Path, typer.Argument(metavar="HANDLER", help="The handler's file, such as app.py.")
    ],
    request: Annotated[
        str, typer.Option(metavar='"METHOD /PATH"', help="The request's method and path.")
    ] = "GET /",
    header: Annotated[
        list[str] | None, typer.Option(metavar="NAME:VALUE", help="A header; repeatable.")
    ] = None,
    body: Annotated[
        str, typer.Option(help="The request's body; - reads all of standard input.")
    ] = "",
    model_roots: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="A folder of models, instead of the default ones; repeatable."
        ),
    ] = None,
    seed: SeedOption = 0,
    stand_ins: StandInsOption = False,
) -> None:
    """Send one request to HANDLER, a Spin handler in Python, and print its response.

    The handler's own output goes to standard error.
    """
    from refllm.engine import LocalEngine

    engine = LocalEngine(
        roots=model_roots or None, seed=seed, stand_ins=stand_ins or None, compiles_apart=True
    )
    content = text_of(body, "--body").encode()
    method, _, uri = request.rpartition(" ")
    if not uri.startswith("/") or " " in method:
        raise InvalidInput(
            f'--request must be a method and a path, as in "POST /"; got {request!r:.80}'
        )
    headers = dict(map(_header, header or []))
    with spin_sdk_backed_by(engine), ending_workers():
        response = _response(handler, Request((method or "GET").upper(), uri, headers, content))
    # As curl -i prints it, with plain line feeds.
    known = {status.value: status.phrase for status in http.HTTPStatus}
    status = f"HTTP/1.1 {response.status} {known.get(response.status, '')}".rstrip()
    lines = [status, *(f"{name}: {value}" for name, value in response.headers.items()), ""]
    write_text("".join(f"{one_line(line)}\n" for line in lines))
    write_bytes(response.body or b"")


def _header(argument: str) -> tuple[str, str]:
    name, colon, value = argument.partition(":")
    if not colon or not name.strip():
        raise InvalidInput(
            f'--header must be a name and a value, as in "accept: text/plain"; got {argument!r:.80}'
        )
    return name.strip(), value.strip()


def _response(handler: Path, request: Request) -> Response:
    """Return the handler's response. Raises `LlmError` with the handler's line if it raises."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return handle(handler, request)
    except LlmError:
        raise
    except (Exception, SystemExit) as error:
        place, cause = _place(error, handler), error.__cause__
        if isinstance(error, Err) and isinstance(cause, LlmError):  # it has more than the Err
            raise type(cause)(f"{place}: {cause.args[0]}", *cause.args[1:]) from error
        raise LlmRuntimeError(f"{place}: {type(error).__name__}: {error}") from error


def _place(error: BaseException, handler: Path) -> str:
    """Return the last file and line of the application in the error's traceback."""
    folder = handler.absolute().parent
    places = [
        f"{path.relative_to(folder)}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if (path := Path(frame.filename)).is_relative_to(folder)
        and "site-packages" not in path.parts
    ]
    return places[-1] if places else handler.name


app.command()(with_exit_codes(respond))


def main() -> None:
    """Run the command of `sys.argv`. Raises `SystemExit` with the exit code."""
    announce_compiling()
    run_app(app, "python -m refllm.spin.shim")
