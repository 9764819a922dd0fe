"""The one thread that computes: it takes requests from a bounded queue and answers several at once.

A turn of its loop is short: one token for each text that is being written, one group of texts for
each embedding. Between turns requests come in, and those that nobody waits for any more go.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from refllm.api import LlmError, LlmRuntimeError
from refllm.batching import step_together
from refllm.engine import LocalEngine
from refllm.generate import Generation
from refllm.llama import Llama
from refllm.sampling import Step
from refllm.spin.server.jobs import EmbeddingJob, Job, Tally, TextJob
from refllm.spin.server.limits import Limits

__all__ = ["Busy", "Closed", "Restarting", "Unavailable", "Worker"]

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 64.0

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
        self._going: deque[Job] = deque()
        self._is_closed = False
        self._is_restarting = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="refllm-worker", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

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

    def close(self) -> None:
        """Take nothing new, answer what is there, and end; returns when that is done."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    @property
    def n_waiting(self) -> int:
        """How many jobs are not begun."""
        return len(self._waiting)

    @property
    def n_going(self) -> int:
        """How many jobs are being answered."""
        return len(self._going)

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
            self._changed.wait_for(lambda: self._going or self._waiting or self._is_closed)
            return bool(self._going or self._waiting)

    def _give_up(self, error: BaseException, pause: float) -> None:
        """Tell everyone who waits, and take nothing for so many seconds.

        Without a pause, what fails each time would do so as fast as it can.
        """
        with self._changed:
            self._is_restarting = True
            jobs = [*self._going, *self._waiting]
            self._going.clear()
            self._waiting.clear()
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
        self._drop_late_and_unwanted()
        for job in [job for job in self._going if isinstance(job, EmbeddingJob)]:
            self._guarded(job, job.take_turn)
        for jobs in self._texts_by_network():
            self._step(jobs[0].network, jobs)
        n_going = len(self._going)
        self._going = deque(job for job in self._going if not job.is_over)
        has_answered = len(self._going) < n_going
        # Who did not have a turn because those in front had much to read comes nearer.
        self._going.rotate(-1)
        return has_answered

    def _admit(self) -> None:
        """Begin jobs from the queue, as long as fewer are going than may.

        A job whose model does not fit beside those in use waits until their jobs are over, and so
        do the jobs behind it: else those for a model in use could keep it waiting forever.
        """
        while len(self._going) < self.limits.max_at_once:
            with self._changed:
                while self._waiting and not self._waiting[0].is_wanted:
                    self._waiting.popleft()
                if not self._waiting:
                    return
                job = self._waiting[0]
            if self._going and not self._has_room(job):
                return
            with self._changed:
                self._waiting.popleft()
                self._going.append(job)  # before it begins: whatever that does, it is not lost
            self._guarded(job, partial(job.begin, self.engine, self.limits))

    def _has_room(self, job: Job) -> bool:
        try:
            return job.has_room(self.engine)
        except Exception:  # noqa: BLE001 - `begin` fails in the same way, which is the job's answer
            return True

    def _drop_late_and_unwanted(self) -> None:
        now = time.monotonic()
        with self._changed:
            late = [job for job in (*self._waiting, *self._going) if now > job.deadline]
        seconds = self.limits.request_seconds
        for job in late:
            message = f"the request took longer than this server's limit of {seconds:g} s"
            job.hand_over(LlmRuntimeError(f"{message}; ask for less, or raise the limit"))
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
        except Exception as error:  # noqa: BLE001 - see `_guarded`
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
        except Exception as error:  # noqa: BLE001 - the other jobs go on
            job.hand_over(_as_llm_error(error))


def _is_to_be_answered(job: Job) -> bool:
    return job.is_wanted and not job.is_over


def _as_llm_error(error: Exception) -> LlmError:
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
