"""What runs in the processes of `refllm.wasm.workers`: the template, and workers forked from it.

The template has every component in memory and no thread, so that a fork of it can begin at once.
A worker runs one guest after another. It asks the server for what is shared: a permit to compute,
and the answers of models.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import logging
import os
import signal
import socket
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from refllm.errors import InvalidInput, LlmError, LlmRuntimeError, ModelNotSupported
from refllm.interface import (
    EmbeddingsResult,
    EmbeddingsUsage,
    InferencingParams,
    InferencingResult,
    InferencingUsage,
)
from refllm.wasm.channel import ORDER_BYTES, Channel, Gone
from refllm.wasm.guest import GuestFailed, Limits, Output
from refllm.wasm.host import Host, Program, Services
from refllm.wasm.wasi.http import ResponseOutparam

__all__ = ["run_template"]

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PROGRAM_FD = 3
ERRORS: Mapping[str, type[LlmError]] = {
    error.kind: error for error in (InvalidInput, ModelNotSupported, LlmRuntimeError)
}


def run_template(fd: int, memory_bytes: int, seconds: float) -> None:
    """Obey the server until it closes the connection; then end every worker.

    `{"load": path}` is answered by `{}`, or by `{"error": text}`. `{"fork": null}`, which comes
    with a worker's socket, is answered by `{"pid": number}`; so is `{"run": command}`, whose
    program gets the socket as descriptor 3. `{"end": pid}` ends a worker, and is answered by
    `{"code": number}`: the exit code that it had already, negative for a signal.

    Args:
        fd: A socket that keeps the boundaries of messages.
        memory_bytes: The limit of a guest, as in `Limits`.
        seconds: As well.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the server ends this process
        signal.signal(number, signal.SIG_IGN)
    logger = logging.getLogger("refllm")
    logger.propagate = False  # the server has logged the same when it loaded the components
    logger.addHandler(logging.NullHandler())
    # wasmtime's compiler has threads; they are idle. Without a cache of components it ran here.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    host = Host(Limits(memory_bytes=memory_bytes, seconds=seconds))
    programs: dict[str, Program] = {}
    workers: set[int] = set()
    with socket.socket(fileno=fd) as server, contextlib.suppress(ConnectionError):
        while True:
            data, fds, _, _ = socket.recv_fds(server, ORDER_BYTES, 1)
            if not data:
                break
            ((order, argument),) = json.loads(data).items()
            answer: dict[str, object] = {}
            if order == "load":
                try:
                    programs[argument] = host.load_handler(Path(argument))
                except LlmError as error:
                    answer["error"] = str(error)
                gc.freeze()  # the collector would write to pages that workers share
            elif order in ("fork", "run"):
                template = os.getpid()
                pid = os.fork()
                if pid == 0:
                    server.close()
                    _end_with(template)
                    if order == "run":
                        _run(argument, fds[0])
                    _work(socket.socket(fileno=fds[0]), host, programs)
                os.close(fds[0])
                workers.add(pid)
                answer["pid"] = pid
            else:
                # A worker of a template that has ended has ended with it.
                answer["code"] = _end(argument) if argument in workers else None
                workers.discard(argument)
            server.sendall(json.dumps(answer).encode())
    for pid in workers:
        _end(pid)


def _end(pid: int) -> int:
    os.kill(pid, signal.SIGKILL)  # without effect on one that has ended, until it is waited for
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _end_with(parent: int) -> None:
    """Have the system end this process when its parent ends, even if it has ended already."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _run(command: list[str], fd: int) -> NoReturn:
    """Become another program, which has no environment that a guest could read."""
    try:
        if fd == PROGRAM_FD:
            os.set_inheritable(fd, True)
        else:
            os.dup2(fd, PROGRAM_FD)
        os.execve(command[0], command, {})  # noqa: S606 - no shell is needed
    finally:
        os._exit(127)


def _work(end: socket.socket, host: Host, programs: Mapping[str, Program]) -> NoReturn:
    """Answer requests in this process, a fork of the template, until the server hangs up."""
    server = _Server(Channel(end, is_trusted=True))
    host.turns = server
    logger = logging.getLogger("refllm")
    logger.handlers[:] = [_ToServer(server)]
    logger.setLevel(logging.INFO)
    services: Services | None = None
    try:
        with host:
            while True:
                path, request, given = server.channel.receive()
                if given is not None:
                    services = Services(server, **given)
                assert services is not None
                outparam = _Outparam(server)
                output = _Printed(server)
                try:
                    host.respond(programs[path], request, services, output, outparam=outparam)
                except GuestFailed as error:
                    server.channel.send("failed", str(error))
                else:
                    server.channel.send("done")
    except Gone:
        os._exit(0)
    except BaseException as error:  # noqa: BLE001 - the template's code must not run in a worker
        server.channel.send(
            "failed", f"unexpected {type(error).__name__}: {error}; this is a bug in refllm"
        )
    finally:
        os._exit(1)


class _Server:
    """The server, as the turns and the engine of a guest."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    def acquire(self) -> None:
        """Block until this process may compute."""
        self.channel.send("acquire")
        self.channel.receive()

    def release(self) -> None:
        """Let another process compute."""
        self.channel.send("release")

    def infer(
        self, model: str, prompt: str, params: InferencingParams | None = None
    ) -> InferencingResult:
        """Have the server's engine continue a prompt."""
        self.channel.send("infer", model, prompt, None if params is None else asdict(params))
        text, n_prompt, n_generated = self._answer()
        return InferencingResult(text, InferencingUsage(n_prompt, n_generated))

    def generate_embeddings(self, model: str, texts: Sequence[str]) -> EmbeddingsResult:
        """Have the server's engine embed texts."""
        self.channel.send("generate_embeddings", model, list(texts))
        embeddings, n_prompt = self._answer()
        return EmbeddingsResult(embeddings, EmbeddingsUsage(n_prompt))

    def _answer(self) -> tuple[Any, ...]:
        kind, *values = self.channel.receive()
        if kind in ERRORS:
            raise ERRORS[kind](*values)
        return tuple(values)


class _Outparam(ResponseOutparam):
    """Sends the response as it grows."""

    def __init__(self, server: _Server) -> None:
        super().__init__(self._send_news)
        self._server = server
        self._n_sent: int | None = None

    def _send_news(self) -> None:
        begun = self.begun
        assert begun is not None
        if self._n_sent is None:
            self._server.channel.send("begun", begun.status, list(begun.fields))
            self._n_sent = 0
        if len(begun.data) > self._n_sent:
            self._server.channel.send("body", bytes(begun.data[self._n_sent :]))
            self._n_sent = len(begun.data)


class _Printed(Output):
    """Sends what a guest prints."""

    def __init__(self, server: _Server) -> None:
        super().__init__()
        self._server = server

    def write(self, data: bytes) -> None:
        self._server.channel.send("printed", data)


class _ToServer(logging.Handler):
    """Sends records to the server's log."""

    def __init__(self, server: _Server) -> None:
        super().__init__()
        self._server = server

    def emit(self, record: logging.LogRecord) -> None:
        self._server.channel.send("log", record.name, record.levelno, record.getMessage())
