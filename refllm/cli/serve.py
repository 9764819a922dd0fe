"""`refllm serve`: the engine behind HTTP, for Spin applications and for OpenAI's clients."""

from __future__ import annotations

import ipaddress
import json
import os
import secrets
from pathlib import Path
from typing import Annotated

import typer

from refllm.cli.common import (
    MEBIBYTE,
    PROMPT_CACHE_MIB,
    MaxArrivalSecondsOption,
    MaxConnectionsOption,
    MaxModelsOption,
    NumericsOption,
    ProfileOption,
    PromptCacheOption,
    SeedOption,
    StandInsOption,
    ThreadsOption,
    write_text,
)
from refllm.errors import InvalidInput, LlmRuntimeError, how_to_install

__all__ = ["serve"]

TOKEN_VARIABLE = "REFLLM_TOKEN"  # noqa: S105 - the name of it
DEFAULT_PORT = 8177


def serve(
    *,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")
    ] = DEFAULT_PORT,
    token: Annotated[
        str | None,
        typer.Option(
            help="What clients must know; REFLLM_TOKEN otherwise.",
            show_default="none on this machine, a new one beyond",
        ),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A model that may be asked for; repeatable."),
    ] = None,
    app: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A Spin application: its models, for one component."),
    ] = None,
    component: Annotated[
        str | None, typer.Option(help="The component of --app.", show_default="its only one")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A name that clients may use for this machine; repeatable."
        ),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN", help="A web page's origin that may ask; repeatable, '*' is all."
        ),
    ] = None,
    seed: SeedOption = 0,
    profile: ProfileOption = "contract",
    numerics: NumericsOption = "exact",
    stand_ins: StandInsOption = False,
    threads: ThreadsOption = None,
    prompt_cache_mib: PromptCacheOption = PROMPT_CACHE_MIB,
    max_models_mib: MaxModelsOption = None,
    max_connections: MaxConnectionsOption = 512,
    max_arrival_seconds: MaxArrivalSecondsOption = 30.0,
    max_waiting: Annotated[
        int, typer.Option(min=1, help="Requests that wait; one more is sent away.")
    ] = 64,
    max_at_once: Annotated[
        int, typer.Option(min=1, help="Requests that are answered together.")
    ] = 16,
    max_body_bytes: Annotated[int, typer.Option(min=1, help="Of one request.")] = 4 * 2**20,
    max_text_bytes: Annotated[
        int, typer.Option(min=1, help="Of one prompt, chat, or text to embed, in UTF-8.")
    ] = 2**20,
    max_prompt_tokens: Annotated[int, typer.Option(min=1, help="Of one prompt.")] = 32_768,
    max_tokens: Annotated[int, typer.Option(min=0, help="Of one answer.")] = 4096,
    max_texts: Annotated[int, typer.Option(min=1, help="Embedded in one request.")] = 2048,
    max_seconds: Annotated[
        float, typer.Option(min=0.001, help="From a request's arrival to its answer's end.")
    ] = 300.0,
    grace: Annotated[
        int,
        typer.Option(
            min=0, help="Seconds that answers have to finish after SIGTERM; then they are given up."
        ),
    ] = 30,
) -> None:
    """Answer HTTP requests: Spin's remote_http, and OpenAI's chats, completions and embeddings.

    Prints what to put into Spin's runtime configuration, then nothing. SIGTERM lets what runs
    finish within --grace seconds, a second SIGTERM ends that wait; the exit code is 0 in each case.
    """
    try:
        from refllm.server.app import application
        from refllm.server.limits import Limits
        from refllm.server.run import bound_socket
        from refllm.server.run import serve as answer
    except ModuleNotFoundError as error:
        raise LlmRuntimeError(
            f"refllm serve needs the package {error.name}", how_to_install("server")
        ) from error
    from refllm.engine import LocalEngine
    from refllm.spin.component import engine_for

    options = {
        "seed": seed,
        "profile": profile,
        "numerics": numerics,
        "threads": threads,
        "stand_ins": stand_ins or None,
        "prompt_cache_bytes": prompt_cache_mib * MEBIBYTE,
        "max_models_bytes": None if max_models_mib is None else max_models_mib * MEBIBYTE,
    }
    if app is not None and allow:
        raise typer.BadParameter("choose one of --allow and --app")
    if app is not None:
        engine = engine_for(app, component or _only_component(app), **options)
    else:
        engine = LocalEngine(allowed_models=allow or None, **options)  # type: ignore[arg-type]
    limits = Limits(
        max_connections=max_connections,
        arrival_seconds=max_arrival_seconds,
        max_waiting=max_waiting,
        max_at_once=max_at_once,
        max_body_bytes=max_body_bytes,
        max_text_bytes=max_text_bytes,
        max_prompt_tokens=max_prompt_tokens,
        max_tokens=max_tokens,
        max_texts=max_texts,
        request_seconds=max_seconds,
    )
    token = _token(token, host)
    bound = bound_socket(host, port)
    url = f"http://{_in_url(host)}:{bound.getsockname()[1]}"
    answer(
        application(
            engine,
            limits=limits,
            token=token,
            hosts=(allow_host or []) if _is_loopback(host) or allow_host else None,
            origins=cors or [],
        ),
        bound,
        limits=limits,
        grace_seconds=grace,
        ready=lambda: write_text(_runtime_config(url, token)),
    )


def _token(given: str | None, host: str) -> str | None:
    """The token; a new one where others than this machine's users could ask."""
    token = given or os.environ.get(TOKEN_VARIABLE) or None
    if token is not None:
        if not token.isascii() or not token.isprintable() or " " in token:
            raise InvalidInput("the token must be of printable ASCII characters without spaces")
        return token
    return None if _is_loopback(host) else secrets.token_urlsafe(32)


def _only_component(app: Path) -> str:
    from refllm.spin.manifest import manifest_path, read_manifest

    names = list(read_manifest(manifest_path(app)).components)
    if len(names) != 1:
        said = ", ".join(names) or "none"
        raise InvalidInput(f"{app} has not one component but {said}; choose with --component")
    return names[0]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _runtime_config(url: str, token: str | None) -> str:
    """The block of Spin's runtime configuration that makes an application use this server."""
    return (
        f"# listening on {url}; for Spin's runtime configuration:\n"
        f'[llm_compute]\ntype = "remote_http"\nurl = {json.dumps(url)}\n'
        f"auth_token = {json.dumps(token or 'none')}\n"
    )
