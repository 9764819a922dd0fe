"""The cases of golden/api, and refllm's own answers to them."""

from __future__ import annotations

import functools
import json
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn

from refllm.api import InferencingParams, LlmError
from refllm.conform.case import Case, Json
from refllm.conform.wire import decoded
from refllm.engine import LocalEngine
from refllm.models.bundled import ROOT
from refllm.server.app import application
from refllm.server.limits import Limits
from refllm.server.run import bound_socket

__all__ = [
    "CASES",
    "FOLDER",
    "GREEDY",
    "TOKEN",
    "answer",
    "case_named",
    "case_of",
    "embeddings_case",
    "name",
    "serving",
    "text_case",
]

FOLDER = Path(__file__).resolve().parents[2] / "golden" / "api"
TOKEN = "open-sesame"


def case_of(entry: Mapping[str, Any]) -> Case:
    """A case as the file has it."""
    return Case(
        id=entry["id"],
        group="api",
        proves=entry["proves"],
        clause=entry["clause"],
        input=decoded(entry["input"]),
        expected=decoded(entry["expected"]),
        models=tuple(entry["models"]),
        is_quick=entry.get("quick", False),
        tolerance=decoded(entry.get("tolerance", {})),
    )


CASES = [
    case_of(entry)
    for entry in json.loads((FOLDER / "cases.json").read_text(encoding="ascii"))["cases"]
]


def name(case: Case) -> str:
    return case.id.removeprefix("api/")


def case_named(case_id: str) -> Case:
    return next(case for case in CASES if name(case) == case_id)


GREEDY = case_named("greedy-text")
DEFAULTS = {
    "max_tokens": 64,
    "repeat_penalty": 1.0,
    "repeat_penalty_last_n_token_count": 64,
    "temperature": 0.0,
    "top_k": 40,
    "top_p": 0.9,
}


def text_case(*, seed: str = "0", **params: float) -> Case:
    """A case of the group text: the greedy one of api, with other parameters."""
    asked = {
        "model": "tiny-chat",
        "prompt": GREEDY.input["prompt"],
        "params": {**DEFAULTS, **params},
        "seed": seed,
    }
    return replace(GREEDY, id="text/greedy", group="text", input=asked)


def embeddings_case(**more: object) -> Case:
    asked = {"model": "tiny-embed", "texts": ["A cat.", ""], **more}
    return replace(GREEDY, id="embeddings/two", group="embeddings", input=asked)


def answer(case: Case, *, profile: str = "contract") -> Json:
    """The answer of an engine in this process, as a harness would give it."""
    asked = case.input
    with tempfile.TemporaryDirectory() as folder:
        engine = _engine(asked.get("setup", {}), Path(folder), profile)
        try:
            if asked["operation"] == "infer":
                params = InferencingParams(**asked["params"]) if "params" in asked else None
                result = engine.infer(asked["model"], asked["prompt"], params)
                usage = {
                    "prompt_token_count": result.usage.prompt_token_count,
                    "generated_token_count": result.usage.generated_token_count,
                }
                return {"text": result.text, "usage": usage}
            vectors = engine.generate_embeddings(asked["model"], asked["texts"])
        except LlmError as error:
            return {"error": {"kind": error.kind, "message": str(error)}}
    usage = {"prompt_token_count": vectors.usage.prompt_token_count}
    return {"embeddings": vectors.embeddings, "usage": usage}


def _engine(setup: Json, folder: Path, profile: str) -> LocalEngine:
    if not setup:
        return _usual_engine(profile)
    for path, data in setup.get("files", {}).items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes.fromhex(data))
    return LocalEngine(
        roots=[folder, ROOT],
        allowed_models=setup.get("ai_models"),
        enabled=setup.get("enabled", True),
        profile=profile,
        threads=1,
    )


@functools.cache
def _usual_engine(profile: str) -> LocalEngine:
    return LocalEngine(roots=[ROOT], profile=profile, threads=1)


@contextmanager
def serving(*, profile: str = "contract", token: str | None = TOKEN) -> Iterator[str]:
    """The URL of refllm's server in this process, for as long as the context lasts."""
    app = application(_usual_engine(profile), limits=Limits(), token=token)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with bound_socket("127.0.0.1", 0) as bound:
        bound.listen()  # so that a client may come before the server is ready, and waits
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
