"""The pytest plugin: real models in tests, fast and the same on every machine.

    def test_it_asks_for_a_short_answer(llm):
        import app                                  # a Spin handler, or any code that uses refllm
        handle(app, Request("POST", "/", {}, b"I love it!"))
        assert llm.calls[0].params.max_tokens == 8

During a test that has the fixture `llm`, it is the engine of `refllm.infer` and the other
module-level functions, and of `spin_sdk`. `refllm_server` is the same over HTTP, for applications
in any language. Options in pytest's configuration file: `refllm_seed` (0), and `refllm_stand_ins`
(false), which lets the bundled models answer for Spin's large ones.

pytest imports this module in every run where refllm is installed, so engines are imported only
inside fixtures.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from refllm.engine import LocalEngine
    from refllm.testing.recording import RecordingEngine
    from refllm.testing.server_process import RunningServer

__all__ = ["llm", "pytest_addoption", "pytest_configure", "refllm_engine", "refllm_server"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options `refllm_seed` and `refllm_stand_ins`."""
    parser.addini("refllm_seed", "seed of the fixture refllm_engine (a whole number)", default="0")
    parser.addini(
        "refllm_stand_ins",
        "let the bundled models answer for Spin's large ones in tests",
        type="bool",
        default=False,
    )


def pytest_configure(config: pytest.Config) -> None:
    """Check the options before any test runs. Raises `pytest.UsageError`."""
    _seed(config)
    _stand_ins(config)


@pytest.fixture(scope="session")
def refllm_engine(request: pytest.FixtureRequest) -> Iterator[LocalEngine]:
    """Yield the engine that all tests share, so that a model is loaded once.

    Before kernels are compiled, a line is written on standard error, past pytest's capture.
    """
    from refllm.engine import LocalEngine
    from refllm.jit.first_compilation import FirstCompilation

    def write(line: str) -> None:
        capture = request.config.pluginmanager.getplugin("capturemanager")
        with nullcontext() if capture is None else capture.global_and_fixture_disabled():
            print(f"\n{line}", file=sys.stderr, flush=True)

    with FirstCompilation(write):
        yield LocalEngine(seed=_seed(request.config), stand_ins=_stand_ins(request.config))


@pytest.fixture
def llm(refllm_engine: LocalEngine) -> Iterator[RecordingEngine]:
    """Yield an engine that records this test's calls and answers with `refllm_engine`'s models.

    It is the engine of `refllm.infer` and the other module-level functions, and of the `spin_sdk`
    that a handler imports in this test.
    """
    from refllm.spin.shim.install import spin_sdk_backed_by
    from refllm.testing.recording import RecordingEngine

    recording = RecordingEngine(refllm_engine)
    with pytest.MonkeyPatch.context() as patch, spin_sdk_backed_by(recording):
        patch.setattr("refllm.engine.default_engine", lambda: recording)
        yield recording


@pytest.fixture(scope="session")
def refllm_server(request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    """Yield one `refllm serve` for all tests, on a free port of this machine, with its `.url`.

    Raises:
        refllm.LlmRuntimeError: If it cannot start.
    """
    from refllm.testing.server_process import running_server

    stand_ins = ["--stand-ins"] if _stand_ins(request.config) else []
    with running_server(["--seed", str(_seed(request.config)), *stand_ins]) as server:
        yield server


def _seed(config: pytest.Config) -> int:
    seed = str(config.getini("refllm_seed"))
    if not seed.isdecimal() or len(seed) > len(str(2**64)) or int(seed) >= 2**64:
        raise pytest.UsageError(
            f"refllm_seed must be a whole number from 0 to {2**64 - 1}, is {seed!r:.80}"
        )
    return int(seed)


def _stand_ins(config: pytest.Config) -> bool | None:
    """Return True, or None: the environment decides."""
    try:
        return bool(config.getini("refllm_stand_ins")) or None
    except (ValueError, pytest.UsageError) as error:  # pytest 8, and 9, which names no option
        raise pytest.UsageError(f"refllm_stand_ins must be true or false: {error}") from error
