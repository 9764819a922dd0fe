"""`refllm run APP`: a Spin application on a real port, with refllm behind its Serverless AI."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refllm.cli.common import (
    INTERRUPTED,
    MEBIBYTE,
    PROMPT_CACHE_MIB,
    KeepPackedOption,
    MaxArrivalSecondsOption,
    MaxConnectionsOption,
    MaxModelsOption,
    NumericsOption,
    ProfileOption,
    PromptCacheOption,
    SeedOption,
    StandInsOption,
    ThreadsOption,
    bytes_of,
    names_a_model,
    write_text,
)
from refllm.errors import InvalidInput, LlmRuntimeError, how_to_install

if TYPE_CHECKING:
    pass

__all__ = ["run"]

DEFAULT_PORT = 3000  # Spin's
IDLE_SECONDS = 30  # of a connection between two requests


def run(
    *,
    app: Annotated[
        Path,
        typer.Argument(
            metavar="APP", help="A folder with a spin.toml, or the component itself: app.wasm."
        ),
    ],
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")
    ] = DEFAULT_PORT,
    seed: SeedOption = 0,
    profile: ProfileOption = "contract",
    numerics: NumericsOption = "exact",
    stand_ins: StandInsOption = False,
    threads: ThreadsOption = None,
    prompt_cache_mib: PromptCacheOption = PROMPT_CACHE_MIB,
    max_models_mib: MaxModelsOption = None,
    keep_packed_mib: KeepPackedOption = None,
    max_seconds: Annotated[
        float,
        typer.Option(
            min=0.1, max=86400, help="Of a component for one request, models not counted."
        ),
    ] = 30.0,
    max_memory_mib: Annotated[
        int,
        typer.Option(
            min=1,
            max=4096,
            help="Of a component for one request, in MiB: all its memories and tables together.",
        ),
    ] = 512,
    max_body_bytes: Annotated[int, typer.Option(min=0, help="Of one request.")] = 16 * MEBIBYTE,
    max_connections: MaxConnectionsOption = 128,
    max_arrival_seconds: MaxArrivalSecondsOption = 30.0,
    grace: Annotated[
        int, typer.Option(min=0, help="Seconds that requests have to finish after SIGTERM.")
    ] = 10,
) -> None:
    """Answer HTTP requests with a Spin application, no Spin needed.

    Prints the address and each route; requests, and what components print, go to standard error.
    A component may use the ai_models that spin.toml gives it; one without a spin.toml may use all.
    SIGTERM ends it with exit code 0.
    """
    try:
        from refllm.server.run import bound_socket, serve
        from refllm.wasm.guest import Limits
        from refllm.wasm.http.asgi import SpinApp, connection_with
        from refllm.wasm.workers import host_for
    except ModuleNotFoundError as error:
        raise LlmRuntimeError(
            f"refllm run needs the package {error.name}", how_to_install("wasm")
        ) from error
    from refllm.wasm.http.application import engines_of, open_application

    if names_a_model(str(app)):
        raise InvalidInput(
            f"{app} is a model, and refllm run takes a Spin application",
            f"to continue a text with it: refllm infer {app} PROMPT",
        )
    application = open_application(app, os.environ)
    engines = engines_of(
        application,
        seed=seed,
        profile=profile,
        numerics=numerics,
        threads=threads,
        stand_ins=stand_ins or None,
        prompt_cache_bytes=prompt_cache_mib * MEBIBYTE,
        max_models_bytes=bytes_of(max_models_mib),
        keep_packed_bytes=bytes_of(keep_packed_mib),
        compiles_apart=True,
    )
    _log_to_standard_error()
    spin_app = SpinApp(
        application,
        host_for(Limits(memory_bytes=max_memory_mib * MEBIBYTE, seconds=max_seconds)),
        engines,
        max_body_bytes=max_body_bytes,
        max_connections=max_connections,
        arrival_seconds=max_arrival_seconds,
    )
    bound = bound_socket(host, port)
    url = f"http://{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}"
    routes = [f"{route.component}\t{url}{route.path}" for route in application.routes]
    code = serve(
        spin_app,
        bound,
        connection=connection_with(
            max_connections=max_connections, arrival_seconds=max_arrival_seconds
        ),
        grace_seconds=grace,
        ready=lambda: write_text("\n".join([f"Serving {url}", *routes]) + "\n"),
        idle_seconds=IDLE_SECONDS,
        date_header=False,
        exit_codes={signal.SIGINT: INTERRUPTED},
    )
    raise typer.Exit(code)


def _log_to_standard_error() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    # The line of refllm.jit.first_compilation is about all kernels; one about the first would
    # repeat it.
    handler.addFilter(lambda record: record.name != "refllm.kernels")
    logger = logging.getLogger("refllm")
    logger.addHandler(handler)
    logging.getLogger("refllm.wasm").setLevel(logging.INFO)
