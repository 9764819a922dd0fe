"""What other backends answer to the golden suite, for docs/peers.md.

    python docs/peers.py --llama-cpp PYTHON --torch PYTHON [--minilm DIR]

PYTHON is an interpreter of an environment of its own: with llama-cpp-python[server], and with
transformers and sentence-transformers. DIR is a folder of the real all-MiniLM-L6-v2. Each backend
runs as its makers mean it to, on models that refllm exported; what `refllm conform` found goes
into docs/peers/ as JSON, and into the page as a table.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
REPORTS = FOLDER / "peers"
PAGE = FOLDER / "peers.md"
MARKS = re.compile(r"(<!-- begin peers -->\n).*(<!-- end peers -->)", re.DOTALL)
# Where a backend that shows its errors is installed.
INSTALLED = re.compile(r"/[^\s\"\\\\]*/site-packages/")
SECONDS_TO_START = 60
NOT_ASKED = ("skipped", "not applicable")
STATUSES = ("passed", "failed", "expected failure", "unexpected pass", "error", *NOT_ASKED)


def main() -> None:
    """Ask each backend, write its report, then the page."""
    parser = argparse.ArgumentParser(description="Runs the golden suite against other backends.")
    parser.add_argument("--llama-cpp", type=Path, metavar="PYTHON")
    parser.add_argument("--torch", type=Path, metavar="PYTHON")
    parser.add_argument("--minilm", type=Path, metavar="DIR")
    given = parser.parse_args()
    REPORTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder)
        conform("--write-models", models)
        if given.llama_cpp is not None:
            llama_cpp(given.llama_cpp, models, "F32", model="tiny-chat-F32")
            llama_cpp(given.llama_cpp, models, "Q8_0", model="tiny-chat")
        if given.torch is not None:
            transformers(given.torch, models, given.minilm)
    write_page()


def llama_cpp(python: Path, models: Path, matrices: str, *, model: str) -> None:
    """The server of llama-cpp-python, as it is installed."""
    version = version_of(python, "llama-cpp-python")
    with llama_server(python, models / f"{model}.gguf") as url:
        options = ["--protocol", "openai", "--have", "tiny-chat", "--profile", "llama.cpp"]
        report = REPORTS / f"llama-cpp-python-{matrices}.json"
        conform(url, *options, "--json", report)
    note(report, f"llama-cpp-python {version}, tiny-chat in {matrices}", "llama.cpp")


@contextmanager
def llama_server(python: Path, model: Path) -> Iterator[str]:
    """The address of a server that answers for one model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [str(python), "-m", "llama_cpp.server", "--model", str(model), "--port", port]
    command += ["--model_alias", "tiny-chat", "--n_ctx", "512", "--n_threads", "2"]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(f"{url}/v1/models")
            yield url
        finally:
            process.terminate()


def wait_for(url: str) -> None:
    """Return as soon as something is answered there. Errors: `TimeoutError`."""
    until = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - our own http address
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise TimeoutError(f"nothing answers at {url}")


def transformers(python: Path, models: Path, minilm: Path | None) -> None:
    """transformers and sentence-transformers, behind the harness beside this file."""
    folders = {}
    for name in ("tiny-chat", "tiny-chat-F32", "tiny-embed"):
        folder = models / "exported" / name
        refllm("models", "export", models / f"{name}.gguf", "--to", folder.parent, "--format", "hf")
        folders[name] = folder
    if minilm is not None:
        folders["all-minilm-l6-v2"] = minilm
    harness = " ".join(
        [str(python), str(FOLDER / "harnesses" / "transformers_harness.py")]
        + [f"{name}={folder}" for name, folder in folders.items()]
    )
    report = REPORTS / "transformers.json"
    conform(harness, "--json", report)
    versions = [f"{each} {version_of(python, each)}" for each in ("torch", "sentence-transformers")]
    title = f"transformers {version_of(python, 'transformers')}, {', '.join(versions)}"
    note(report, title, None)


def version_of(python: Path, package: str) -> str:
    """The installed version of a package."""
    asked = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run(
        [str(python), "-c", asked], check=True, capture_output=True, text=True
    ).stdout.strip()


def conform(*arguments: str | Path) -> None:
    """`refllm conform`; that something differs is what we want to know, and no error."""
    refllm("conform", *arguments, accepted=(0, 1))


def refllm(*arguments: str | Path, accepted: Sequence[int] = (0,)) -> None:
    """The command. Errors: `RuntimeError` where it exits with another code."""
    command = [sys.executable, "-m", "refllm", *map(str, arguments)]
    code = subprocess.run(command, check=False, stdout=sys.stderr).returncode
    if code not in accepted:
        raise RuntimeError(f"{' '.join(command)} exited with {code}")


def note(path: Path, title: str, profile: str | None) -> None:
    """Keep of a report what the page needs, and nothing of the machine that it was made on."""
    report = json.loads(INSTALLED.sub("…/site-packages/", path.read_text("utf-8")))
    cases = [
        {key: case[key] for key in ("id", "status", "cause", "reason", "difference") if case[key]}
        for case in report["cases"]
        if case["status"] not in ("passed", *NOT_ASKED)
    ]
    for case in cases:
        if "difference" in case:
            case["difference"] = {
                key: case["difference"][key] for key in ("where", "expected", "got", "tolerances")
            }
    counts: dict[str, dict[str, int]] = {}
    for case in report["cases"]:
        of_group = counts.setdefault(case["id"].partition("/")[0], {})
        of_group[case["status"]] = of_group.get(case["status"], 0) + 1
    kept = {"backend": title, "suite": report["suite_version"], "profile": profile}
    document = {**kept, "counts": counts, "cases": cases}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="ascii")


def write_page() -> None:
    """The tables of every report between the marks of the page."""
    parts = [table(json.loads(path.read_text("utf-8"))) for path in sorted(REPORTS.glob("*.json"))]
    text = PAGE.read_text("utf-8")
    PAGE.write_text(MARKS.sub(lambda found: found[1] + "\n".join(parts) + found[2], text), "utf-8")


def table(report: Mapping[str, Any]) -> str:
    """One backend: a row for each group that it answered, then what differs, by cause."""
    shown = [status for status in STATUSES if any(c.get(status) for c in report["counts"].values())]
    lines = [f"### {report['backend']}", ""]
    lines += [f"| group | {' | '.join(shown)} |", f"|---{'|---' * len(shown)}|"]
    for group, counts in report["counts"].items():
        if not set(counts) <= set(NOT_ASKED):
            cells = " | ".join(str(counts.get(status, "")) for status in shown)
            lines.append(f"| {group} | {cells} |")
    causes = Counter(
        f"{case['status']}: {case.get('reason') or case.get('cause') or 'no cause recognized'}"
        for case in report["cases"]
    )
    if causes:
        lines += ["", *(f"- {n} × {cause}" for cause, n in causes.most_common())]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
