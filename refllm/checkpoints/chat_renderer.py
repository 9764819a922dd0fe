"""Render chat templates in child processes, which can be ended.

A template is a program that comes with a model, and a model comes from anywhere. One operation,
such as 9 ** 9 ** 9, may hold Python's interpreter lock for hours, and no thread can interrupt it.
So templates run in `refllm.checkpoints.chat_renderer_child`, with limits of time, memory and
output. A child stays for the next chat, which it renders in less than a millisecond more.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import re
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Self

from refllm.errors import InvalidInput, LlmError, LlmRuntimeError, how_to_install

__all__ = ["Limits", "Renderer", "default_renderer"]

CHILD = "refllm.checkpoints.chat_renderer_child"
START_SECONDS = 60.0  # for an interpreter and Jinja on a busy machine
KILL_SECONDS = 5.0  # for the system to end a process
MAX_CHILDREN = 4  # that render at the same time; further threads block
IDLE_SECONDS = 5.0  # of more than one child without a chat
LENGTH = struct.Struct(">I")
BYTES_OF_A_CHARACTER = 6  # at most, in a JSON string: \u0000
MIN_JINJA = (3, 1, 6)  # transformers 5.24 refuses older ones, whose sandbox templates can leave

# The environment of a child: no secret that a template could read.
INHERITED = (
    *("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"),  # to start an interpreter
    *("TZ", "TZDIR"),  # for strftime_now
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of one rendering.

    Attributes:
        seconds: Wall time.
        memory_bytes: Address space of the child, its interpreter included, where the system has
            such a limit (Linux).
        characters: Length of the text; the messages may have as many.
    """

    seconds: float = 2.0
    memory_bytes: int = 2**29
    characters: int = 2**22


class Gone(Exception):
    """The child has ended, or was ended because of its time limit."""


class Renderer:
    """Renders chat templates in child processes; safe to use from several threads.

    Children start on demand. One stays until `close`, or the end of this process; further idle ones
    end after a few seconds. After a fork, the new process starts its own. `children` are running.

    Example:
        >>> with Renderer(Limits(seconds=5)) as renderer:
        ...     renderer.render("{{ word | upper }}", {"word": "hello"})
        'HELLO'
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        template: str = "the model's chat template",
        variables: str = "the messages",
        is_strict: bool = False,
    ) -> None:
        """Configure the renderer; nothing is started yet.

        Args:
            limits: The limits of each rendering.
            template: What errors call the template.
            variables: What errors call the variables, in the plural or a group of them.
            is_strict: Whether a template fails that uses a missing variable or writes a null.
        """
        self.limits = limits or Limits()
        self._template = template
        self._variables = variables
        self._is_strict = is_strict
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(MAX_CHILDREN)
        self.children: set[Child] = set()
        self._idle: list[Child] = []
        self._retiring: threading.Timer | None = None
        self._is_closed = False
        _renderers.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def render(self, template: str, variables: Mapping[str, object]) -> str:
        """Return the text that a template makes of its variables.

        Args:
            template: A Jinja template.
            variables: Names and values, of the types that JSON has.

        Raises:
            InvalidInput: if the template refuses the variables or fails with them, or they are no
                JSON or too long.
            LlmRuntimeError: if the template cannot be used at all or reaches a limit, or Jinja is
                not installed.
        """
        request = self._request(template, variables)
        with self._slots:
            while True:
                child = self._idle_child()
                is_new = child is None
                child = child or self._new_child()
                try:
                    answer = child.ask(request, self.limits.seconds)
                except Gone:
                    self._end(child)
                    if child.is_late:
                        raise self._unusable(
                            f"did not finish within {self.limits.seconds:g} seconds"
                        ) from None
                    if is_new and not self._is_closed:
                        raise self._unusable("ended the process that rendered it") from None
                    continue  # it may have ended between two chats
                except BaseException:  # such as KeyboardInterrupt: half an answer is in the pipe
                    self._end(child)
                    raise
                # Where memory ran out, the address space is in fragments; and a child may become
                # late just after its answer.
                is_usable = answer["outcome"] != "no memory" and not child.is_late
                self._give_back(child, is_usable=is_usable)
                return self._text(answer)

    def close(self) -> None:
        """End all children; a rendering in progress ends with an error."""
        with self._lock:
            self._is_closed = True
            if self._retiring is not None:
                self._retiring.cancel()
            busy = self.children.difference(self._idle)
            idle, self._idle = self._idle, []
        for child in idle:
            self._end(child)
        for child in busy:  # the thread that reads the pipes closes them
            child.kill()

    def _idle_child(self) -> Child | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                child = self._idle.pop()
            if child.is_alive:
                return child
            self._end(child)

    def _new_child(self) -> Child:
        with self._lock:
            if self._is_closed:
                raise LlmRuntimeError("chat templates are no longer rendered: this process ends")
            child = Child(self.limits)
            self.children.add(child)
        try:
            child.begin()
        except BaseException:
            self._end(child)
            raise
        return child

    def _give_back(self, child: Child, *, is_usable: bool) -> None:
        with self._lock:
            is_kept = is_usable and not self._is_closed
            if is_kept:
                self._idle.append(child)
                if len(self._idle) > 1 and self._retiring is None:
                    self._retiring = threading.Timer(IDLE_SECONDS, self._retire)
                    self._retiring.daemon = True
                    self._retiring.start()
        if not is_kept:
            self._end(child)

    def _retire(self) -> None:
        """End the children that have nothing to do, but for one."""
        with self._lock:
            self._retiring = None
            unused, self._idle = self._idle[:-1], self._idle[-1:]
        for child in unused:
            self._end(child)

    def _end(self, child: Child) -> None:
        child.kill()
        child.close_pipes()
        with self._lock:
            self.children.discard(child)

    def forget(self) -> None:
        """Drop the children in a forked process: they are the parent's.

        A lock may be held by a thread that was not forked, so new locks are made. The copies of
        the pipes are closed, so that a child sees the end of the parent.
        """
        for child in self.children:
            child.forget()
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(MAX_CHILDREN)
        self.children = set()
        self._idle = []
        self._retiring = None

    def _request(self, template: str, variables: Mapping[str, object]) -> bytes:
        try:
            request = encoded(
                {"template": template, "variables": variables, "is_strict": self._is_strict}
            )
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidInput(f"{self._variables} must be what JSON can hold: {error}") from error
        most = BYTES_OF_A_CHARACTER * (self.limits.characters + len(template))
        if len(request) > most:
            raise InvalidInput(
                f"{self._variables} have {len(request)} bytes as JSON, and may have {most}"
            )
        return request

    def _text(self, answer: Mapping[str, str]) -> str:
        """Return the text of an answer of `refllm.checkpoints.chat_renderer_child`."""
        text = answer["text"]
        match answer["outcome"]:
            case "text":
                return text
            case "refused":
                raise InvalidInput(f"{self._template} refuses {self._variables}: {text}")
            case "failed":
                raise InvalidInput(f"{self._template} makes nothing of {self._variables}: {text}")
            case "too long":
                raise self._unusable(f"writes more than {self.limits.characters} characters")
            case "no memory":
                raise self._unusable(
                    f"needs more than {self.limits.memory_bytes >> 20} MiB of memory"
                )
            case _:
                raise self._unusable(f"cannot be used: {text}")

    def _unusable(self, problem: str) -> LlmError:
        return LlmRuntimeError(f"{self._template} {problem}")


class Child:
    """A child process and its two pipes. One thread at a time asks it."""

    def __init__(self, limits: Limits) -> None:
        self.is_late = False
        self._limits = limits
        if importlib.util.find_spec("jinja2") is None:
            raise LlmRuntimeError(
                "chat templates need jinja2, which is not installed", how_to_install("server")
            )
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        try:
            # No file runs at the start (-S), and modules are where the parent finds them.
            folders = [folder or str(Path.cwd()) for folder in sys.path if isinstance(folder, str)]
            folders.append(str(Path(__file__).parents[2]))
            self._process = subprocess.Popen(
                [sys.executable or "python", "-BPS", "-m", CHILD],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env={**inherited, "PYTHONPATH": os.pathsep.join(folders)},
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except OSError as error:
            raise _cannot_start(error) from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests: IO[bytes] = self._process.stdin
        self._answers: IO[bytes] = self._process.stdout

    def begin(self) -> None:
        """Send the limits; raise `LlmRuntimeError` if the child does not start."""
        try:
            version = self.ask(encoded(asdict(self._limits)), START_SECONDS)["jinja2"]
        except Gone:
            raise _cannot_start("it ended before it was ready") from None
        if tuple(map(int, re.findall("[0-9]+", version))) < MIN_JINJA:
            needed = ".".join(map(str, MIN_JINJA))
            raise LlmRuntimeError(
                f"chat templates need jinja2 {needed} or newer, and {version} is installed",
                f"pip install --upgrade 'jinja2>={needed}'",
            )

    @property
    def process_id(self) -> int:
        """The system's number of the process."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def ask(self, request: bytes, seconds: float) -> dict[str, Any]:
        """Return the answer to a request; raise `Gone` after at most so many seconds."""
        watch = threading.Timer(seconds, self._end_late)
        watch.daemon = True
        try:
            watch.start()
        except RuntimeError as error:  # there are as many threads as there may be
            raise _cannot_start(error) from error
        try:
            self.write(LENGTH.pack(len(request)) + request)
            (length,) = LENGTH.unpack(self._read(LENGTH.size))
            answer: dict[str, Any] = json.loads(self._read(length).decode("utf-8", "surrogatepass"))
        except (OSError, ValueError) as error:  # a pipe that is broken
            raise Gone from error
        finally:
            watch.cancel()
            watch.join()  # or it might end the process while the next request is answered
        return answer

    def write(self, data: bytes) -> None:
        """Write all of it into the child's pipe."""
        view = memoryview(data)
        while view:
            view = view[self._requests.write(view) :]

    def kill(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # shutdown never hangs here
            self._process.wait(KILL_SECONDS)

    def forget(self) -> None:
        """Close the pipes of a process that is another's child."""
        self._process.returncode = 0  # its end is the parent's to see
        self.close_pipes()

    def close_pipes(self) -> None:
        """Close this side of both pipes."""
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(OSError):
                pipe.close()

    def _end_late(self) -> None:
        self.is_late = True
        self._process.kill()

    def _read(self, n: int) -> bytes:
        parts = []
        while n:
            part = self._answers.read(min(n, 2**20))
            if not part:
                raise Gone
            parts.append(part)
            n -= len(part)
        return b"".join(parts)


def encoded(content: Mapping[str, object]) -> bytes:
    """Return an object as JSON in UTF-8.

    Halves of surrogate pairs stay halves: of two escaped ones, JSON makes one character.
    """
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _cannot_start(reason: object) -> LlmError:
    return LlmRuntimeError(f"the process that renders chat templates cannot start: {reason}")


_renderers: weakref.WeakSet[Renderer] = weakref.WeakSet()


def _for_all(method: Callable[[Renderer], None]) -> None:
    for renderer in list(_renderers):
        method(renderer)


atexit.register(_for_all, Renderer.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _for_all(Renderer.forget))

default_renderer = Renderer()
"""The renderer of `refllm.checkpoints.chat_template.chat_prompt`, with the default limits."""
