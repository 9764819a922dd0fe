"""An engine, asked the golden suite; what is kept of the report."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tools.peers.catalog import Peer, Server
from tools.peers.environments import installed, made, program
from tools.peers.models import Models, refllm

__all__ = ["HARNESSES", "NOT_ASKED", "PROFILES", "PROJECT", "REPORTS", "ask", "kept"]

PROJECT = Path(__file__).resolve().parents[2]
HARNESSES = PROJECT / "docs" / "harnesses" / "peers"
PROFILES = Path(__file__).resolve().parent / "profiles"
REPORTS = PROJECT / "docs" / "peers"

SECONDS = 60  # for one answer
SECONDS_TO_START = 120
SECONDS_TO_END = 10
NOT_ASKED = ("skipped", "not applicable")
# Engines fetch nothing, and have one thread: threads that wait in a loop halt on a busy machine.
QUIET = {
    "OMP_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


def ask(peer: Peer, models: Models, cache: Path, *, python: str | None) -> None:
    """Ask an engine all that it can be asked, and keep its report in docs/peers.

    Args:
        peer: The engine.
        models: The models of the suite.
        cache: The folder of environments.
        python: An interpreter that has the engine already; its own environment unless given.
    """
    environment = peer.environment
    if python is None:
        folder = made(environment, cache)
        python = program(environment, folder)
    else:
        folder = cache / environment.name
    places = {"gguf": str(models.gguf), "hf": str(models.hf)}
    os.environ.update(QUIET)
    with TemporaryDirectory() as temporary:
        report = Path(temporary) / "report.json"
        options: list[str | Path] = ["--json", report, "--seconds", str(SECONDS)]
        if peer.profile is not None:
            own = PROFILES / f"{peer.profile}.toml"
            options += ["--profile", str(own) if own.exists() else peer.profile]
        if isinstance(peer.ask, Server):
            command = [python, *peer.ask.command]
            with serving(command, places, peer.ask.ready) as url:
                options += ["--protocol", "openai"]
                for model in peer.ask.have:
                    options += ["--have", model]
                for model, theirs in peer.ask.model_map.items():
                    options += ["--model-map", f"{model}={theirs.format(**places)}"]
                refllm("conform", url, *options, accepted=(0, 1))
        else:
            harness = HARNESSES / peer.harness
            if environment.kind == "npm":  # node looks for packages beside the file
                for file in HARNESSES.glob("*.mjs"):
                    shutil.copy(file, folder)
                harness = folder / peer.harness
            words = [python, str(harness), *(each.format(**places) for each in peer.ask)]
            if environment.kind == "npm":  # answers go to descriptor 3: protocol.mjs
                words = ["sh", "-c", 'exec "$0" "$@" 3>&1 1>&2', *words]
            refllm("conform", shlex.join(words), *options, accepted=(0, 1))
        text = report.read_text("utf-8")
    # Errors of an engine may show where it is installed, and where the models are.
    hidden = [models.gguf.parent, HARNESSES, folder]
    if environment.kind == "pip":
        hidden.append(Path(python).parent.parent)
    for path in hidden:
        text = text.replace(str(path), "…")
    document = kept(peer, json.loads(text), installed(environment, python))
    (REPORTS / f"{peer.name}.json").write_text(
        json.dumps(document, indent=1) + "\n", encoding="ascii"
    )


@contextmanager
def serving(command: list[str], places: Mapping[str, str], ready: str) -> Iterator[str]:
    """Run a server, and return its address once it is ready.

    Raises:
        RuntimeError: If it ends, or is not ready in time; with the end of what it printed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = [word.format(**places, port=port) for word in command]
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with (
            log.open("wb") as stream,
            subprocess.Popen(words, stdout=stream, stderr=subprocess.STDOUT) as process,
        ):
            try:
                url = f"http://127.0.0.1:{port}"
                until = time.monotonic() + SECONDS_TO_START
                while not is_ready(url + ready):
                    if process.poll() is not None or time.monotonic() > until:
                        end = log.read_text("utf-8", "replace")[-2000:]
                        raise RuntimeError(f"{shlex.join(words)} is not ready:\n{end}")
                    time.sleep(0.2)
                yield url
            finally:
                process.terminate()
                try:
                    process.wait(SECONDS_TO_END)
                except subprocess.TimeoutExpired:
                    process.kill()


def is_ready(url: str) -> bool:
    """Return whether a server answers a request with success."""
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - our own http address
            return True
    except (urllib.error.URLError, OSError):
        return False


def kept(peer: Peer, report: Mapping[str, Any], versions: Mapping[str, str]) -> dict[str, Any]:
    """Return what the page needs of a report, and nothing of the machine that it was made on.

    Args:
        peer: The engine.
        report: As `refllm conform --json` writes it.
        versions: Of the engine's packages, the engine itself first.
    """
    counts: dict[str, dict[str, int]] = {}
    not_asked: dict[str, dict[str, int]] = {}
    cases = []
    for case in report["cases"]:
        group, status = case["group"], case["status"]
        of_group = counts.setdefault(group, {})
        of_group[status] = of_group.get(status, 0) + 1
        if status in NOT_ASKED:
            reasons = not_asked.setdefault(group, {})
            reasons[case["reason"]] = reasons.get(case["reason"], 0) + 1
        elif status != "passed":
            shown = ("id", "status", "cause", "reason", "link", "difference")
            one = {key: case[key] for key in shown if case[key]}
            if "difference" in one:
                keys = ("where", "expected", "got", "tolerances")
                one["difference"] = {key: case["difference"][key] for key in keys}
            cases.append(one)
    return {
        "peer": peer.name,
        "title": peer.title,
        "about": peer.about,
        "packages": dict(versions),
        "suite": report["suite_version"],
        "profile": peer.profile,
        "groups": report["implementation"]["groups"],
        "counts": counts,
        "not_asked": not_asked,
        "cases": cases,
    }
