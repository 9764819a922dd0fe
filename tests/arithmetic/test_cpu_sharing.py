"""The number of threads follows what other processes leave of the CPUs."""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from refllm.jit.cpu_sharing import MS, CpuSharing, waited_ns
from refllm.jit.threads import available_cpus, default_threads

STEP_NS = MS // 10  # between two kernels


@dataclass
class Machine:
    """CPUs that threads and busy processes share evenly, as a scheduler shares them."""

    n_cpus: int
    n_busy: int = 0
    now_ns: int = 0
    waited: dict[int, float] = field(default_factory=dict)
    counts_waits: bool = True

    def clock(self) -> int:
        return self.now_ns

    def counts(self) -> Mapping[int, int]:
        return {i: int(ns) for i, ns in self.waited.items()} if self.counts_waits else {}

    def sharing(self) -> CpuSharing:
        self.waited = dict.fromkeys(range(self.n_cpus), 0.0)
        return CpuSharing(self.n_cpus, waited=self.counts, clock=self.clock)

    def run(self, sharing: CpuSharing, ms: int) -> list[int]:
        """Kernels for so long; the number of threads of each."""
        numbers = []
        for _ in range(ms * MS // STEP_NS):
            n_threads = sharing.n_threads()
            n_ready = n_threads + self.n_busy
            share = max(0.0, 1 - self.n_cpus / n_ready)  # of its time that each waits
            for i in range(n_threads):
                self.waited[i] += share * STEP_NS
            self.now_ns += STEP_NS
            numbers.append(n_threads)
        return numbers


def mean(numbers: list[int]) -> float:
    return sum(numbers) / len(numbers)


def test_an_idle_machine_s_cpus_are_all_used() -> None:
    machine = Machine(n_cpus=2)
    assert set(machine.run(machine.sharing(), 3000)) == {2}


def test_a_busy_process_is_left_its_cpu_after_a_window() -> None:
    machine = Machine(n_cpus=2, n_busy=1)
    numbers = machine.run(machine.sharing(), 10_000)
    assert numbers[100] == 1
    assert mean(numbers) < 1.03  # what is left are trials, ever more seldom


def test_a_process_that_comes_later_is_noticed_within_two_windows() -> None:
    machine = Machine(n_cpus=2)
    sharing = machine.sharing()
    machine.run(sharing, 2000)
    machine.n_busy = 1
    assert machine.run(sharing, 200)[-1] == 1


def test_all_cpus_are_used_again_when_the_process_has_gone() -> None:
    machine = Machine(n_cpus=2, n_busy=1)
    sharing = machine.sharing()
    machine.run(sharing, 10_000)
    machine.n_busy = 0
    assert machine.run(sharing, 4000)[-1] == 2


def test_one_busy_process_beside_many_cpus_costs_few_threads() -> None:
    machine = Machine(n_cpus=4, n_busy=4)
    sharing = machine.sharing()
    crowded = machine.run(sharing, 1000)
    machine.n_busy = 1
    freer = machine.run(sharing, 10_000)
    assert mean(crowded) < 2
    assert mean(freer[-1000:]) >= 3


def test_threads_come_back_one_by_one() -> None:
    machine = Machine(n_cpus=4, n_busy=4)
    sharing = machine.sharing()
    machine.run(sharing, 500)
    machine.n_busy = 0
    numbers = machine.run(sharing, 10_000)
    assert numbers[-1] == 4
    steps = {b - a for a, b in itertools.pairwise(numbers)}
    assert steps == {0, 1}


def test_at_least_one_thread_computes_under_any_load() -> None:
    machine = Machine(n_cpus=2, n_busy=50)
    assert min(machine.run(machine.sharing(), 1000)) == 1


def test_a_window_in_which_nothing_was_computed_changes_nothing() -> None:
    machine = Machine(n_cpus=2)
    sharing = machine.sharing()
    machine.run(sharing, 500)
    machine.now_ns += 60_000 * MS  # a server without requests
    assert set(machine.run(sharing, 500)) == {2}


def test_all_cpus_are_used_where_waiting_is_not_counted() -> None:
    machine = Machine(n_cpus=2, n_busy=3, counts_waits=False)
    assert set(machine.run(machine.sharing(), 500)) == {2}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts how long threads waited")
def test_linux_counts_for_each_thread_of_this_process() -> None:
    with_end = threading.Event()
    thread = threading.Thread(target=with_end.wait)
    thread.start()
    counts = waited_ns()
    with_end.set()
    thread.join()
    assert {threading.get_native_id(), thread.native_id} <= counts.keys()
    assert counts[os.getpid()] <= waited_ns()[os.getpid()]


@pytest.mark.parametrize(
    ("value", "expected"),
    [("", None), ("1", 1), ("1,2", 1), (" 1 ", 1), ("0", None), ("many", None), ("999999", None)],
)
def test_omp_num_threads_limits_the_threads(value: str, expected: int | None) -> None:
    assert default_threads({"OMP_NUM_THREADS": value}) == (expected or available_cpus())
