"""The process that renders chat templates: `python -m refllm.checkpoints.chat_renderer_child`.

`refllm.checkpoints.chat_renderer` starts it, and can end it. Both sides write frames to a pipe:

    4 bytes    N, big-endian
    N bytes    a JSON object in UTF-8, where halves of surrogate pairs are characters, too

    the parent's first frame     {"seconds", "memory_bytes", "characters"}, the limits
    the answer                   {"jinja2": its version}
    each further frame           {"template", "variables", "is_strict"}
    the answer                   {"outcome", "text"}; outcomes are the constants below

The environment is that of transformers 5.24.0 (`utils/chat_template_utils.py`), in which a missing
variable is written as nothing and a null as None; a strict template fails with both. This module
imports Jinja and the standard library, so that the process starts in a tenth of a second.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import json
import os
import signal
import struct
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, BinaryIO, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateRuntimeError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

__all__ = ["main"]

TEXT = "text"
REFUSED = "refused"  # with the template's own message
UNUSABLE = "unusable"  # a template that no messages suit
FAILED = "failed"  # with these messages
TOO_LONG = "too long"
NO_MEMORY = "no memory"

FILENAME = "<template>"  # what Jinja calls a template that comes from a string
MAX_WORDS = 2000  # characters of an error message
MAX_TEMPLATES = 16  # that are kept compiled
GRACE_SECONDS = 5.0  # the parent ends a late process; without a parent it ends itself
LENGTH = struct.Struct(">I")


class Refusal(Exception):
    """What a template raises with `raise_exception`."""


class TextIsTooLongError(Exception):
    """The text has more characters than the limit."""


class Generation(Extension):
    """`{% generation %}` … `{% endgeneration %}`, which mark what the model has to write.

    Training uses the marks; the text is that of the block. As in transformers the block is a call
    block: a variable that is set inside does not exist outside.
    """

    tags = {"generation"}  # noqa: RUF012 - Jinja's own attribute

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the block as a call of `_text`."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

    def _text(self, caller: Callable[[], str]) -> str:
        return caller()


class LimitedDict:
    """`dict` for templates: its constructor and `fromkeys`, and no other attribute."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """Return `dict(*args, **kwargs)`."""
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """Return `dict.fromkeys(*args)`."""
        return dict.fromkeys(*args)


class PublicNamespace(Namespace):
    """`namespace` for templates: no attribute begins with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_public(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)


def _check_public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"the attribute {name!r} of a namespace begins with an underscore")


def raise_exception(message: object) -> NoReturn:
    """End the rendering with the template's own message."""
    raise Refusal(str(message))


def tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML and sorts keys; this one does neither."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def strftime_now(form: str) -> str:
    """Return the current time in the format `form`."""
    return datetime.now().strftime(form)  # local time, as in transformers


def _not_null(value: object) -> object:
    """Return what `{{ … }}` of a strict template is to write."""
    if value is None:
        raise jinja2.UndefinedError("what it writes is null")
    return value


@functools.lru_cache(MAX_TEMPLATES)
def _compiled(source: str, is_strict: bool) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, "jinja2.ext.loopcontrols"],
        undefined=jinja2.StrictUndefined if is_strict else jinja2.Undefined,
        finalize=_not_null if is_strict else None,
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {
        "dict": LimitedDict(),
        "namespace": PublicNamespace,
        "raise_exception": raise_exception,
        "strftime_now": strftime_now,
    }
    return environment.from_string(source)


def _rendered(template: jinja2.Template, variables: Mapping[str, object], most: int) -> str:
    pieces = []
    n_characters = 0
    for piece in template.generate(variables):
        n_characters += len(piece)
        if n_characters > most:
            raise TextIsTooLongError
        pieces.append(piece)
    return "".join(pieces)


def _answer(request: Mapping[str, Any], most: int) -> dict[str, str]:
    try:
        template = _compiled(request["template"], request["is_strict"])
    except MemoryError:
        return {"outcome": NO_MEMORY, "text": ""}
    except Exception as error:  # noqa: BLE001 - each error is an answer
        return {"outcome": UNUSABLE, "text": _words(error)}
    try:
        text = _rendered(template, request["variables"], most)
    except Refusal as refusal:
        return {"outcome": REFUSED, "text": str(refusal)[:MAX_WORDS]}
    except TextIsTooLongError:
        return {"outcome": TOO_LONG, "text": ""}
    except MemoryError:
        return {"outcome": NO_MEMORY, "text": ""}
    except Exception as error:  # noqa: BLE001 - each error is an answer
        # Exactly TemplateRuntimeError: an unknown filter or test where only some messages lead.
        is_unusable = isinstance(error, SecurityError) or type(error) is TemplateRuntimeError
        return {"outcome": UNUSABLE if is_unusable else FAILED, "text": _words(error)}
    return {"outcome": TEXT, "text": text}


def _words(error: Exception) -> str:
    """Return an error's message, and the line of the template where it occurred."""
    if isinstance(error, jinja2.TemplateSyntaxError):
        message, line = error.message or "", error.lineno
    elif isinstance(error, SyntaxError):  # its line is that of the Python code
        return error.msg[:MAX_WORDS]
    else:
        is_jinja = isinstance(error, jinja2.TemplateError | RecursionError)
        message = str(error) if is_jinja else f"{type(error).__name__}: {error}"
        line = 0
        traceback = error.__traceback__
        while traceback is not None:
            if traceback.tb_frame.f_code.co_filename == FILENAME:
                line = traceback.tb_lineno
            traceback = traceback.tb_next
    return message[:MAX_WORDS] + (f" (line {line})" if line else "")


def _read(stream: BinaryIO) -> dict[str, Any] | None:
    """Return the next frame, or None at the end of the stream."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    body = stream.read(length)
    if len(body) < length:
        return None
    frame: dict[str, Any] = json.loads(body.decode("utf-8", "surrogatepass"))
    return frame


def _write(stream: BinaryIO, frame: Mapping[str, object]) -> None:
    body = json.dumps(frame, ensure_ascii=False).encode("utf-8", "surrogatepass")
    stream.write(LENGTH.pack(len(body)) + body)
    stream.flush()


def _limit_resources(memory_bytes: int) -> None:
    """Bound the address space, write no file and no core dump, as far as the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = {resource.RLIMIT_AS: memory_bytes, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}
    for limit, most in limits.items():
        with contextlib.suppress(OSError, ValueError):  # macOS has no RLIMIT_AS that can be set
            resource.setrlimit(limit, (most, most))


def main() -> None:
    """Answer requests from standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    limits = _read(requests)
    if limits is None:
        return
    _limit_resources(limits["memory_bytes"])
    _write(answers, {"jinja2": jinja2.__version__})
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - os.devnull is no path of a folder
        while (request := _read(requests)) is not None:
            # By a thread without the interpreter lock, which one operation on huge numbers holds.
            faulthandler.dump_traceback_later(
                limits["seconds"] + GRACE_SECONDS, exit=True, file=nowhere
            )
            answer = _answer(request, limits["characters"])
            faulthandler.cancel_dump_traceback_later()
            _write(answers, answer)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # the parent has gone
        main()
