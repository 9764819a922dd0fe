"""For harnesses in Python: the word for a skip, and the loop that speaks the protocol.

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

The same class can be asked without a process of its own, as the entry point `my_module:Mine`.
docs/harnesses/harness.py does without this module.
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
    """Raised by `run` where the backend cannot be asked this; the text says why."""


class Harness(Protocol):
    """What `serve` and the entry point's target call; `start` and `stop` may be missing."""

    def start(self) -> Mapping[str, Any] | None:
        """Who answers: {"implementation": {"name", …}, "groups": […], "draws_as_refllm"}.

        None, or no such method: one of whom only the name is known, and who is asked every group.
        """

    def run(self, group: str, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        """The result of a case's input.

        Errors: `Skip`. An exception whose `kind` is one of the interface's is the interface's
        error, and as good a result as any; every other says that the harness is broken.
        """

    def stop(self) -> None:
        """Let everything go."""


def serve(
    harness: Any,
    source: BinaryIO | None = None,
    sink: BinaryIO | None = None,
) -> None:
    """Answer what comes in from standard input on standard output, until told to stop.

    What the harness itself prints goes to standard error meanwhile.
    """
    source = sys.stdin.buffer if source is None else source
    sink = sys.stdout.buffer if sink is None else sink
    with contextlib.redirect_stdout(sys.stderr):
        try:
            for line in source:
                asked = json.loads(line)
                if asked["cmd"] == "stop":
                    return
                sink.write(line_of(_reply(harness, asked)))
                sink.flush()
        finally:
            getattr(harness, "stop", lambda: None)()


def _reply(harness: Any, asked: Mapping[str, Any]) -> Mapping[str, Any]:
    if asked["cmd"] == "start":
        return hello(harness, type(harness).__name__)
    said = answer(harness.run, asked["group"], asked["input"])
    return {"id": asked["id"], **to_wire(said)}


def hello(harness: Any, name: str) -> Mapping[str, Any]:
    """The answer to start, as the harness's `start` gives it; `name` is that of one that is silent.

    Errors: `ProtocolError`, and whatever `start` raises.
    """
    said = getattr(harness, "start", lambda: None)()
    if said is None:
        said = {"implementation": {"name": name}, "groups": list(GROUPS)}
    if not isinstance(said, Mapping):
        raise ProtocolError(f"must give a dictionary; it gave {shown(said)}")
    return {"version": VERSION, **said}


def answer(run: Run, group: str, asked: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `run` says to a case: {"result": …}, {"skip": …} or {"error": …}; never raises.

    Arrays and numbers of NumPy, torch and others with a `tolist` become lists and numbers.
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
        return {"error": f"{type(error).__name__}: {error} ({_place(error)})"}


def params_of(asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """The parameters of a case's input by name, NaN and infinities as floats; None if it has none.

    Whole numbers stay whole, and what is no parameter at all stays as it is.
    """
    params = asked.get("params")
    if params is None:
        return None
    return {
        name: float(each) if isinstance(each, str) and each in SPECIAL else each
        for name, each in params.items()
    }


def _place(error: BaseException) -> str:
    """The line that raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}, line {frame.lineno}"


def _refusal(error: BaseException) -> Mapping[str, str] | None:
    """The interface's error that an exception stands for: by `kind`, or as the Spin SDK's `Err`."""
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
