"""The worker: one computing thread that answers the jobs of a bounded queue, several at once.

A step of its loop is short: one token for each text, one group of texts for each embedding. Between
steps new jobs are admitted, and cancelled or late ones removed. Four reader threads meanwhile
encode the texts of new jobs and render chat templates: a megabyte of text takes a tokenizer a
second, a template may take two.

    waiting  --load-->  preparing  --prepare-->  ready  -->  running  -->  finished
             computing             reader                    computing
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue

from refllm.engine import LocalEngine
from refllm.errors import LlmError, LlmRuntimeError
from refllm.generate import Generation, step_together
from refllm.sampling import Step
from refllm.server.jobs import Counters, EmbeddingJob, Job, TextJob
from refllm.server.limits import Limits

__all__ = ["Busy", "Closed", "Restarting", "Unavailable", "Worker"]

FIRST_PAUSE_SECONDS = 1.0
MAX_PAUSE_SECONDS = 64.0
N_READERS = 4  # as many as there are processes for chat templates
MANY_CHARACTERS = 2**17  # of one job; encoding more leaves a tokenizer's memory worth trimming

logger = logging.getLogger(__name__)


class Unavailable(Exception):
    """A request is not accepted now; it may be later, or by another server."""


class Busy(Unavailable):
    """The queue is full."""


class Closed(Unavailable):
    """The server is shutting down: it finishes what it has, and accepts nothing new."""


class Restarting(Unavailable):
    """The worker has failed, and is about to restart."""


class Worker:
    """A thread that answers jobs until it is closed.

    An error in a job is that job's answer. Where the loop itself fails, every job gets an error,
    and after a pause the worker restarts with an empty queue. The pause doubles each time that the
    loop fails before it has answered anything.
    """

    def __init__(
        self, engine: LocalEngine, limits: Limits, *, pause_seconds: float = FIRST_PAUSE_SECONDS
    ) -> None:
        self.engine = engine
        self.limits = limits
        self.counters = Counters()
        self._pause_seconds = pause_seconds
        self._waiting: deque[Job] = deque()
        self._preparing: list[Job] = []
        self._ready: list[Job] = []
        self._running: deque[Job] = deque()
        self._is_blocked = False  # the first waiting job, until a job becomes ready or finishes
        self._is_closed = False
        self._is_restarting = False
        self._changed = threading.Condition()
        self._to_prepare: SimpleQueue[Job | None] = SimpleQueue()
        # Daemons, because a process that ends waits for all other threads.
        self._thread = threading.Thread(target=self._run, name="refllm-worker", daemon=True)
        self._readers = [
            threading.Thread(target=self._read, name=f"refllm-reader-{i}", daemon=True)
            for i in range(N_READERS)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in (self._thread, *self._readers):
            thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job. Raises `Busy`, `Closed` or `Restarting`."""
        with self._changed:
            if self._is_closed:
                raise Closed
            if self._is_restarting:
                raise Restarting
            if len(self._waiting) >= self.limits.max_waiting:
                raise Busy
            job.counters = self.counters
            self._waiting.append(job)
            self._changed.notify()

    def close(self, seconds: float | None = None) -> bool:
        """Accept nothing new, answer the jobs that are there, and end.

        Args:
            seconds: How long to wait for that; None waits as long as it takes.

        Returns:
            Whether it has ended.
        """
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(seconds)
        if self._thread.is_alive():
            return False
        for _ in self._readers:  # none of them prepares a job any more
            self._to_prepare.put(None)
        for reader in self._readers:
            reader.join(seconds)
        return not any(reader.is_alive() for reader in self._readers)

    @property
    def n_waiting(self) -> int:
        """The number of queued jobs."""
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        """The number of jobs that are being prepared or answered."""
        return len(self._running) + len(self._ready) + len(self._preparing)

    @property
    def is_open(self) -> bool:
        """Whether new jobs are accepted."""
        return not (self._is_closed or self._is_restarting) and self._thread.is_alive()

    @property
    def is_restarting(self) -> bool:
        """Whether the worker has failed, and will accept jobs again after its pause."""
        return self._is_restarting and not self._is_closed

    def _run(self) -> None:
        pause = self._pause_seconds
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: (
                        self._has_work
                        or (self._is_closed and not (self._waiting or self.n_running))
                    )
                )
                if not self._has_work:
                    return
            try:
                has_answered = self._step()
            except BaseException as error:  # noqa: BLE001 - else all clients would wait forever
                self._fail_all(error, pause)
                pause = min(2 * pause, MAX_PAUSE_SECONDS)
            else:
                pause = self._pause_seconds if has_answered else pause

    @property
    def _has_work(self) -> bool:
        is_blocked = self._is_blocked and self.n_running
        can_admit = self.n_running < self.limits.max_at_once and not is_blocked
        return bool(self._running or self._ready or (self._waiting and can_admit))

    def _fail_all(self, error: BaseException, pause: float) -> None:
        """Answer every job with an error, and accept nothing for `pause` seconds.

        Without a pause, an error that occurs each time would repeat as fast as it can.
        """
        with self._changed:
            self._is_restarting = True
            stages = (self._running, self._ready, self._preparing, self._waiting)
            jobs = [job for stage in stages for job in stage]
            for stage in stages:
                stage.clear()
        logger.critical(
            "the worker failed; %d requests get an error, new ones are accepted in %g s",
            len(jobs),
            pause,
            exc_info=error,
        )
        for job in jobs:
            with contextlib.suppress(BaseException):  # a disconnected client must not block others
                job.emit(_error_event(error))
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed, pause)
            self._is_restarting = False

    def _step(self) -> bool:
        """Run one step of every job; return whether an answer has ended."""
        self._admit()
        n_admitted = len(self._running)
        has_answered = any(job.is_finished for job in self._running)
        self._drop_late_and_unwanted()
        texts_by_network: dict[int, list[TextJob]] = {}
        for job in list(self._running):
            if isinstance(job, EmbeddingJob):
                self._guarded(job, job.run_step)
            elif isinstance(job, TextJob) and not job.is_finished:
                texts_by_network.setdefault(id(job.network), []).append(job)
        for jobs in texts_by_network.values():
            self._step_texts(jobs)
        n_running = len(self._running)
        self._running = deque(job for job in self._running if not job.is_finished)
        has_answered = has_answered or len(self._running) < n_running
        if len(self._running) < n_admitted:
            self._is_blocked = False
        # Rotate, so that long prompts do not starve the jobs behind them.
        self._running.rotate(-1)
        return has_answered

    def _admit(self) -> None:
        """Run the jobs that are ready, and load queued jobs up to the limit.

        A job whose model does not fit beside the models in use blocks the queue until their jobs
        are finished: else jobs for a model in use could delay it forever.
        """
        with self._changed:
            self._running += self._ready
            self._ready.clear()
            self._is_blocked = False
        while True:
            with self._changed:
                while self._waiting and not self._waiting[0].is_wanted:
                    self._waiting.popleft()
                if not self._waiting or self.n_running >= self.limits.max_at_once:
                    return
                job = self._waiting[0]
                is_alone = not self.n_running
            if not is_alone:
                try:
                    has_room = job.has_room(self.engine)
                except Exception:  # noqa: BLE001 - `load` raises it again, as the job's answer
                    has_room = True
                if not has_room:
                    with self._changed:
                        # A job that finished meanwhile may have made room.
                        self._is_blocked = bool(self.n_running)
                    return
            with self._changed:
                self._waiting.popleft()
                self._preparing.append(job)  # before it loads, so that `_fail_all` finds it
            self._guarded(job, partial(job.load, self.engine, self.limits))
            self._to_prepare.put(job)

    def _read(self) -> None:
        """Prepare one job after the other, until there is None: the loop of a reader thread."""
        while True:
            job = self._to_prepare.get()
            if job is None:
                return
            if _is_active(job):
                try:
                    job.prepare(self.engine, self.limits)
                except BaseException as error:  # noqa: BLE001 - else its client would wait forever
                    with contextlib.suppress(BaseException):  # as in `_fail_all`
                        job.emit(_logged_error_event(error))
                if job.n_characters >= MANY_CHARACTERS:
                    _trim_memory()
            with self._changed:
                if job in self._preparing:  # unless the worker has failed meanwhile
                    self._preparing.remove(job)
                    self._ready.append(job)
                self._is_blocked = False
                self._changed.notify()
            del job  # this reference would keep its model in memory

    def _drop_late_and_unwanted(self) -> None:
        now = time.monotonic()
        with self._changed:
            jobs = (*self._waiting, *self._preparing, *self._running)
            late = [job for job in jobs if now > job.deadline]
        for job in late:
            job.emit(self.limits.timeout_error())
        with self._changed:
            self._waiting = deque(filter(_is_active, self._waiting))
            self._running = deque(filter(_is_active, self._running))

    def _step_texts(self, jobs: Sequence[TextJob]) -> None:
        """Compute one token for each of the jobs, which have one network."""
        by_generation = {id(job.generation): job for job in jobs}
        try:
            outcomes = self._outcomes([job.generation for job in jobs], jobs[0])
        except Exception as error:  # noqa: BLE001 - any error is the answer of these jobs
            for job in jobs:
                job.emit(_logged_error_event(error))
            return
        for generation, outcome in outcomes:
            job = by_generation[id(generation)]
            if isinstance(outcome, LlmError):
                job.emit(outcome)
            else:
                self._guarded(job, partial(job.on_token, outcome))

    def _outcomes(
        self, generations: Sequence[Generation], job: TextJob
    ) -> list[tuple[Generation, Step | LlmError]]:
        """Return the results of a step; its tokens are counted even if it fails."""
        before = sum(generation.n_drawn for generation in generations)
        try:
            with self.engine.computing():
                return list(step_together(job.network, generations))
        finally:
            n_sampled = sum(generation.n_drawn for generation in generations) - before
            self.counters.n_generated_tokens += n_sampled

    def _guarded(self, job: Job, work: Callable[[], object]) -> None:
        """Call `work`; an error is the answer of this job, and does not end the worker."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 - any error is the answer of this job
            job.emit(_logged_error_event(error))


def _trim_memory() -> None:
    """Return free memory to the system, which glibc does only on request.

    A tokenizer allocates some 200 bytes for each byte of a text, in small pieces.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _is_active(job: Job) -> bool:
    return job.is_wanted and not job.is_finished


def _logged_error_event(error: BaseException) -> LlmError:
    """Return the error for the client; a bug of refllm is logged with its traceback."""
    if not isinstance(error, LlmError | MemoryError):
        logger.error("a request failed", exc_info=error)
    return _error_event(error)


def _error_event(error: BaseException) -> LlmError:
    if isinstance(error, LlmError):
        return error
    if isinstance(error, MemoryError):
        return LlmRuntimeError("there is not enough memory")
    return LlmRuntimeError(f"unexpected {type(error).__name__}; this is a bug in refllm")
