"""Kernels on several threads, called by several threads; and how many CPUs there are for them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import pytest

from refllm.jit import threads
from refllm.jit.compile import use_threads
from refllm.jit.threads import available_cpus, cpu_quota
from refllm.llama import Segment
from refllm.models.load import LlamaModel, load_path
from tests.support.model_files import tiny_llama_gguf

# --- Threads -------------------------------------------------------------------------------------

SIMULTANEOUS = 4


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama that is just large enough for the parallel kernels."""
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    shape = {"n_layers": 1, "n_embd": 256, "n_ff": 512}
    return tiny_llama_gguf(path, **shape, n_heads=8, n_kv_heads=8, head_dim=32)  # type: ignore[arg-type]


def logits_of_many_threads(path: Path) -> list[bytes]:
    """The same prompt's logits, computed alone and then by several threads at once."""
    model = load_path(path)
    assert isinstance(model, LlamaModel)
    prompt = [1, *range(3, 40)]

    def compute(_: object = None) -> bytes:
        segment = Segment(prompt, model.new_cache())
        return model.network.forward([segment])[0].tobytes()

    alone = compute()
    with ThreadPoolExecutor(SIMULTANEOUS) as pool:
        return [alone, *pool.map(compute, range(3 * SIMULTANEOUS))]


def test_threads_that_compute_at_once_get_the_bits_of_one_alone(tiny_path: Path) -> None:
    assert len(set(logits_of_many_threads(tiny_path))) == 1


def test_numba_s_own_threads_are_not_asked_by_two_at_once(tiny_path: Path) -> None:
    # Its "workqueue" ends a process that tries, so this is a process of its own.
    program = (
        "import sys, numba; from pathlib import Path\n"
        "from tests.arithmetic.test_threads import logits_of_many_threads\n"
        "answers = logits_of_many_threads(Path(sys.argv[1]))\n"
        "print(len(set(answers)), numba.threading_layer())"
    )
    output = subprocess.check_output(
        [sys.executable, "-c", program, tiny_path],
        env={**os.environ, "NUMBA_THREADING_LAYER": "workqueue"},
        cwd=Path(__file__).parents[2],
        text=True,
    )
    assert output.split() == ["1", "workqueue"]


@pytest.fixture
def own_thread() -> Iterator[ThreadPoolExecutor]:
    """A thread whose number of kernel threads is its own: changing it affects no other test."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.mark.parametrize("asked", [None, 1, 10**6])
def test_kernels_run_on_as_many_threads_as_asked_and_there_are(
    asked: int | None, own_thread: ThreadPoolExecutor
) -> None:
    def chosen() -> int:
        use_threads(asked)
        return numba.get_num_threads()

    most = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    expected = {None: range(1, available_cpus() + 1), 1: [1], 10**6: [most]}
    assert own_thread.submit(chosen).result() in expected[asked]


# --- How many CPUs there are ---------------------------------------------------------------------


def system(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2 = {"proc/self/cgroup": "0::/system.slice/ci.service\n"}
V1 = {"proc/self/cgroup": "11:memory:/job\n4:cpu,cpuacct:/job\n1:name=systemd:/job\n"}
OWN = "sys/fs/cgroup/system.slice/ci.service/cpu.max"
AROUND = "sys/fs/cgroup/system.slice/cpu.max"
CPU = "sys/fs/cgroup/cpu,cpuacct"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        (V2, None),
        (V2 | {OWN: "max 100000\n"}, None),
        (V2 | {OWN: "150000 100000\n"}, 1.5),
        (V2 | {OWN: "max 100000\n", AROUND: "50000 100000\n"}, 0.5),
        (V2 | {OWN: "400000 100000\n", AROUND: "200000 100000\n"}, 2.0),
        (V2 | {OWN: "what is this\n"}, None),
        (V2 | {OWN: "100000 0\n"}, None),
        # In a container the group has the host's name, and the files lie at the top.
        (V2 | {"sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3.0),
        (V1 | {f"{CPU}/job/cpu.cfs_quota_us": "-1\n"}, None),
        (
            V1
            | {f"{CPU}/job/cpu.cfs_quota_us": "-1\n", f"{CPU}/job/cpu.cfs_period_us": "100000\n"},
            None,
        ),
        (
            V1 | {f"{CPU}/cpu.cfs_quota_us": "250000\n", f"{CPU}/cpu.cfs_period_us": "100000\n"},
            2.5,
        ),
    ],
)
def test_the_quota_is_the_smallest_of_the_groups_around_this_process(
    files: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    assert cpu_quota(system(tmp_path, files)) == quota


@pytest.mark.parametrize(
    ("quota", "expected"), [(None, 4), (0.5, 1), (1.0, 1), (1.5, 2), (2.0, 2), (64.0, 4)]
)
def test_a_part_of_a_cpu_counts_as_one(
    quota: float | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "_allowed_cpus", lambda: 4)
    monkeypatch.setattr(threads, "cpu_quota", lambda _root: quota)
    assert available_cpus() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_the_affinity_limits_too(own_thread: ThreadPoolExecutor) -> None:
    def pinned() -> int:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # of this thread alone
        return available_cpus()

    assert own_thread.submit(pinned).result() == 1
