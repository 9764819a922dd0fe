"""The live page: an ASGI application for this machine's browser.

    GET  /                  the page, its modules and its style
    GET  /document.json     the document of the run, without the numbers of its arrays
    GET  /array?name=NAME   a value of the network, float32, little-endian
    GET  /quantization?tensor=NAME&row=R&column=C    a place of a matrix
    POST /step              one draw again, with other parameters

The Content-Security-Policy allows the page its own files and requests to this server, nothing else.
A request is refused if its `Host` is not this machine (DNS rebinding), or if a page of another
origin makes it: by `Origin`, or by `Sec-Fetch-Site`, which a browser sends also where it sends no
`Origin`. Only `/`, which computes nothing, may be opened by a link of another page. Needs the extra
`inspect`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import fields
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from refllm.checkpoints.open import open_weights
from refllm.errors import InvalidInput, LlmError
from refllm.inspect.beside import Beside
from refllm.inspect.document import N_CANDIDATES, document_of
from refllm.inspect.files import MODULES, PAGE, TYPES
from refllm.inspect.quantization import quantization_of
from refllm.inspect.run import Run
from refllm.inspect.stages import explained
from refllm.interface import InferencingParams
from refllm.models.load import LlamaModel

__all__ = ["application"]

MAX_BODY_BYTES = 64 * 1024
LOOPBACK = ("127.0.0.1", "localhost", "::1")
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
Next = Callable[[Request], Awaitable[Response]]


def application(run: Run, *, beside: Beside | None = None) -> Starlette:
    """Return the application that shows a run, and how a second one differs if there is one."""
    content = {**document_of(run, beside=beside), "live": True}
    document = json.dumps(content, ensure_ascii=False, allow_nan=False)
    tensors = open_weights(run.model.path).tensors

    async def page(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in ("index.html", "style.css", *MODULES):
            return JSONResponse({"error": f"there is no {name!r:.80} here"}, 404)
        path = PAGE / name
        return Response(path.read_bytes(), media_type=TYPES[path.suffix])

    async def whole(_: Request) -> Response:
        return Response(document, media_type="application/json")

    async def array(request: Request) -> Response:
        found = await run_in_threadpool(run.array, request.query_params.get("name", ""))
        data = found.astype(np.dtype("<f4")).tobytes()
        return Response(data, media_type="application/octet-stream")

    async def quantization(request: Request) -> Response:
        query = request.query_params
        place = {key: _whole_number(query.get(key, "0"), key) for key in ("row", "column")}
        found = await run_in_threadpool(quantization_of, tensors, query.get("tensor", ""), **place)
        return JSONResponse(found)

    async def step(request: Request) -> Response:
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":  # another site's form cannot send it
            error = f"the content-type must be application/json, got {media_type!r:.80}"
            return JSONResponse({"error": error}, 415)
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY_BYTES:
                raise InvalidInput(f"the body is longer than the limit of {MAX_BODY_BYTES} bytes")
        return JSONResponse(await run_in_threadpool(_step_again, run, body))

    routes = [
        Route("/", page),
        Route("/document.json", whole),
        Route("/array", array),
        Route("/quantization", quantization),
        Route("/step", step, methods=["POST"]),
        Route("/{name}", page),
    ]
    app = Starlette(routes=routes)
    app.add_exception_handler(LlmError, _refused)
    app.add_middleware(BaseHTTPMiddleware, dispatch=_of_this_machine)
    return app


async def _of_this_machine(request: Request, call_next: Next) -> Response:
    """Refuse requests of other sites' pages, and add the headers of every answer.

    An error that is not the interface's is a bug; `python -X dev -m refllm` shows its traceback.
    """
    refusal = _refusal(request)
    if refusal is not None:
        response: Response = JSONResponse({"error": refusal}, 403)
    else:
        try:
            response = await call_next(request)
        except Exception as error:
            if sys.flags.dev_mode:
                raise
            message = f"unexpected {type(error).__name__}: {error}; this is a bug in refllm"
            response = JSONResponse({"error": message}, 500)
    response.headers.update(HEADERS)
    return response


def _refusal(request: Request) -> str | None:
    """Return why a request is refused; None if it comes from this server's page or from no page."""
    host = request.headers.get("host", "")
    try:
        is_here = urlsplit(f"//{host}").hostname in LOOPBACK
    except ValueError:
        is_here = False
    if not is_here:
        return f"{host!r:.80} is not this machine; use the address that was printed"
    origin = request.headers.get("origin")
    if origin not in (None, f"http://{host}"):
        return f"{origin!r:.80} is another origin, and only this server's own page may ask"
    site = request.headers.get("sec-fetch-site", "none")
    if site not in ("same-origin", "none") and request.url.path != "/":
        return f"a page of another origin asks ({site!r:.80}), and only this server's own may"
    return None


async def _refused(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": ": ".join(map(str, error.args))}, 400)


def _whole_number(text: str, key: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise InvalidInput(f"{key} must be a whole number, got {text!r:.80}")
    return int(text)


def _step_again(run: Run, body: bytes) -> dict[str, Any]:
    """Return a step drawn again from the same logits, with the body's parameters.

    Raises:
        InvalidInput: For a body that is not {"step", "params", "seed", "profile"}, an unknown
            step, and unusable values.
    """
    try:
        asked = json.loads(body)
        i, params, seed, profile = (asked[key] for key in ("step", "params", "seed", "profile"))
        known = {field.name for field in fields(InferencingParams)}
        if unknown := sorted(params.keys() - known):
            raise InvalidInput(f"params has the unknown key {unknown[0]!r:.80}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidInput(
            'the body must be JSON: {"step": 0, "params": {…}, "seed": "0", "profile": "contract"}'
        ) from error
    is_step = type(i) is int and 0 <= i < len(run.draws)  # true is an int, too
    if not isinstance(run.model, LlamaModel) or not is_step:
        raise InvalidInput(f"the run has no step {i!r:.80}; it has {len(run.draws)}, from 0")
    draw = run.draws[i].again(
        InferencingParams(**params),
        seed=_whole_number(str(seed), "seed"),
        profile=str(profile),
    )
    return explained(draw, run.model.tokenizer, n_candidates=N_CANDIDATES)
