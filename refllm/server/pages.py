"""The pages of `GET /` and `GET /docs`, and the tables of keys in docs/serving.md: one source."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping

from pydantic import BaseModel

from refllm import NUMERICS_REVISION, __version__
from refllm.server.openai_keys import (
    FORMAT_REFUSED,
    MESSAGE_REFUSED,
    MESSAGE_SERVED,
    PART_WITHOUT_EFFECT,
    REFUSED,
    SERVED,
    STREAM_REFUSED,
    WITHOUT_EFFECT,
    Refused,
)
from refllm.server.openai_requests import ChatRequest, CompletionRequest, EmbeddingsRequest

__all__ = ["ROUTES", "docs_page", "first_page", "keys_in_markdown"]

ROUTES: Mapping[str, str] = {
    "POST /infer": "continues a prompt: the protocol of Spin's remote_http",
    "POST /embed": "embeds texts: the protocol of Spin's remote_http",
    "POST /v1/chat/completions": "answers a chat: the protocol of OpenAI's clients",
    "POST /v1/completions": "continues prompts: the protocol of OpenAI's clients",
    "POST /v1/embeddings": "embeds texts: the protocol of OpenAI's clients",
    "GET /v1/models": "lists the models",
    "GET /v1/models/{model}": "describes one model",
    "GET /docs": "each key of OpenAI's routes: served, refused, or without effect",
    "GET /openapi.json": "all routes as a schema",
    "GET /healthz": "200 as long as the process runs",
    "GET /readyz": "200 while the server accepts requests",
    "GET /metrics": "counters in Prometheus's text format",
}
BODIES: Mapping[str, type[BaseModel]] = {
    "chat": ChatRequest,
    "completions": CompletionRequest,
    "embeddings": EmbeddingsRequest,
}
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "td,th{text-align:left;vertical-align:top;padding:.2em 1em .2em 0}"
)

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


def first_page() -> str:
    """Return the page of `GET /`: the list of routes."""
    routes = _html_table(
        ("route", "what it does"), [(f"`{route}`", what) for route, what in ROUTES.items()]
    )
    return _page(
        "<p>Models over HTTP, for applications of Spin's Serverless AI and for OpenAI's clients: "
        "the reference implementation.</p>"
        f"{routes}<p>Numerics revision {NUMERICS_REVISION}.</p>"
        "<p>An OpenAI client's base URL is this address with /v1. "
        '<a href="docs">Each key of a request</a></p>'
    )


def docs_page() -> str:
    """Return the page of `GET /docs`: every key of OpenAI's routes, and its effect."""
    tables = (
        f"<h2>{html.escape(title)}</h2>{_html_table(head, rows)}" for title, head, rows in _tables()
    )
    return _page('<p><a href=".">All routes</a></p>' + "".join(tables))


def keys_in_markdown() -> str:
    """Return the tables of `docs_page` in Markdown, for docs/serving.md."""

    def row(cells: tuple[str, ...]) -> str:
        return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"

    return "\n".join(
        "\n".join([f"### {title}\n", row(head), "|" + "---|" * len(head), *map(row, rows)]) + "\n"
        for title, head, rows in _tables()
    )


def _tables() -> Iterator[Table]:
    yield (
        "Keys that are served",
        ("key", "routes", "must be", "what it does"),
        [(f"`{key}`", *_routes_and_values(key), does) for key, does in SERVED.items()],
    )
    yield (
        "Keys of a message that are served",
        ("key", "what it does"),
        [(f"`messages[].{key}`", does) for key, does in MESSAGE_SERVED.items()],
    )
    yield (
        "Keys without effect",
        ("key", "why it cannot change an answer"),
        [
            *((f"`{key}`", why) for key, why in WITHOUT_EFFECT.items()),
            *((f"`messages[].content[].{key}`", why) for key, why in PART_WITHOUT_EFFECT.items()),
        ],
    )
    yield (
        "Keys that are refused",
        ("key", "accepted besides null", "instead"),
        [
            *_refused("", REFUSED),
            *_refused("response_format.", FORMAT_REFUSED),
            *_refused("stream_options.", STREAM_REFUSED),
            *_refused("messages[].", MESSAGE_REFUSED),
        ],
    )


def _routes_and_values(key: str) -> tuple[str, str]:
    """Return the routes that serve a key, and what its value must be there."""
    routes_of: dict[str, list[str]] = {}
    for route, body in BODIES.items():
        if key in body.model_fields:
            routes_of.setdefault(body.model_fields[key].description or "", []).append(route)
    routes = [route for each in routes_of.values() for route in each]
    first, *others = routes_of
    values = [first, *(f"of {' and '.join(routes_of[value])} {value}" for value in others)]
    return "all" if len(routes) == len(BODIES) else ", ".join(routes), "; ".join(values)


def _refused(before: str, refused: Mapping[str, Refused]) -> Iterator[tuple[str, str, str]]:
    for key, entry in refused.items():
        neutral = ", ".join(f"`{json.dumps(value)}`" for value in entry.neutral)
        yield f"`{before}{key}`", neutral, entry.instead


def _html_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    def cell(text: str) -> str:
        parts = html.escape(text).split("`")  # every second part is between backticks
        code = (f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))
        return f"<td>{''.join(code)}</td>"

    lines = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    heads = "".join(f"<th>{name}</th>" for name in head)
    return f"<table><tr>{heads}</tr>{lines}</table>"


def _page(body: str) -> str:
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>refllm</title>'
        f"<style>{STYLE}</style><h1>refllm {__version__}</h1>{body}</html>\n"
    )
