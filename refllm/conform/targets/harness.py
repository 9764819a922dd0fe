"""For harnesses in Python: the exception for a skip, and the loop that speaks the protocol.

    from refllm.conform.targets.harness import Skip, serve

    class Mine:
        def start(self):
            return {"implementation": {"name": "mine"}, "groups": ["tokenizer"]}

        def run(self, group, asked):
            if asked["model"] != "tiny-chat":
                raise Skip("only tiny-chat is here")
            ids = encode(asked["text"])
            return {"ids": ids, "text": decode(ids)}

    if __name__ == "__main__":
        serve(Mine())

The same class can be asked in refllm's process, as the entry point `my_module:Mine`.
docs/harnesses/harness.py is a harness without this module.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from refllm.conform.case import GROUPS
from refllm.conform.reply import KINDS
from refllm.conform.targets.protocol import VERSION, ProtocolError, line_of, shown
from refllm.conform.wire import SPECIAL, to_wire

__all__ = ["Harness", "Skip", "answer", "hello", "params_of", "serve"]

CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])")

Run = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]


class Skip(Exception):
    """Raised by `run` where the backend cannot be asked the case; the text is the reason."""


class Harness(Protocol):
    """What `serve` and the target of a Python object call; `start` and `stop` may be missing."""

    def start(self) -> Mapping[str, Any] | None:
        """Return {"implementation": {"name", …}, "groups": […], "draws_as_refllm", …}.

        None, or no such method, stands for every group; the name then is that of the class.
        """

    def run(self, group: str, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the result of a case's input.

        An exception whose `kind` is one of the interface's is the interface's error, which is a
        result like any other. Every other exception is a fault of the harness.

        Raises:
            Skip: Where the backend cannot be asked the case.
        """

    def stop(self) -> None:
        """Release everything."""


def serve(
    harness: Any,
    source: BinaryIO | None = None,
    sink: BinaryIO | None = None,
) -> None:
    """Answer messages of standard input on standard output, until one says stop.

    What the harness itself prints is redirected to standard error.

    Args:
        harness: An object with the methods of `Harness`.
        source: Where messages are read, by default standard input.
        sink: Where answers are written, by default standard output.
    """
    source = sys.stdin.buffer if source is None else source
    sink = sys.stdout.buffer if sink is None else sink
    with contextlib.redirect_stdout(sys.stderr):
        try:
            for line in source:
                asked = json.loads(line)
                if asked["cmd"] == "stop":
                    return
                if asked["cmd"] == "start":
                    reply = hello(harness, type(harness).__name__)
                else:
                    result = answer(harness.run, asked["group"], asked["input"])
                    reply = {"id": asked["id"], **to_wire(result)}
                sink.write(line_of(reply))
                sink.flush()
        finally:
            getattr(harness, "stop", lambda: None)()


def hello(harness: Any, name: str) -> Mapping[str, Any]:
    """Return the answer to the start message, from the harness's own `start`.

    Args:
        harness: An object with the methods of `Harness`.
        name: The name of a harness whose `start` returns None or is missing.

    Raises:
        ProtocolError: Where `start` returns something else than a dictionary.
        Exception: Whatever `start` raises.
    """
    description = getattr(harness, "start", lambda: None)()
    if description is None:
        description = {"implementation": {"name": name}, "groups": list(GROUPS)}
    if not isinstance(description, Mapping):
        raise ProtocolError(f"must give a dictionary; it gave {shown(description)}")
    return {"version": VERSION, **description}


def answer(run: Run, group: str, asked: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the outcome of `run`: {"result": …}, {"skip": …} or {"error": …}; never raise.

    Arrays and numbers of NumPy, torch and other libraries with a `tolist` become lists and numbers.

    Args:
        run: The method of a harness.
        group: The case's group.
        asked: The case's input.
    """
    try:
        result = run(group, asked)
        if not isinstance(result, Mapping):
            return {"error": f"run gave {type(result).__name__}, not a dictionary"}
        return {"result": _plain(result)}
    except Skip as skip:
        return {"skip": str(skip) or "no reason given"}
    except (Exception, SystemExit) as error:  # noqa: BLE001 (whatever a backend raises)
        refusal = _refusal(error)
        if refusal is not None:
            return {"result": {"error": refusal}}
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}, line {frame.lineno}"
        return {"error": f"{type(error).__name__}: {error} ({place})"}


def params_of(asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the parameters of a case's input by name, None if it has none.

    NaN and infinities, which JSON carries as strings, become floats; all else is unchanged.

    Example:
        >>> params_of({"params": {"top_p": "nan", "top_k": 40}})
        {'top_p': nan, 'top_k': 40}
    """
    params = asked.get("params")
    if params is None:
        return None
    return {
        name: float(each) if isinstance(each, str) and each in SPECIAL else each
        for name, each in params.items()
    }


def _refusal(error: BaseException) -> Mapping[str, str] | None:
    """Return the interface's error of an exception: from `kind`, or as the Spin SDK's `Err`."""
    kind = getattr(error, "kind", None)
    if kind in KINDS:
        return {"kind": str(kind), "message": str(error)}
    value = getattr(error, "value", None)
    case = type(value).__name__.removeprefix("Error_")
    kind = CAMEL_CASE.sub("-", case).lower()
    if kind in KINDS:
        return {"kind": kind, "message": str(getattr(value, "value", ""))}
    return None


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each) for each in value]
    return value
