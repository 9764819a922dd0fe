"""Jobs of the server's worker that need no model."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from refllm.engine import LocalEngine
from refllm.server.jobs import EmbeddingJob, Event, Finished
from refllm.server.limits import Limits
from tests.conftest import HUNG_SECONDS

__all__ = ["Held", "ModellessJob"]


class ModellessJob(EmbeddingJob):
    """A job that loads no model and reads no text."""

    def load(self, engine: LocalEngine, limits: Limits) -> None:
        """Load nothing."""

    def prepare(self, engine: LocalEngine, limits: Limits) -> None:
        """Read nothing."""


class Held(ModellessJob):
    """A job whose step begins with a release of `turns` and blocks until `may_go_on`."""

    def __init__(self) -> None:
        deadline = time.monotonic() + HUNG_SECONDS
        super().__init__("model", [], deliver=self.note, deadline=deadline)
        self.events: list[Event] = []
        self.turns, self.may_go_on = threading.Semaphore(0), threading.Semaphore(0)
        self.is_last = False

    def note(self, events: Sequence[Event]) -> None:
        self.events += events

    def run_step(self) -> None:
        self.turns.release()
        assert self.may_go_on.acquire(timeout=HUNG_SECONDS)
        if self.is_last:
            self.emit(Finished(1))
