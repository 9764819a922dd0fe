"""A run over files on the machines of a Ray cluster: the same parts, byte for byte.

    this machine                 any node                        this machine
    one task                     actors with the model           the calling process
    files -- windows of rows --- results of a window ----------- parts of Parquet, the manifest
             at most AHEAD       in any order; a window of a     a part is written once all
             for each actor      lost node is computed again     windows of it are here

Ray Data moves the windows (`map_batches`). Files are read and written on the machine of the calling
process alone, so nodes need no shared folder, and a run is resumed as a local one, or by one. No
bit of a row depends on the node that computes it.

Each node finds the model as the calling process does, by its name or path, and refuses other bytes.
`send_model` lets nodes receive it through Ray's object store instead.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import platform
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, closing, contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock

from refllm import NUMERICS_REVISION, __version__
from refllm.batch.reader import Input, Window
from refllm.batch.rows import Embedder, RowFunction
from refllm.batch.writer import model_files, model_sha256
from refllm.engine import LocalEngine
from refllm.errors import InvalidInput, LlmError, LlmRuntimeError, how_to_install
from refllm.jit.threads import default_threads
from refllm.models.find import (
    find_embedding_model,
    find_inferencing_model,
    pulled_models_root,
)

__all__ = ["LOCAL", "Cluster", "connected"]

LOCAL = "local"
"""The address that stands for a cluster of this machine alone, started for one run."""

ANSWER_SECONDS = 10.0  # for a TCP connection to a cluster's head
CONNECT_SECONDS = 90.0  # for Ray's own client to connect to it
STARTS = 3  # of a cluster on this machine; Ray gives up after 30 s, which a busy machine can need
CHECK_SECONDS = 900.0  # for the nodes to hash the model
STORE_BYTES = 256 * 2**20  # of the object store of a cluster that is started here
MAX_TEMPORARY = 40  # characters; a socket's path has at most 107, and Ray appends most of them
IN_FLIGHT = 2  # windows of an actor: one that it computes, one on its way
AHEAD = 4  # windows of each actor that are read and not yet here as results
CHUNK_BYTES = 2**25  # of a model's file in the object store

# Set before Ray is imported, which reads some of them at once; the processes that it starts inherit
# them. Usage statistics are on unless they are switched off.
ENVIRONMENT: Mapping[str, str] = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# Ray replaces 127.0.0.1 by the address of the machine, on which every port is reachable from
# outside, unless clusters are switched off by this variable, whose name is of other systems.
ONLY_THIS_MACHINE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"

CONNECT = """\
import sys
import ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
except Exception as error:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).split("\\n")
    lines = [line for line in lines if line.strip()][-1:] if "Traceback" in str(error) else lines
    sys.exit(" ".join(" ".join(lines).split()))
"""
"""Connects and ends. In a process of its own, because Ray retries without end in C++."""


@contextmanager
def connected(
    address: str, *, threads: int | None = None, send_model: bool = False
) -> Iterator[Cluster]:
    """Connect this process to a Ray cluster, or start one on this machine, for the `with` block.

    A cluster that is started here sends no usage statistics, has no dashboard, listens on loopback
    only, there refuses clients without its token, and ends with the block.

    Args:
        address: "local"; "auto" for the cluster that runs on this machine; or HOST:PORT of a
            cluster's head. This machine must be one of its nodes.
        threads: The CPUs of an actor; None for all of the node that has the fewest.
        send_model: Whether nodes receive the model's files from this machine, through Ray's object
            store, instead of finding it themselves.

    Raises:
        InvalidInput: For an address of another form.
        LlmRuntimeError: If Ray is not installed, or no cluster that fits answers at the address.
    """
    _check_address(address)
    with ExitStack() as stack:
        if sys.stderr is None:  # closed, as by 2>&-; Ray refuses to start without one
            nowhere = stack.enter_context(Path(os.devnull).open("w"))
            stack.enter_context(redirect_stderr(nowhere))
        is_local = address == LOCAL
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if is_local:
            os.environ.setdefault(ONLY_THIS_MACHINE, "0")
            # Ray would write a token into the home directory, and clusters that are started later
            # would demand it.
            if os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
                os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        ray = _imported()
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        options: dict[str, Any] = {"address": address}
        if is_local:
            prefix = "refllm-ray-"
            long = len(tempfile.gettempdir()) > MAX_TEMPORARY
            folder = tempfile.mkdtemp(prefix=prefix, dir="/tmp" if long else None)  # noqa: S108
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            options |= {
                "num_cpus": default_threads(os.environ),
                "include_dashboard": False,
                "object_store_memory": STORE_BYTES,
                "_node_ip_address": "127.0.0.1",
                "_temp_dir": folder,
            }
        else:
            _require_answer(address)
        stack.callback(ray.shutdown)
        for n_left in reversed(range(STARTS if is_local else 1)):
            try:
                with _without_standard_error():
                    ray.init(log_to_driver=False, logging_level="ERROR", **options)
                break
            except Exception as error:  # of whatever class; a slow start's is Exception itself
                if not n_left:
                    raise LlmRuntimeError(f"Ray cannot be started: {_line(error)}") from error
                ray.shutdown()
        yield Cluster(threads=threads, send_model=send_model, is_local=is_local)


@contextmanager
def _without_standard_error() -> Iterator[None]:
    """Discard what Ray's C++ writes about its own settings before its level of logging counts."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _imported() -> Any:
    """Return Ray's module, with Ray Data. Raises `LlmRuntimeError` if it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray
            import ray.data
            import ray.exceptions
    except ImportError as error:
        raise LlmRuntimeError(
            f"--ray needs the package {error.name or 'ray'}", how_to_install("ray")
        ) from error
    return ray


def _check_address(address: str) -> None:
    if address in (LOCAL, "auto"):
        return
    host, separator, port = address.rpartition(":")
    is_port = port.isascii() and port.isdigit() and 0 < int(port) < 2**16
    if "://" in address or not (host and separator and is_port):
        raise InvalidInput(
            f"{address!r:.80} is no address of a Ray cluster",
            "it is local, auto (the cluster that runs on this machine), or HOST:PORT of its head, "
            "as ray start prints it; the port is 6379 unless chosen",
            "run the command on a node of the cluster: ray:// cannot be used",
        )


def _require_answer(address: str) -> None:
    """Raise `LlmRuntimeError` unless a cluster answers that this process can connect to."""
    advice = f"to start a cluster's head: ray start --head; then --ray auto, or --ray {LOCAL} alone"
    if address != "auto":
        host, _, port = address.rpartition(":")
        try:
            with closing(socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS)):
                pass
        except OSError as error:
            reason = error.strerror or str(error)
            raise LlmRuntimeError(f"no Ray cluster at {address}: {reason}", advice) from error
    try:
        done = subprocess.run(
            [sys.executable, "-c", CONNECT, address],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CONNECT_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise LlmRuntimeError(
            f"no Ray cluster at {address}: what answers there is none, or this machine is no node "
            f"of it (after {CONNECT_SECONDS:.0f} s)",
            advice,
        ) from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        if "Version mismatch" in lines[-1]:
            advice = "install the same versions of Ray and Python on all nodes"
        if "AuthenticationError" in lines[-1]:
            advice = (
                "it demands a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN unless the token "
                "is in ~/.ray/auth_token; --ray auto finds that file itself"
            )
        raise LlmRuntimeError(f"the Ray cluster at {address} cannot be used: {lines[-1]}", advice)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The Ray cluster that this process is connected to.

    Attributes:
        threads: The CPUs of an actor; None for all of the node that has the fewest.
        send_model: Whether nodes receive the model's files from this machine.
        is_local: Whether it was started by this process.
    """

    threads: int | None
    send_model: bool
    is_local: bool

    def computed(
        self,
        function: RowFunction,
        rows: Input,
        identity: Mapping[str, Any],
        done: AbstractSet[int],
    ) -> Iterator[tuple[Window, pa.RecordBatch]]:
        """Yield the windows of all parts that are not done, with their results.

        Part by part, each as soon as all of it is computed, so the parts are in any order. The
        windows of a part are in order. For `refllm.batch.local.run`.

        Args:
            function: The function.
            rows: The input.
            identity: As `refllm.batch.local.identity_of` returns it.
            done: The numbers of the parts that are left out.

        Raises:
            InvalidInput: If a node's versions or model are others, naming the node; and as
                `Input.windows`, after all windows before it are computed.
            ModelNotSupported: As `RowFunction.run`.
            LlmRuntimeError: As both, and for what Ray raises.
        """
        ray = _imported()
        n_cpus = {
            node["NodeID"]: int(node["Resources"].get("CPU", 0))
            for node in ray.nodes()
            if node["Alive"]
        }
        n_cpus = {node: n for node, n in n_cpus.items() if n}
        threads = self.threads or min(n_cpus.values(), default=1)
        n_actors = sum(n // threads for n in n_cpus.values())
        if not n_actors:
            raise InvalidInput(
                f"no node of the Ray cluster has {threads} CPUs; the largest has "
                f"{max(n_cpus.values(), default=0)}: name fewer by --threads"
            )
        engine = function.engine
        path = function.loaded.path
        model = function.model
        asked = _Asked(
            function=replace(  # type: ignore[type-var]
                function,
                model=model.absolute() if isinstance(model, Path) else model,
                threads=threads,
                stand_ins=engine.stand_ins,
            ),
            versions=_versions(),
            sha256=identity["model"]["sha256"],
            sent=_put(ray, path) if self.send_model else None,
        )
        try:
            if not self.is_local:
                _check_nodes(ray, asked, [node for node, n in n_cpus.items() if n >= threads])
            with closing(_results(ray, asked, rows, done, n_actors)) as results:
                yield from _whole_parts(results, rows)
        except ray.exceptions.RayError as error:
            raise LlmRuntimeError(f"Ray: {_line(error)}") from error


# --- What runs on the nodes ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    """A model in the object store.

    Attributes:
        path: In the folder of its files: the file to open, or "." for a folder.
        chunks: Of each file by its name, references to its bytes, uint8.
    """

    path: str
    chunks: Mapping[str, Sequence[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What a node is asked to compute, and with what.

    Attributes:
        function: The function; it has not loaded its model.
        versions: As `_versions` returns them on the machine of the calling process.
        sha256: Of the model's files, as `model_sha256` returns it.
        sent: The model in the object store; None if nodes find it themselves.
    """

    function: RowFunction
    versions: Mapping[str, object]
    sha256: str
    sent: _Sent | None

    def model_here(self) -> Path:
        """Return the path of the model on this node.

        Raises:
            InvalidInput: If it is missing, or has other bytes.
            ModelNotSupported: If an embedding model is missing.
            LlmRuntimeError: If it cannot be read.
        """
        if self.sent is not None:
            return _received(self.sent, self.sha256)
        function = self.function
        path = function.model
        if isinstance(path, str):
            is_embedder = isinstance(function, Embedder)
            find = find_embedding_model if is_embedder else find_inferencing_model
            engine = LocalEngine(roots=function.roots, stand_ins=function.stand_ins)
            path = find(engine.answering_model(path), engine.roots)
        if not path.exists():
            raise InvalidInput(f"there is no model at {path}")
        sha256 = model_sha256(path)
        if sha256 != self.sha256:
            raise InvalidInput(
                f"the model {path} has the SHA-256 {sha256[:16]}…, and that of the machine which "
                f"starts the run has {self.sha256[:16]}…"
            )
        return path

    def why_unusable(self) -> str | None:
        """Return why this node cannot take part, or None."""
        differing = [
            f"{name} {here} instead of {self.versions[name]}"
            for name, here in _versions().items()
            if here != self.versions[name]
        ]
        if differing:
            return f"it has {', '.join(differing)}"
        try:
            if self.sent is None:
                self.model_here()
        except LlmError as error:
            return str(error.args[0])
        return None


class _Computing:
    """The actor of Ray Data: computes windows with a model that it loads once."""

    def __init__(self, asked: _Asked) -> None:
        self._asked = asked
        self._function: RowFunction | None = None

    def __call__(self, batch: Mapping[str, Any]) -> Mapping[str, list[bytes]]:
        """Return the result of each window of a batch, pickled, or the error that ends the run."""
        return {"result": [pickle.dumps(self._result(data)) for data in batch["window"]]}

    def _result(self, data: bytes) -> _Result | LlmError:
        numbered = pickle.loads(data)  # noqa: S301 - from `_numbered`, through Ray
        if isinstance(numbered, LlmError):
            return numbered
        try:
            if self._function is None:
                self._function = replace(  # type: ignore[type-var]
                    self._asked.function, model=self._asked.model_here()
                )
            (results,) = self._function.run([numbered.window.columns])
        except LlmError as error:
            return _plain(error)
        return _Result(replace(numbered, window=replace(numbered.window, columns={})), results)


@dataclass(frozen=True, slots=True)
class _Numbered:
    """A window and its place among those of its part.

    Attributes:
        window: The window; `is_last` is certain.
        place: From 0 on.
        fraction: As `Input.fraction`.
    """

    window: Window
    place: int
    fraction: float


@dataclass(frozen=True, slots=True)
class _Result:
    """The results of a window, which has its rows' ids, but not their columns."""

    numbered: _Numbered
    batch: pa.RecordBatch


def _numbered(rows: Input, done: AbstractSet[int]) -> Iterator[_Numbered | LlmError]:
    """Yield the windows of rows, and the error of reading as the last item."""
    before: _Numbered | None = None
    try:
        for window in rows.windows(done.__contains__):
            is_same = before is not None and window.part == before.window.part
            place = before.place + 1 if before is not None and is_same else 0
            if before is not None:
                yield replace(before, window=replace(before.window, is_last=not is_same))
            before = _Numbered(window, place, rows.fraction)
    except LlmError as error:
        if before is not None and before.window.is_last:
            yield before
        yield _plain(error)
        return
    if before is not None:
        yield replace(before, window=replace(before.window, is_last=True))


def _versions() -> dict[str, object]:
    """Return what must be the same on all nodes. Ray compares its own version and Python's."""
    return {
        "refllm": __version__,
        "revision of the numerics": NUMERICS_REVISION,
        "Python": platform.python_version().rpartition(".")[0],
    }


def _plain(error: LlmError) -> LlmError:
    """Return an error of the same class that can be pickled."""
    return type(error)(*map(str, error.args))


def _received(sent: _Sent, sha256: str) -> Path:
    """Return the path of a model that was sent to this node, written once for all actors.

    The folder is $REFLLM_HOME/sent-models/SHA256; a later run uses it again.
    """
    import ray

    folder = pulled_models_root().parent / "sent-models" / sha256
    path = folder / sent.path
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{sha256}.lock")):
            if folder.exists() and model_sha256(path) == sha256:
                return path
            unfinished = folder.with_name(f".{sha256}.{os.getpid()}")
            for name, chunks in sent.chunks.items():
                file = unfinished / name
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("wb") as stream:
                    for chunk in chunks:
                        stream.write(ray.get(chunk))
            shutil.rmtree(folder, ignore_errors=True)
            unfinished.rename(folder)
    except OSError as error:
        raise LlmRuntimeError(f"the model that was sent cannot be written: {error}") from error
    return path


# --- What runs in the calling process ------------------------------------------------------------


def _put(ray: Any, path: Path) -> _Sent:
    """Put the files of a model into the object store."""
    chunks: dict[str, list[Any]] = {}
    for name, file in model_files(path).items():
        chunks[name] = []
        with file.open("rb") as stream:
            while data := stream.read(CHUNK_BYTES):
                chunks[name].append(ray.put(np.frombuffer(data, np.uint8)))
    return _Sent(path="." if path.is_dir() else path.name, chunks=chunks)


def _check_nodes(ray: Any, asked: _Asked, nodes: Sequence[str]) -> None:
    """Raise `InvalidInput` for the nodes that cannot take part."""
    address = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    why = ray.remote(_Asked.why_unusable)
    answers = {
        why.options(num_cpus=0, scheduling_strategy=_on(node)).remote(asked): node for node in nodes
    }
    ready, late = ray.wait(list(answers), num_returns=len(answers), timeout=CHECK_SECONDS)
    reasons = {answers[each]: f"no answer in {CHECK_SECONDS:.0f} s" for each in late}
    for each in ready:
        try:
            reason = ray.get(each)
        except ray.exceptions.TaskUnschedulableError:
            continue  # the node is gone
        except ray.exceptions.RayError as error:
            reason = _line(error)
        if reason is not None:
            reasons[answers[each]] = reason
    if reasons:
        raise InvalidInput(
            *(
                f"the node {address[node]} ({node[:8]}) cannot compute: {reason}"
                for node, reason in sorted(reasons.items())
            ),
            f"every node needs refllm {__version__} and the same model by the same name or path; "
            "--send-model sends the model's files to the nodes",
        )


def _on(node: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)


class _Ahead:
    """The actor that limits how far reading is ahead: Ray Data stores without a limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._n_taken = 0
        self._has_room = asyncio.Condition()

    async def take(self, n: int) -> None:
        """Store that n results in all have arrived."""
        async with self._has_room:
            self._n_taken = max(self._n_taken, n)
            self._has_room.notify_all()

    async def room_for(self, n: int) -> None:
        """Return once n windows in all may be read."""
        async with self._has_room:
            await self._has_room.wait_for(lambda: n <= self._n_taken + self._limit)


def _results(
    ray: Any, asked: _Asked, rows: Input, done: AbstractSet[int], n_actors: int
) -> Generator[_Result, None, None]:
    """Yield the results of all windows, in any order.

    Raises:
        LlmError: Of a window or of reading, once all other results have been yielded.
    """
    home = _on(ray.get_runtime_context().get_node_id())
    ahead = (
        ray.remote(_Ahead)
        .options(num_cpus=0, scheduling_strategy=home, max_restarts=-1, max_task_retries=-1)
        .remote(AHEAD * n_actors)
    )

    def read(_: object) -> Iterator[Mapping[str, list[bytes]]]:
        for n, each in enumerate(_numbered(rows, done), 1):
            ray.get(ahead.room_for.remote(n))
            yield {"window": [pickle.dumps(each)]}

    context = ray.data.DataContext.get_current()
    context.target_max_block_size = 1  # each window is a block, and is moved and lost alone
    context.enable_progress_bars = False
    # A part is written once it is complete. In the order of the input, the results behind a window
    # of a lost node, which waits for a place, would fill the memory.
    context.execution_options.preserve_order = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = (
            ray.data.from_items([0], override_num_blocks=1)
            .map_batches(read, batch_size=None, num_cpus=0, scheduling_strategy=home)
            .map_batches(
                _Computing,
                batch_size=1,
                fn_constructor_args=(asked,),
                compute=ray.data.ActorPoolStrategy(
                    min_size=1,
                    max_size=n_actors,
                    initial_size=n_actors,
                    max_tasks_in_flight_per_actor=IN_FLIGHT,
                ),
                num_cpus=asked.function.threads,
                scheduling_strategy="SPREAD",
            )
        )
    failed: LlmError | None = None
    for n, row in enumerate(dataset.iter_rows(), 1):
        ahead.take.remote(n)
        result = pickle.loads(row["result"])  # noqa: S301 - from `_Computing`, through Ray
        if isinstance(result, LlmError):
            failed = failed or result
        else:
            yield result
    if failed is not None:
        raise failed


def _whole_parts(
    results: Iterable[_Result], rows: Input
) -> Iterator[tuple[Window, pa.RecordBatch]]:
    """Yield windows part by part, each part once it is complete."""
    incomplete: dict[int, dict[int, _Result]] = {}
    for result in results:
        rows.fraction = max(rows.fraction, result.numbered.fraction)
        part = incomplete.setdefault(result.numbered.window.part, {})
        part[result.numbered.place] = result
        last = max(part)
        if part[last].numbered.window.is_last and len(part) == last + 1:
            del incomplete[result.numbered.window.part]
            yield from ((part[i].numbered.window, part[i].batch) for i in range(last + 1))


def _line(error: BaseException) -> str:
    """Return the cause of an error of Ray in one line: its text has whole tracebacks."""
    cause = getattr(error, "cause", None)
    shown = cause if isinstance(cause, BaseException) else error
    lines = [line.strip() for line in str(shown).splitlines() if line.strip()]
    return f"{type(shown).__name__}: {lines[-1] if lines else ''}"
