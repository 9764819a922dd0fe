"""A host whose guests run in processes, so that several compute at once and none ends the server.

    server: HTTP, the engine with its models      a thread for each request
      │
      ├── template: every component in memory     forks workers
      │     ├── worker: a guest, then the next
      │     └── worker
      └── a socket to each worker: requests, responses, calls of models

A fork shares the template's machine code, so that a worker takes a few MB of its own and begins in
milliseconds. There are as many workers as requests at once. As many of them compute as there are
CPUs, so that a guest's time does not pass while another guest has the CPU. A worker ends with its
guest where the client has gone, and its failure is an error of one request.

The system must be Linux: on macOS wasmtime catches traps in a thread, which a fork does not have,
and Windows has no fork.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from wasmtime.component import Linker

from refllm.errors import LlmError, LlmRuntimeError
from refllm.interface import Engine, InferencingParams
from refllm.jit.threads import available_cpus
from refllm.wasm.channel import ORDER_BYTES, Channel, Gone, JsonChannel
from refllm.wasm.compiled import compiled
from refllm.wasm.guest import (
    STOPPED,
    TICK_SECONDS,
    Allowance,
    GuestFailed,
    Limits,
    Output,
    out_of_time,
)
from refllm.wasm.host import Host, Program, Services, Wasi3Error, unexpected
from refllm.wasm.jco import HOW_TO_GET_JCO, command_of, tools_for, transpiled
from refllm.wasm.wasi.http import BegunResponse, Request, Response, ResponseOutparam

__all__ = ["WorkerHost", "host_for"]

MAX_IDLE = 8  # workers that are kept for later requests
MAX_OF_NODE = 8  # guests of WASI 0.3 at once, or one for each CPU; one in Python takes 100 MB

# The path of modules is this process's: `-m` would put the current folder before it.
PROGRAM = """
import json, sys
sys.path[:], arguments = json.loads(sys.argv[1])
from refllm.wasm.worker_process import run_template
run_template(**arguments)
"""


def host_for(limits: Limits) -> Host:
    """Return a host with a process for each request, where the system can have them."""
    return WorkerHost(limits) if sys.platform == "linux" else Host(limits)


@dataclass(eq=False, slots=True)
class _Worker:
    """A process that runs one guest at a time.

    Attributes:
        channel: Leads to it.
        pid: Its number.
        has: The component that Node runs in it, or how many components the fork has.
        services: What it got last.
    """

    channel: Channel
    pid: int
    has: Path | int
    services: Services | None = None


class WorkerHost(Host):
    """A `Host` that answers requests in processes; `call` runs a guest in this one.

    Args:
        limits: What one request may take.
        n_computing: How many guests may compute at once; by default the number of CPUs.
    """

    def __init__(self, limits: Limits | None = None, n_computing: int | None = None) -> None:
        super().__init__(limits)
        n_computing = n_computing or available_cpus()
        self._permits = threading.Semaphore(n_computing)
        # Their time passes while they have no CPU: of too many at once none would end in time.
        self._places_in_node = threading.Semaphore(max(MAX_OF_NODE, n_computing))
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._active: dict[_Worker, _Conversation] = {}
        self._of_node: dict[Path, Sequence[str]] = {}  # commands, by component of WASI 0.3
        self._template = _Template(self.limits)
        self._beginning = threading.Thread(target=self._begin, name="refllm-wasm-template")

    def __enter__(self) -> Self:
        super().__enter__()
        self._beginning.start()
        return self

    def load_handler(self, path: Path) -> Program:
        """Return a component that answers HTTP requests. Arguments, raises: as `Host`."""
        try:
            program = super().load_handler(path)
        except Wasi3Error as error:
            problem, *fixes = error.args
            tools = tools_for(path)
            if tools is None:
                raise LlmRuntimeError(problem, HOW_TO_GET_JCO, *fixes) from error
            self._of_node[path] = command_of(tools, transpiled(tools, path), self.limits)
            return Program(path, compiled(self._engine, path), Linker(self._engine))
        self._template.add(path)
        return program

    def close(self, seconds: float | None = None) -> bool:
        """End every guest and every process. Arguments, returns: as `Host`."""
        have_ended = super().close(seconds)
        self._template.close()
        self._beginning.join()
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.channel.close()
        return have_ended

    def respond(
        self,
        program: Program,
        request: Request,
        services: Services,
        output: Output | None = None,
        *,
        outparam: ResponseOutparam | None = None,
        end: threading.Event | None = None,
    ) -> Response:
        """Return the response of a new instance of `program`. Arguments, raises: as `Host`."""
        given = outparam or ResponseOutparam()
        conversation = _Conversation(
            engine=services.engine,
            output=output or Output(),
            outparam=given,
            permits=self._permits,
            end=end or threading.Event(),
            limits=self.limits,
        )
        with (
            self._counted(conversation.end),
            self._place(conversation, program.path),
            self._lent_worker(conversation, program.path) as worker,
        ):
            news = None
            if worker.services is not services:
                news = {
                    "environment": dict(services.environment),
                    "variables": dict(services.variables),
                    "files": services.files,
                }
                worker.services = services
            worker.channel.send(str(program.path.absolute()), request, news)
            failure = conversation.hold(worker.channel)
        if failure is not None:
            raise failure
        return given.response()

    def _begin(self) -> None:
        """Start the template and a worker before the first request needs them."""
        with contextlib.suppress(GuestFailed):
            worker = self._new_worker(None)
            with self._lock:
                self._idle.append(worker)

    @contextmanager
    def _place(self, conversation: _Conversation, path: Path) -> Iterator[None]:
        """Block until Node may run the guest, if it is to. Raises: GuestFailed."""
        if path not in self._of_node:
            yield
            return
        try:
            conversation.acquire(self._places_in_node)
        except Gone:
            raise GuestFailed(STOPPED) from None
        try:
            yield
        finally:
            self._places_in_node.release()

    @contextmanager
    def _lent_worker(self, conversation: _Conversation, path: Path) -> Iterator[_Worker]:
        """Lend a worker for a component, an idle or a new one; end it unless its guest has ended.

        Raises:
            GuestFailed: No process can be started, or the worker has ended before its guest.
        """
        if conversation.end.is_set():
            raise GuestFailed(STOPPED)
        component = path if path in self._of_node else None
        worker = self._idle_worker(component) or self._new_worker(component)
        conversation.has_deadline = component is not None
        with self._lock:
            self._active[worker] = conversation
        try:
            yield worker
        except BaseException as error:
            with self._lock:
                del self._active[worker]
            code = self._end(worker)
            if not isinstance(error, Gone):
                raise
            if conversation.end.is_set():
                raise GuestFailed(STOPPED) from None
            if conversation.is_late():
                raise out_of_time(self.limits.seconds) from None
            raise GuestFailed(_how_it_ended(code)) from None
        with self._lock:
            del self._active[worker]
            # One that is to end, or is late, may have been hung up on. In Node, what a guest leaves
            # that has failed is not dropped with its store.
            is_kept = (
                not conversation.must_end()
                and not (conversation.has_failed and component is not None)
                and len(self._idle) < MAX_IDLE
            )
            if is_kept:
                self._idle.append(worker)
        if not is_kept:
            self._end(worker)

    def _idle_worker(self, component: Path | None) -> _Worker | None:
        """Return a worker that has nothing to do; None if there is none.

        Args:
            component: What Node has to run; None for a fork of the template.
        """
        needed = component or self._template.n_programs
        while True:
            with self._lock:
                worker = next((each for each in self._idle if each.has == needed), None)
                if worker is None:
                    return None
                self._idle.remove(worker)
            if not worker.channel.has_news():
                return worker
            self._end(worker)

    def _new_worker(self, component: Path | None) -> _Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                if component is None:
                    pid, n_programs = self._template.fork(theirs)
                    return _Worker(Channel(ours, is_trusted=False), pid, n_programs)
                pid = self._template.run(self._of_node[component], theirs)
            except (Gone, OSError) as error:
                ours.close()
                raise GuestFailed(f"no process can be started for it: {error}") from error
        worker = _Worker(JsonChannel(ours), pid, component)
        try:
            worker.channel.receive()  # it has compiled the component, which is not the guest's time
        except Gone:
            code = self._end(worker)
            raise GuestFailed(f"no guest can be started: {_how_it_ended(code)}") from None
        return worker

    def _end(self, worker: _Worker) -> int | None:
        """End a worker; return the exit code that it had already, or None if that is not known."""
        worker.channel.close()
        return self._template.end(worker.pid)

    def _on_tick(self) -> None:
        super()._on_tick()
        with self._lock:
            for worker, conversation in self._active.items():
                if conversation.must_end():
                    worker.channel.hang_up()


@dataclass(kw_only=True)
class _Conversation:
    """What the server does for one guest in a worker.

    A fork of the template limits a guest by itself. `has_deadline` counts a guest's time here.
    """

    engine: Engine
    output: Output
    outparam: ResponseOutparam
    permits: threading.Semaphore
    end: threading.Event
    limits: Limits
    has_permit: bool = False
    has_deadline: bool = False
    has_failed: bool = False

    def __post_init__(self) -> None:
        self._allowance = Allowance(self.limits.memory_bytes)
        self._left = self.limits.seconds
        self._since: float | None = None  # when the guest's time began to pass

    def is_late(self) -> bool:
        """Return whether the guest has used up its time."""
        since = self._since
        passed = 0.0 if since is None else time.monotonic() - since
        return self.has_deadline and self._left - passed <= 0

    def must_end(self) -> bool:
        """Return whether the guest is to be ended."""
        return self.end.is_set() or self.is_late()

    def acquire(self, permits: threading.Semaphore) -> None:
        """Acquire one of several permits. Raise `Gone` if the guest is to end before."""
        while not permits.acquire(timeout=TICK_SECONDS):
            if self.end.is_set():
                raise Gone

    def hold(self, channel: Channel) -> GuestFailed | None:
        """Give the guest what it asks for until it has ended; return how it failed, if it did.

        Raises:
            Gone: The worker has ended.
            GuestFailed: The guest has used up what the host keeps for it, or the engine raised an
                exception that no engine should raise.
        """
        self._since = time.monotonic()
        try:
            while True:
                message = channel.receive()
                if message == ("done",):
                    return None
                if message[0] == "failed":
                    self.has_failed = True
                    return GuestFailed(message[1])
                self._take(message, channel)
        except (Gone, GuestFailed):
            raise
        except Exception as error:
            raise unexpected(error) from error
        finally:
            if self.has_permit:
                self.permits.release()

    def _take(self, message: tuple[Any, ...], channel: Channel) -> None:
        match message:
            case ("acquire",):
                self.acquire(self.permits)
                self.has_permit = True
                channel.send("acquired")
            case ("release",) if self.has_permit:
                self.has_permit = False
                self.permits.release()
            case ("begun", int(status), list(headers)):
                pairs = [(str(name), bytes(value)) for name, value in headers]
                self.outparam.give(BegunResponse(pairs, status))
            case ("body", bytes(data)) if self.outparam.begun is not None:
                self._allowance.spend(len(data))
                self.outparam.begun.append(data)
            case ("printed", bytes(data)):
                self.output.write(data)
            case ("log", str(name), int(level), str(text)):
                logging.getLogger(name).log(level, "%s", text)
            case ("infer", str(model), str(prompt), params):
                channel.send(*self._answer(lambda: _inferred(self.engine, model, prompt, params)))
            case ("generate_embeddings", str(model), list(texts)):
                channel.send(*self._answer(lambda: _embedded(self.engine, model, texts)))
            case _:
                raise Gone

    def _answer(self, ask: Callable[[], tuple[object, ...]]) -> tuple[object, ...]:
        """Return an engine's answer: "answer" and its values, or an error's kind and a text.

        The guest's time does not pass meanwhile.
        """
        assert self._since is not None
        self._left -= time.monotonic() - self._since
        self._since = None
        try:
            return ("answer", *ask())
        except LlmError as error:
            return (error.kind, str(error))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # an exit must not end the thread without a response
            raise unexpected(error) from error
        finally:
            self._since = time.monotonic()


class _Template:
    """The process that workers are forked from; started when the first one is needed."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._paths: list[str] = []
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._n_loaded = 0
        self._is_closed = False

    @property
    def n_programs(self) -> int:
        """How many components a new worker has."""
        return len(self._paths)

    def add(self, path: Path) -> None:
        """Let later workers have a component."""
        self._paths.append(str(path.absolute()))

    def fork(self, end: socket.socket) -> tuple[int, int]:
        """Start a worker with one end of a connection; return its number and `n_programs`.

        Raises:
            Gone: The template cannot start, or does not load a component.
            OSError: As well.
        """
        with self._lock:
            self._be_started()
            while self._n_loaded < len(self._paths):
                answer = self._ask({"load": self._paths[self._n_loaded]})
                if "error" in answer:
                    raise Gone(answer["error"])
                self._n_loaded += 1
            return self._ask({"fork": None}, [end.fileno()])["pid"], self._n_loaded

    def run(self, command: Sequence[str], end: socket.socket) -> int:
        """Start a program with one end of a connection; return its number. Raises: as `fork`."""
        with self._lock:
            self._be_started()
            pid: int = self._ask({"run": list(command)}, [end.fileno()])["pid"]
            return pid

    def end(self, pid: int) -> int | None:
        """End a worker; return the exit code that it had already, or None if that is not known."""
        with self._lock:
            if self._is_closed:
                return None
            try:
                code: int | None = self._ask({"end": pid})["code"]
            except (Gone, OSError):
                return None
            return code

    def close(self) -> None:
        """End the template and, with it, every worker."""
        with self._lock:
            self._is_closed = True
            if self._socket is not None:
                self._socket.close()
            if self._process is not None:
                self._process.kill()
                self._process.wait()

    def _be_started(self) -> None:
        """Raises: Gone, OSError."""
        if self._is_closed:
            raise Gone(STOPPED)
        if self._process is None or self._process.poll() is not None:
            self._start()

    def _start(self) -> None:
        arguments = {
            "memory_bytes": self._limits.memory_bytes,
            "seconds": self._limits.seconds,
        }
        if self._socket is not None:
            self._socket.close()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            task = [sys.path, {"fd": theirs.fileno(), **arguments}]
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", PROGRAM, json.dumps(task)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                # NumPy is imported there and not used; a fork would not have its threads.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C reaches the server only
            )
        self._n_loaded = 0

    def _ask(self, order: dict[str, object], fds: Sequence[int] = ()) -> dict[str, Any]:
        """Return the template's answer. Raises: Gone, OSError."""
        assert self._socket is not None
        socket.send_fds(self._socket, [json.dumps(order).encode()], list(fds))
        data = self._socket.recv(ORDER_BYTES)
        if not data:
            raise Gone("the process that starts others has ended")
        answer: dict[str, Any] = json.loads(data)
        return answer


def _inferred(
    engine: Engine, model: str, prompt: str, params: Mapping[str, Any] | None
) -> tuple[object, ...]:
    options = None if params is None else InferencingParams(**params)
    result = engine.infer(model, prompt, options)
    return result.text, result.usage.prompt_token_count, result.usage.generated_token_count


def _embedded(engine: Engine, model: str, texts: list[str]) -> tuple[object, ...]:
    result = engine.generate_embeddings(model, texts)
    return result.embeddings, result.usage.prompt_token_count


def _how_it_ended(code: int | None) -> str:
    if code is None:
        return "its process ended"
    if code < 0:
        return f"its process ended by signal {signal.Signals(-code).name}"
    return f"its process ended with exit code {code}"
