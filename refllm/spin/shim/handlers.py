"""A request goes through a handler as through Spin: what arrives, what may come back."""

from __future__ import annotations

import asyncio
import contextvars
import importlib.util
import sys
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from refllm.errors import InvalidInput
from refllm.spin.shim.install import forget, is_in_place
from refllm.spin.shim.sdk import Handler, IncomingHandler, Request, Response

__all__ = ["handle"]

STATUSES = range(100, 1000)


def handle(handler: ModuleType | str | Path, request: Request) -> Response:
    """The response of `handler`, a module or the path of its file, to `request`.

    As with Spin, the handler sees lower-case header names and a body that is never None, and the
    response has a content-length. A file is read anew each time, as Spin starts an instance for
    each request, and can import the modules beside it; a module keeps what it remembers. Inside a
    running event loop a handler that is a coroutine runs in another thread, and is waited for.

    Errors: whatever the handler raises (Spin would answer 500); `InvalidInput` if there is no such
    file, it has no handler, or the stand-in is not in place; `TypeError` if the request or the
    response is none that HTTP could carry.
    """
    if not is_in_place():
        raise InvalidInput(
            "spin_sdk is not refllm's stand-in here; call handle inside "
            "`with spin_sdk_backed_by(engine):`, or in a test that uses the fixture llm"
        )
    if isinstance(handler, ModuleType):
        return _answer(handler, request)
    with _loaded(Path(handler)) as module:
        return _answer(module, request)


def _answer(module: ModuleType, request: Request) -> Response:
    _check(Request, request)
    seen = Request(request.method, request.uri, _lower_case(request.headers), request.body or b"")
    handler = _handler_of(module)
    if isinstance(handler, Handler):
        response = _awaited(handler.handle_request(seen))
    else:
        response = handler.handle_request(seen)
    _check(Response, response)
    body = response.body or b""
    headers = _lower_case(response.headers)
    headers.setdefault("content-length", str(len(body)))
    return Response(response.status, headers, body)


def _awaited(response: Coroutine[Any, Any, Response]) -> Response:
    """What the coroutine returns, in a loop of its own, with the caller's context variables.

    Where a loop runs already, as in a notebook or in a test that is a coroutine, Python allows no
    second one in the same thread.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(response)
    context = contextvars.copy_context()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="refllm-handler") as thread:
        return thread.submit(context.run, asyncio.run, response).result()


def _handler_of(module: ModuleType) -> IncomingHandler | Handler:
    """An instance of the class that componentize-py would look for by its name."""
    for name, base in (("IncomingHandler", IncomingHandler), ("HttpHandler", Handler)):
        found = vars(module).get(name)
        if isinstance(found, type) and issubclass(found, base) and found is not base:
            return found()
    raise InvalidInput(
        f"{getattr(module, '__file__', module.__name__)} has no handler: it needs a "
        "`class IncomingHandler(spin_sdk.http.IncomingHandler)`, or with spin-sdk 4 and 5 a "
        "`class HttpHandler(spin_sdk.http.Handler)`"
    )


def _lower_case(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _check(kind: type[Request | Response], message: object) -> None:
    """Raise `TypeError`, saying what is wrong, unless it is a `kind` that HTTP could carry."""
    what = kind.__name__.lower()
    if not isinstance(message, kind):
        raise TypeError(
            f"the {what} must be a spin_sdk.http.{kind.__name__}, not {type(message).__name__}"
        )
    if not isinstance(message.body, bytes | bytearray | None):
        raise TypeError(
            f"the {what}'s body must be bytes or None, not {type(message.body).__name__}; "
            "a text needs .encode()"
        )
    if not isinstance(message.headers, Mapping):
        raise TypeError(f"the {what}'s headers must be a dict, not {message.headers!r:.80}")
    for name, value in message.headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"the {what}'s headers must be text, not {name!r:.80}: {value!r:.80}")
    if isinstance(message, Response) and message.status not in STATUSES:
        raise TypeError(
            f"the {what}'s status must be a number from {STATUSES.start} to {STATUSES.stop - 1}, "
            f"not {message.status!r:.80}"
        )


# --- From a file ---------------------------------------------------------------------------------


@contextmanager
def _loaded(path: Path) -> Iterator[ModuleType]:
    """The module in the file, and its neighbours to import, for as long as this lasts."""
    path = path.absolute()
    if not path.is_file():
        raise InvalidInput(f"there is no handler at {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InvalidInput(f"{path} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    before = dict(sys.modules)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(path.parent))
        for name in sys.modules.keys() - before.keys():
            if _lies_beside(path, name):
                forget(name)
        if path.stem in before:
            sys.modules[path.stem] = before[path.stem]
        else:
            sys.modules.pop(path.stem, None)


def _lies_beside(path: Path, name: str) -> bool:
    """Whether the module called `name` was imported from the folder that the file is in.

    A package further down, in a virtual environment, was not: it may be one that can only be
    imported once.
    """
    top = path.parent / name.partition(".")[0]
    file = getattr(sys.modules[name], "__file__", None)
    if file is None or not (top.is_dir() or top.with_suffix(".py").is_file()):
        return False
    return Path(file).is_relative_to(path.parent)
