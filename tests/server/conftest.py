"""What the tests of the server share: one running server, and the engine that it must equal."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from refllm.engine import LocalEngine
from refllm.testing.server_process import running_server


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """The address of a server that has the bundled models and stand-ins for Spin's."""
    with running_server(["--stand-ins"]) as server:
        yield server.url


@pytest.fixture(scope="session")
def engine() -> LocalEngine:
    return LocalEngine(stand_ins=True)
