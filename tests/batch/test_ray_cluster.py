"""Runs on real Ray clusters: two nodes of one machine, one of which is killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from refllm.models.bundled import ROOT

pytest.importorskip("ray", reason="ray is not installed; pip install '.[ray]'")
pytest.importorskip("psutil", reason="pip install psutil")

import psutil

from tests.support.ray_nodes import Nodes, end, ray_nodes

pytestmark = pytest.mark.slow

PATIENCE = 300.0  # seconds; a loaded machine starts a process of Ray in ten
PARTS, PART_ROWS = 24, 300
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "big", "old", "dogs", "run", "by"]
EMBED = ("embed", "rows.jsonl", "--model", "tiny-embed", "--part-rows", str(PART_ROWS))
INFER = (
    *("infer", "prompts.jsonl", "--model", "tiny-chat", "--part-rows", "6", "--max-tokens", "9"),
    *("--column", "text", "--per-row", "seed=n"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs, and the parts of local runs in embed/ and infer/."""
    folder = tmp_path_factory.mktemp("ray")
    draw = random.Random(1)
    lines = [
        json.dumps({"text": " ".join(draw.choices(WORDS, k=draw.randint(1, 60)))})
        for _ in range(PARTS * PART_ROWS)
    ]
    lines[5] = "not JSON"
    lines[2000] = json.dumps({"text": None})
    (folder / "rows.jsonl").write_text("\n".join(lines))
    prompts = [{"text": f"{WORDS[n % 13]} and", "n": n} for n in range(20)] + [{"text": 7, "n": 1}]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    for arguments in (EMBED, INFER):
        done = batch(folder, *arguments, "--to", arguments[0])
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    home = tmp_path_factory.mktemp("home")
    with ray_nodes(environment() | {"HOME": str(home)}) as nodes:
        yield nodes


@pytest.fixture
def add(nodes: Nodes) -> Iterator[Callable[..., psutil.Process]]:
    """Add nodes, and remove them after the test."""
    with contextlib.ExitStack() as stack:

        def add(**options: object) -> psutil.Process:
            raylet = nodes.add(cpus=1, **options)  # type: ignore[arg-type]
            stack.callback(end, raylet)
            return raylet

        yield add


def environment() -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "refllm", "batch", *arguments]


def batch(
    folder: Path, *arguments: str, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env={**os.environ, **environment(), **(env or {})},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@contextlib.contextmanager
def running(
    folder: Path, *arguments: str, env: Mapping[str, str]
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command(*arguments),
        cwd=folder,
        env={**os.environ, **environment(), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            end(psutil.Process(process.pid))
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def wait_until(is_so: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + PATIENCE
    while not is_so():
        assert process.poll() is None, f"the run has ended: {process.communicate()[0]}"
        assert time.monotonic() < limit
        time.sleep(0.05)


def computes(raylet: psutil.Process) -> bool:
    """Return whether the node has an actor of the run."""
    found = []
    for child in raylet.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found.append(" ".join(child.cmdline()))
    return any("_Computing" in each for each in found)


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("[!.]*"))}


def same(one: Path, other: Path) -> bool:
    assert len(files(one)) > 2
    return files(one) == files(other)


def test_two_nodes_write_the_bytes_of_the_local_run(
    folder: Path, nodes: Nodes, add: Callable[..., psutil.Process]
) -> None:
    raylets = [add(), add()]
    arguments = (*EMBED, "--to", "two", "--ray", nodes.address)
    with running(folder, *arguments, env=nodes.environment) as process:
        wait_until(lambda: all(map(computes, raylets)), process)
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    assert output.endswith(f"two: {PARTS * PART_ROWS} rows in {PARTS} parts, 2 with an error\n")
    assert same(folder / "two", folder / "embed")


def test_texts_and_errors_are_those_of_the_local_run(
    folder: Path, nodes: Nodes, add: Callable[..., psutil.Process]
) -> None:
    add()
    done = batch(folder, *INFER, "--to", "i", "--ray", nodes.address, env=nodes.environment)
    assert (done.returncode, done.stdout) == (0, "i: 21 rows in 4 parts, 1 with an error\n"), done
    assert same(folder / "i", folder / "infer")


def test_a_node_that_is_killed_costs_no_row_and_no_byte(
    folder: Path, nodes: Nodes, add: Callable[..., psutil.Process]
) -> None:
    kept, killed = add(), add()
    arguments = (*EMBED, "--to", "killed", "--ray", nodes.address)
    with running(folder, *arguments, env=nodes.environment) as process:
        wait_until(
            lambda: (
                computes(kept) and computes(killed) and any((folder / "killed").glob("part-0*"))
            ),
            process,
        )
        end(killed)
        n_parts = len(list((folder / "killed").glob("part-0*")))
        output, _ = process.communicate(timeout=PATIENCE)
    assert n_parts < PARTS, "the run had ended before the node was killed"
    assert process.returncode == 0, output
    assert same(folder / "killed", folder / "embed")


def test_a_killed_run_is_resumed_on_a_cluster_and_by_a_local_run(
    folder: Path, nodes: Nodes, add: Callable[..., psutil.Process]
) -> None:
    add()
    arguments = (*EMBED, "--to", "resumed")
    on_ray = (*arguments, "--ray", nodes.address)
    parts = folder / "resumed"
    with running(folder, *arguments, env={}) as process:
        wait_until(lambda: len(list(parts.glob("part-0*"))) > 1, process)
        process.kill()
    # The manifest may lack the last part: it is written after it.
    finished = {file: file.stat().st_ino for file in sorted(parts.glob("part-0*"))[:-1]}
    with running(folder, *on_ray, env=nodes.environment) as process:
        wait_until(lambda: len(list(parts.glob("part-0*"))) > len(finished) + 2, process)
        process.kill()
    assert len(list(parts.glob("part-0*"))) < PARTS, "nothing was left to resume"
    done = batch(folder, *arguments)
    assert done.returncode == 0, done.stderr
    assert same(parts, folder / "embed")
    assert finished
    for file, inode in finished.items():
        assert file.stat().st_ino == inode, "a finished part was computed again"


def test_a_node_without_the_model_or_with_another_is_named(
    folder: Path, nodes: Nodes, add: Callable[..., psutil.Process], tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for home in (here, there):
        (home / "ai-models" / "bert").mkdir(parents=True)
    model = (ROOT / "bert" / "tiny-embed.gguf").read_bytes()
    (here / "ai-models" / "bert" / "mine.gguf").write_bytes(model)
    arguments = ("embed", "rows.jsonl", "--model", "mine", "--ray", nodes.address)
    env = {**nodes.environment, "REFLLM_HOME": str(here)}
    add(environment={"REFLLM_HOME": str(there)})

    done = batch(folder, *arguments, "--to", "absent", env=env)
    assert done.returncode == 1
    assert "the node 127.0.0.1 (" in done.stderr
    assert ") cannot compute: unknown embedding model 'mine'" in done.stderr
    assert "Traceback" not in done.stderr

    (there / "ai-models" / "bert" / "mine.gguf").write_bytes(model + b"\0")
    done = batch(folder, *arguments, "--to", "absent", env=env)
    assert done.returncode == 1
    assert "has the SHA-256" in done.stderr
    assert not list((folder / "absent").glob("part-*"))

    done = batch(folder, *arguments, "--to", "sent", "--send-model", *EMBED[4:], env=env)
    assert done.returncode == 0, done.stderr
    vectors = [folder / name / "part-00003.parquet" for name in ("sent", "embed")]
    assert rows_of(vectors[0]) == rows_of(vectors[1])
    (sent,) = (there / "sent-models").glob("[!.]*")
    assert (sent / "mine.gguf").read_bytes() == model


def rows_of(file: Path) -> list[object]:
    import pyarrow.parquet as pq

    rows: list[object] = pq.read_table(file).to_pylist()
    assert rows
    return rows


def test_a_cluster_of_this_machine_listens_on_loopback_and_leaves_nothing(
    folder: Path, tmp_path: Path
) -> None:
    home, temporary = tmp_path / "home", tmp_path / "t"
    home.mkdir()
    temporary.mkdir()
    env = {"HOME": str(home), "TMPDIR": str(temporary), "REFLLM_CACHE_DIR": cache_folder()}
    arguments = (*EMBED, "--to", "alone", "--ray", "local", "--threads", "1")
    seen: dict[psutil.Process, tuple[str, dict[str, str]]] = {}
    listening: set[tuple[str, int]] = set()
    with running(folder, *arguments, env=env) as process:
        while process.poll() is None:
            for each in descendants(process.pid):
                with contextlib.suppress(psutil.Error):
                    seen[each] = (" ".join(each.cmdline()), each.environ())
                    listening |= {
                        (connection.laddr.ip, connection.laddr.port)
                        for connection in each.net_connections("inet")
                        if connection.status in (psutil.CONN_LISTEN, psutil.CONN_NONE)
                    }
            time.sleep(0.1)
        output = process.stdout.read() if process.stdout else ""
    assert process.returncode == 0, output
    assert same(folder / "alone", folder / "embed")
    assert any("raylet" in command for command, _ in seen.values())
    assert any("_Computing" in command for command, _ in seen.values())
    assert len(listening) >= 5
    assert {ip for ip, _ in listening} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert 8265 not in {port for _, port in listening}, "the dashboard's port"
    started = [environ for command, environ in seen.values() if "raylet" in command and environ]
    assert {environ["RAY_USAGE_STATS_ENABLED"] for environ in started} == {"0"}
    _, left = psutil.wait_procs(seen, PATIENCE)
    assert not [seen[each] for each in left if each.status() != psutil.STATUS_ZOMBIE]
    assert not list(home.iterdir())
    assert not list(temporary.glob("refllm-ray-*"))


def test_a_run_whose_standard_error_is_closed_starts_its_cluster(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "A cat."}\n')
    arguments = (*EMBED, "--to", "out", "--ray", "local", "--threads", "1")
    done = subprocess.run(
        f"{shlex.join(command(*arguments))} 2>&-",
        shell=True,
        cwd=tmp_path,
        env={**os.environ, **environment()},
        stdout=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "out: 1 row in 1 part\n")


def descendants(pid: int) -> Sequence[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def cache_folder() -> str:
    return os.environ.get("REFLLM_CACHE_DIR") or str(Path.home() / ".cache" / "refllm")
