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
            help="The token that clients must send; REFLLM_TOKEN sets it, too.",
            show_default="none on a loopback address, otherwise a random one",
        ),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A model that clients may use; repeatable."),
    ] = None,
    app: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A Spin application: serve one component's models."),
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
            metavar="ORIGIN", help="An origin of web pages to allow; repeatable, '*' is all."
        ),
    ] = None,
    seed: SeedOption = 0,
    profile: ProfileOption = "contract",
    numerics: NumericsOption = "exact",
    stand_ins: StandInsOption = False,
    threads: ThreadsOption = None,
    prompt_cache_mib: PromptCacheOption = PROMPT_CACHE_MIB,
    max_models_mib: MaxModelsOption = None,
    keep_packed_mib: KeepPackedOption = None,
    max_connections: MaxConnectionsOption = 512,
    max_arrival_seconds: MaxArrivalSecondsOption = 30.0,
    max_waiting: Annotated[
        int, typer.Option(min=1, help="Maximum queued requests; further ones get 503.")
    ] = 64,
    max_at_once: Annotated[
        int, typer.Option(min=1, help="Maximum requests answered together.")
    ] = 16,
    max_body_bytes: Annotated[
        int, typer.Option(min=1, help="Maximum size of a request's body.")
    ] = 4 * 2**20,
    max_text_bytes: Annotated[
        int, typer.Option(min=1, help="Maximum size of a prompt, chat, or text to embed, in UTF-8.")
    ] = 2**20,
    max_prompt_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum tokens of a prompt.")
    ] = 32_768,
    max_tokens: Annotated[int, typer.Option(min=0, help="Maximum tokens of an answer.")] = 4096,
    max_texts: Annotated[
        int, typer.Option(min=1, help="Maximum texts to embed in one request.")
    ] = 2048,
    max_seconds: Annotated[
        float, typer.Option(min=0.001, help="Maximum time from a request to its answer's end.")
    ] = 300.0,
    grace: Annotated[
        int,
        typer.Option(min=0, help="Seconds for answers to finish after SIGTERM, before an abort."),
    ] = 30,
) -> None:
    """Answer HTTP requests: Spin's remote_http, and OpenAI's chats, completions and embeddings.

    Prints a block for Spin's runtime configuration. After SIGTERM, requests that are being answered
    have --grace seconds to finish; a second SIGTERM aborts them. The exit code is then 0.
    """
    try:
        from refllm.server.app import application
        from refllm.server.limits import Limits
        from refllm.server.middleware import connection_with
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
        "max_models_bytes": bytes_of(max_models_mib),
        "keep_packed_bytes": bytes_of(keep_packed_mib),
        "compiles_apart": True,
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
    in_url = f"[{host}]" if ":" in host else host
    url = f"http://{in_url}:{bound.getsockname()[1]}"
    runtime_config = (
        f"# listening on {url}; for Spin's runtime configuration:\n"
        f'[llm_compute]\ntype = "remote_http"\nurl = {json.dumps(url)}\n'
        f"auth_token = {json.dumps(token or 'none')}\n"
    )
    answer(
        application(
            engine,
            limits=limits,
            token=token,
            hosts=(allow_host or []) if _is_loopback(host) or allow_host else None,
            origins=cors or [],
        ),
        bound,
        connection=connection_with(limits),
        grace_seconds=grace,
        ready=lambda: write_text(runtime_config),
    )


def _token(given: str | None, host: str) -> str | None:
    """Return the token: a random one where other machines could send requests."""
    token = given or os.environ.get(TOKEN_VARIABLE) or None
    if token is None:
        return None if _is_loopback(host) else secrets.token_urlsafe(32)
    if not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidInput("the token must be of printable ASCII characters without spaces")
    return token


def _only_component(app: Path) -> str:
    from refllm.spin.manifest import manifest_path, read_manifest

    names = list(read_manifest(manifest_path(app)).components)
    if len(names) != 1:
        listed = ", ".join(names) or "none"
        raise InvalidInput(f"{app} needs --component; its components are {listed}")
    return names[0]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
