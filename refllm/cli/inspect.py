"""`refllm inspect MODEL TEXT`: a page that shows every number of a run."""

from __future__ import annotations

import json
import signal
import threading
import webbrowser
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from refllm.cli.common import (
    DEFAULT,
    INTERRUPTED,
    KeepPackedOption,
    ModelArgument,
    NumericsOption,
    ProfileOption,
    RepeatLastNOption,
    RepeatPenaltyOption,
    SeedOption,
    StandInsOption,
    TemperatureOption,
    ThreadsOption,
    TopKOption,
    TopPOption,
    model_of,
    params_of,
    text_of,
    write_text,
)
from refllm.cli.waiting import ending_workers, engine_of, loading_bar
from refllm.errors import InvalidInput, LlmRuntimeError, how_to_install
from refllm.files.whole import require_whole_file, whole_file

__all__ = ["inspect"]

PORT = 8178
# What a trace has, so that it cannot be asked for beside one, and its option.
TRACE_HAS = {
    "max_tokens": "--max-tokens",
    "repeat_penalty": "--repeat-penalty",
    "repeat_last_n": "--repeat-last-n",
    "temperature": "--temperature",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "seed": "--seed",
}
FILE_ARRAY_BYTES = 2_600_000  # with them the file of 60 tokens of tiny-chat has less than 3 MB
GRACE_SECONDS = 1


def inspect(
    *,
    context: typer.Context,
    model: ModelArgument,
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEXT]...",
            help="The prompt; for an embedding model one text or several. - reads standard input.",
            show_default='"Once upon a time", or three sentences',
        ),
    ] = None,
    beside: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="A second run to compare with, as B of refllm diff: MODEL, MODEL@int8, "
            "MODEL@PROFILE, or a trace's file, whose text and parameters MODEL is then run with.",
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the page as one file instead of serving it."),
    ] = None,
    document: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the document of the page as JSON."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the files of --html and --json if they exist.")
    ] = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port of the page; 0 takes a free one.")
    ] = PORT,
    browser: Annotated[
        bool, typer.Option("--browser", help="Open the page in the browser.")
    ] = False,
    max_tokens: Annotated[int, typer.Option(help="Stop after this many tokens.")] = 56,
    repeat_penalty: RepeatPenaltyOption = DEFAULT.repeat_penalty,
    repeat_last_n: RepeatLastNOption = DEFAULT.repeat_penalty_last_n_token_count,
    temperature: TemperatureOption = DEFAULT.temperature,
    top_k: TopKOption = DEFAULT.top_k,
    top_p: TopPOption = DEFAULT.top_p,
    seed: SeedOption = 0,
    profile: ProfileOption = "contract",
    numerics: NumericsOption = "exact",
    stand_ins: StandInsOption = False,
    threads: ThreadsOption = None,
    keep_packed_mib: KeepPackedOption = None,
) -> None:
    """Show every number of a run in the browser: tokens, draws, attention, layers, weights.

    The page is served on this machine only, until Ctrl-C. With --html it is one file to keep, to
    mail or to put on a site; its arrays are rounded to float16 where float32 would make it large,
    and a draw cannot be repeated with other parameters.
    """
    params = params_of(
        max_tokens=max_tokens,
        repeat_penalty=repeat_penalty,
        repeat_last_n=repeat_last_n,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )
    params.check()
    if html is not None and document is not None and html.resolve() == document.resolve():
        raise InvalidInput(f"--html and --json name the same file, {html}")
    for option, path in {"--html": html, "--json": document}.items():
        if path is not None:
            if path.is_file() and not force:  # writing into a pipe replaces nothing
                raise InvalidInput(f"{path} exists already; --force replaces it")
            try:
                require_whole_file(path)
            except LlmRuntimeError as error:
                raise InvalidInput(f"{option} {path} cannot be written: {error}") from error
    sources = {
        name: context.get_parameter_source(name) for name in ("texts", "profile", *TRACE_HAS)
    }
    given_options = {
        name for name, source in sources.items() if source and source.name == "COMMANDLINE"
    }
    if beside is not None:
        from refllm.inspect.beside import is_trace

        if is_trace(beside) and (asked := sorted(given_options - {"profile"})):
            names = ["TEXT" if name == "texts" else TRACE_HAS[name] for name in asked]
            raise typer.BadParameter(
                f"--beside {beside} is a trace, whose text and parameters are run; leave out "
                f"{', '.join(names)}"
            )
    if html is None and document is None:
        try:
            from refllm.inspect.app import application
            from refllm.server.connections import ConnectionLimits, Refusal, connection_class
            from refllm.server.run import bound_socket, serve
        except ModuleNotFoundError as error:
            raise LlmRuntimeError(
                f"the page needs the package {error.name}, --html FILE does not",
                how_to_install("inspect"),
            ) from error
        bound = bound_socket("127.0.0.1", port)
    with loading_bar() as bar, ending_workers():
        make_engine = partial(
            engine_of,
            numerics=numerics,
            threads=threads,
            stand_ins=stand_ins,
            progress=bar,
            keep_packed_mib=keep_packed_mib,
            compiles_apart=True,
        )
        found = model_of(model)
        given = [text_of(text, "TEXT") for text in texts or ()]
        from refllm.inspect.document import document_of
        from refllm.inspect.files import single_file
        from refllm.inspect.run import run_of

        second = None
        if beside is None:
            engine = make_engine(seed=seed, profile=profile)
            run = run_of(engine, found, given, params, name=model)
        else:
            from refllm.inspect.beside import run_beside

            run, second = run_beside(
                make_engine,
                found,
                given,
                params,
                name=model,
                spec=beside,
                seed=seed,
                profile=profile if "profile" in given_options else None,
                numerics=numerics,
                threads=threads,
            )
    if html is None and document is None:
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/"

        def ready() -> None:
            write_text(f"{url}\n")
            if browser:  # a browser in the terminal returns when it ends
                threading.Thread(target=_open_browser, args=(url,), daemon=True).start()

        limits = ConnectionLimits(connections=64, arrival_seconds=30.0)

        def refuse(status: int, reason: str) -> Refusal:
            return Refusal(status, [(b"content-type", b"text/plain")], f"{reason}\n".encode())

        code = serve(
            application(run, beside=second),
            bound,
            connection=connection_class(limits, refuse),
            grace_seconds=GRACE_SECONDS,
            ready=ready,
            exit_codes={signal.SIGINT: INTERRUPTED},
        )
        raise typer.Exit(code)
    content = document_of(run, n_array_bytes=FILE_ARRAY_BYTES, beside=second)
    if html is not None:
        with whole_file(html) as path:
            path.write_text(single_file(content), "utf-8")
    if document is not None:
        with whole_file(document) as path:
            path.write_text(json.dumps(content, ensure_ascii=False, allow_nan=False), "utf-8")


def _open_browser(url: str) -> None:
    try:
        is_open = webbrowser.open(url)
    except webbrowser.Error:
        is_open = False
    if not is_open:
        typer.echo(f"refllm: no browser can be opened here; open {url} in one", err=True)
