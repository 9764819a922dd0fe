"""The one thread that computes: it takes requests from a bounded queue and answers several at once.

A turn of its loop is short: one token for each text that is being written, one group of texts for
each embedding. Between turns requests come in, and those that nobody waits for any more go. A new
request's texts are read into tokens, and a chat's template is rendered, by a few other threads
meanwhile: a megabyte of text takes a tokenizer a second, a template may take two.

    waiting  --load-->  beginning  --begin-->  begun  -->  going  -->  over
             computing             reader                  computing
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
from refllm.llama import Llama
from refllm.sampling import Step
from refllm.server.jobs import EmbeddingJob, Job, Tally, TextJob
from refllm.server.limits import Limits

__all__ = ["Busy", "Closed", "Restarting", "Unavailable", "Worker"]

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 64.0
# So many texts are read at once: as many as there are processes for chat templates.
N_READERS = 4
MANY_CHARACTERS = 2**17  # of one request, for which the memory of a tokenizer is worth a look

logger = logging.getLogger(__name__)


class Unavailable(Exception):
    """A request is not taken now; it may be later, or elsewhere."""


class Busy(Unavailable):
    """As many requests wait as may; come again."""


class Closed(Unavailable):
    """The server finishes what it has, and takes nothing new."""


class Restarting(Unavailable):
    """The worker has failed, and is about to begin again."""


class Worker:
    """A thread that answers jobs until it is closed.

    What goes wrong with a job is that job's answer. Where the loop itself fails, every job gets an
    error, and after a pause the worker begins again with none; the pause is twice as long each time
    that it fails before it has answered anything.
    """

    def __init__(
        self, engine: LocalEngine, limits: Limits, *, pause_seconds: float = FIRST_PAUSE_SECONDS
    ) -> None:
        self.engine = engine
        self.limits = limits
        self.tally = Tally()
        self._pause_seconds = pause_seconds
        self._waiting: deque[Job] = deque()
        self._beginning: list[Job] = []
        self._begun: list[Job] = []
        self._going: deque[Job] = deque()
        self._has_to_wait = False  # the first that waits, until another job has begun or ended
        self._is_closed = False
        self._is_restarting = False
        self._changed = threading.Condition()
        self._to_read: SimpleQueue[Job | None] = SimpleQueue()
        # Daemons, because a process that ends waits for all other threads.
        self._thread = threading.Thread(target=self._run, name="refllm-worker", daemon=True)
        self._readers = [
            threading.Thread(target=self._read, name=f"refllm-reader-{i}", daemon=True)
            for i in range(N_READERS)
        ]

    def start(self) -> None:
        """Begin to answer."""
        for thread in (self._thread, *self._readers):
            thread.start()

    def submit(self, job: Job) -> None:
        """Take a job in. Errors: `Busy`, `Closed`, `Restarting`."""
        with self._changed:
            if self._is_closed:
                raise Closed
            if self._is_restarting:
                raise Restarting
            if len(self._waiting) >= self.limits.max_waiting:
                raise Busy
            job.tally = self.tally
            self._waiting.append(job)
            self._changed.notify()

    def close(self, seconds: float | None = None) -> bool:
        """Take nothing new, answer what is there, and end.

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
        for _ in self._readers:  # none of which reads anything any more
            self._to_read.put(None)
        for reader in self._readers:
            reader.join(seconds)
        return not any(reader.is_alive() for reader in self._readers)

    @property
    def n_waiting(self) -> int:
        """How many jobs are not begun."""
        return len(self._waiting)

    @property
    def n_going(self) -> int:
        """How many jobs are being answered, those that begin included."""
        return len(self._going) + len(self._begun) + len(self._beginning)

    @property
    def is_open(self) -> bool:
        """Whether new jobs are taken."""
        return not (self._is_closed or self._is_restarting) and self._thread.is_alive()

    @property
    def is_restarting(self) -> bool:
        """Whether the worker has failed, and will take new jobs in a while."""
        return self._is_restarting and not self._is_closed

    def _run(self) -> None:
        pause = self._pause_seconds
        while self._has_work():
            try:
                has_answered = self._turn()
            except BaseException as error:  # noqa: BLE001 - else everyone would wait forever
                self._give_up(error, pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            else:
                pause = self._pause_seconds if has_answered else pause

    def _has_work(self) -> bool:
        """Wait for some; False where nothing is left and nothing will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._can_go_on or self._is_at_its_end)
            return self._can_go_on

    @property
    def _can_go_on(self) -> bool:
        has_to_wait = self._has_to_wait and self.n_going
        has_place = self.n_going < self.limits.max_at_once and not has_to_wait
        return bool(self._going or self._begun or (self._waiting and has_place))

    @property
    def _is_at_its_end(self) -> bool:
        return self._is_closed and not (self._waiting or self.n_going)

    def _give_up(self, error: BaseException, pause: float) -> None:
        """Tell everyone who waits, and take nothing for so many seconds.

        Without a pause, what fails each time would do so as fast as it can.
        """
        with self._changed:
            self._is_restarting = True
            stages = (self._going, self._begun, self._beginning, self._waiting)
            jobs = [job for stage in stages for job in stage]
            for stage in stages:
                stage.clear()
        logger.critical(
            "the worker failed; %d requests get an error, new ones are taken in %g s",
            len(jobs),
            pause,
            exc_info=error,
        )
        for job in jobs:
            with contextlib.suppress(BaseException):  # who cannot be told keeps nobody waiting
                job.hand_over(_told(error))
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed, pause)
            self._is_restarting = False

    def _turn(self) -> bool:
        """One for everyone; whether somebody's answer has ended."""
        self._admit()
        n_admitted = len(self._going)
        has_answered = any(job.is_over for job in self._going)
        self._drop_late_and_unwanted()
        for job in [job for job in self._going if isinstance(job, EmbeddingJob)]:
            self._guarded(job, job.take_turn)
        for jobs in self._texts_by_network():
            self._step(jobs[0].network, jobs)
        n_going = len(self._going)
        self._going = deque(job for job in self._going if not job.is_over)
        has_answered = has_answered or len(self._going) < n_going
        if len(self._going) < n_admitted:
            self._has_to_wait = False
        # Who did not have a turn because those in front had much to read comes nearer.
        self._going.rotate(-1)
        return has_answered

    def _admit(self) -> None:
        """Take what has begun, and load jobs from the queue, as long as fewer are going than may.

        A job whose model does not fit beside those in use waits until their jobs are over, and so
        do the jobs behind it: else those for a model in use could keep it waiting forever.
        """
        with self._changed:
            self._going += self._begun
            self._begun.clear()
            self._has_to_wait = False
        while True:
            with self._changed:
                while self._waiting and not self._waiting[0].is_wanted:
                    self._waiting.popleft()
                if not self._waiting or self.n_going >= self.limits.max_at_once:
                    return
                job = self._waiting[0]
                is_alone = not self.n_going
            if not is_alone and not self._has_room(job):
                with self._changed:
                    # What ended meanwhile may have made room.
                    self._has_to_wait = bool(self.n_going)
                return
            with self._changed:
                self._waiting.popleft()
                self._beginning.append(job)  # before it loads: whatever that does, it is not lost
            self._guarded(job, partial(job.load, self.engine, self.limits))
            self._to_read.put(job)

    def _read(self) -> None:
        """Begin one job after the other: what a reader does until there is None to begin."""
        while True:
            job = self._to_read.get()
            if job is None:
                return
            if _is_to_be_answered(job):
                self._begin(job)
            with self._changed:
                if job in self._beginning:  # unless the worker has failed meanwhile
                    self._beginning.remove(job)
                    self._begun.append(job)
                self._has_to_wait = False
                self._changed.notify()
            del job  # which keeps its model in memory

    def _begin(self, job: Job) -> None:
        try:
            job.begin(self.engine, self.limits)
        except BaseException as error:  # noqa: BLE001 - else everyone would wait forever
            with contextlib.suppress(BaseException):  # as `_give_up`
                job.hand_over(_as_llm_error(error))
        if job.n_characters >= MANY_CHARACTERS:
            _trim_memory()

    def _has_room(self, job: Job) -> bool:
        try:
            return job.has_room(self.engine)
        except Exception:  # noqa: BLE001 - `load` fails in the same way, which is the job's answer
            return True

    def _drop_late_and_unwanted(self) -> None:
        now = time.monotonic()
        with self._changed:
            jobs = (*self._waiting, *self._beginning, *self._going)
            late = [job for job in jobs if now > job.deadline]
        for job in late:
            job.hand_over(self.limits.took_too_long())
        with self._changed:
            self._waiting = deque(filter(_is_to_be_answered, self._waiting))
            self._going = deque(filter(_is_to_be_answered, self._going))

    def _texts_by_network(self) -> list[list[TextJob]]:
        texts: dict[int, list[TextJob]] = {}
        for job in self._going:
            if isinstance(job, TextJob) and not job.is_over:
                texts.setdefault(id(job.network), []).append(job)
        return list(texts.values())

    def _step(self, network: Llama, jobs: Sequence[TextJob]) -> None:
        """One token for each of the jobs."""
        by_generation = {id(job.generation): job for job in jobs}
        try:
            outcomes = self._outcomes(network, [job.generation for job in jobs])
        except Exception as error:  # noqa: BLE001 - whatever it is, the other end wants to know
            for job in jobs:
                job.hand_over(_as_llm_error(error))
            return
        for generation, outcome in outcomes:
            job = by_generation[id(generation)]
            if isinstance(outcome, LlmError):
                job.hand_over(outcome)
            else:
                self._guarded(job, partial(job.take, outcome))

    def _outcomes(
        self, network: Llama, generations: Sequence[Generation]
    ) -> list[tuple[Generation, Step | LlmError]]:
        """What a step gives; what it draws is counted, whatever becomes of it."""
        before = sum(generation.n_drawn for generation in generations)
        try:
            with self.engine.computing():
                return list(step_together(network, generations))
        finally:
            n_drawn = sum(generation.n_drawn for generation in generations) - before
            self.tally.n_generated_tokens += n_drawn

    def _guarded(self, job: Job, work: Callable[[], object]) -> None:
        """Do it; what goes wrong is this job's answer, and never the worker's end."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 - whatever it is, the other end wants to know
            job.hand_over(_as_llm_error(error))


def _trim_memory() -> None:
    """Give memory that is free back to the system, which glibc does only when it is told to.

    A tokenizer takes some 200 bytes for each byte of a text, in pieces that are small.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _is_to_be_answered(job: Job) -> bool:
    return job.is_wanted and not job.is_over


def _as_llm_error(error: BaseException) -> LlmError:
    """What a client is told; what is nobody's mistake but ours is logged in full."""
    if not isinstance(error, LlmError | MemoryError):
        logger.error("a request failed", exc_info=error)
    return _told(error)


def _told(error: BaseException) -> LlmError:
    if isinstance(error, LlmError):
        return error
    if isinstance(error, MemoryError):
        return LlmRuntimeError("there is not enough memory")
    return LlmRuntimeError(f"unexpected {type(error).__name__}; this is a bug in refllm")
