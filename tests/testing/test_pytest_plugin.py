"""The pytest plugin, in test runs of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from refllm.engine import LocalEngine
from refllm.jit.disk_cache import cache_folder, kernel_sources
from tests.support.model_files import tiny_llama_gguf

pytest_plugins = ["pytester"]

# pytester gives its runs another home; what is compiled already need not be compiled again.
KERNELS = cache_folder(os.environ, kernel_sources())
CONFTEST = """
    from pathlib import Path
    import pytest
    from refllm.engine import LocalEngine

    @pytest.fixture(scope="session")
    def refllm_engine():
        return LocalEngine(roots=[Path({root!r})])
"""
APP = """
    from spin_sdk import http, llm

    class IncomingHandler(http.IncomingHandler):
        def handle_request(self, request):
            answer = llm.infer("tiny", request.body.decode())
            return http.Response(200, {}, answer.text.encode())
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ai-models")
    tiny_llama_gguf(root / "tiny.gguf")
    return root


@pytest.fixture(scope="module", autouse=True)
def _everything_is_imported(root: Path) -> None:
    """A run in this process takes out what it imported, and numba cannot be imported twice.

    Some of numba is imported by the first kernel only.
    """
    LocalEngine(roots=[root]).infer("tiny", "a")


@pytest.fixture(autouse=True)
def _leaves_signals_alone(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a run in this process from the handlers that wasmtime has set for its traps.

    pytester forgets the options around it first.
    """
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:faulthandler")


@pytest.fixture
def project(pytester: pytest.Pytester, root: Path) -> pytest.Pytester:
    """A project whose tests have a tiny model."""
    pytester.makeconftest(CONFTEST.format(root=str(root)))
    return pytester


def passes(project: pytest.Pytester, tests: str, n_tests: int = 1) -> None:
    """Assert that all of the tests pass."""
    project.makepyfile(tests)
    project.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=n_tests)


def test_the_plugin_imports_nothing_that_computes() -> None:
    program = "import refllm.testing.pytest_plugin, sys; print(*sys.modules)"
    modules = set(subprocess.check_output([sys.executable, "-c", program], text=True).split())
    assert "refllm.testing.pytest_plugin" in modules
    assert not {"numpy", "numba", "refllm.engine", "refllm.spin"} & modules


def test_a_run_without_its_fixtures_computes_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import sys

        def test_what_is_imported():
            assert "refllm.testing.pytest_plugin" in sys.modules
            assert not {"numpy", "numba", "refllm.engine", "refllm.spin"} & sys.modules.keys()
    """)
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_llm_is_behind_refllm(project: pytest.Pytester) -> None:
    tests = """
        import refllm

        def test_it(llm, refllm_engine):
            result = refllm.infer("tiny", "the cat")
            assert [call.prompt for call in llm.calls] == ["the cat"]
            assert result == refllm_engine.infer("tiny", "the cat")
    """
    passes(project, tests)


def test_llm_is_behind_a_spin_handler(project: pytest.Pytester) -> None:
    project.makepyfile(app=APP)
    tests = """
        from refllm.spin.shim.handlers import handle
        from refllm.spin.shim import Request

        def test_it(llm, refllm_engine):
            import app
            response = handle(app, Request("POST", "/", {}, b"the cat"))
            assert response.body.decode() == refllm_engine.infer("tiny", "the cat").text
            assert [call.prompt for call in llm.calls] == ["the cat"]
    """
    passes(project, tests)


def test_each_test_has_its_own_calls_and_failures(project: pytest.Pytester) -> None:
    project.makepyfile(app=APP)
    tests = """
        import pytest
        from refllm import LlmRuntimeError
        from refllm.spin.shim.wit import Err
        from refllm.spin.shim.handlers import handle
        from refllm.spin.shim import Request

        @pytest.mark.parametrize("time", [1, 2])
        def test_it(llm, time):
            import app
            llm.fail_next(LlmRuntimeError("out of memory"))
            llm.fail_next(LlmRuntimeError("never asked for"))
            with pytest.raises(Err, match="out of memory"):
                handle(app, Request("POST", "/", {}, b"the cat"))
            assert len(llm.calls) == 1
    """
    passes(project, tests, 2)


def test_after_a_test_everything_is_as_before(project: pytest.Pytester) -> None:
    tests = """
        import sys
        import refllm.engine

        BEFORE = refllm.engine.default_engine

        def test_with(llm):
            assert refllm.engine.default_engine() is llm
            assert "spin_sdk" in sys.modules

        def test_without():
            assert refllm.engine.default_engine is BEFORE
            assert "spin_sdk" not in sys.modules
    """
    passes(project, tests, 2)


def test_the_engine_is_the_same_in_all_tests(project: pytest.Pytester) -> None:
    tests = """
        import pytest

        SEEN = set()

        @pytest.mark.parametrize("time", [1, 2])
        def test_it(refllm_engine, time):
            SEEN.add(id(refllm_engine))
            assert len(SEEN) == 1
    """
    passes(project, tests, 2)


@pytest.mark.parametrize(("option", "seed"), [("", 0), ("refllm_seed = 42", 42)])
def test_the_seed_is_an_option(option: str, seed: int, pytester: pytest.Pytester) -> None:
    pytester.makeini(f"[pytest]\n{option}")
    passes(pytester, f"def test_it(refllm_engine): assert refllm_engine.seed == {seed}")


@pytest.mark.parametrize(
    ("option", "environment", "wanted"),
    [
        ("", "0", False),
        ("", "1", True),
        ("refllm_stand_ins = true", "0", True),
        ("refllm_stand_ins = false", "1", True),
    ],
)
def test_stand_ins_are_an_option_or_the_environments(
    option: str,
    environment: str,
    wanted: bool,
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REFLLM_STAND_INS", environment)
    pytester.makeini(f"[pytest]\n{option}")
    passes(pytester, f"def test_it(refllm_engine): assert refllm_engine.stand_ins is {wanted}")


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("refllm_seed = many", "refllm_seed must be a whole number from 0 to *, is 'many'"),
        (f"refllm_seed = {2**64}", f"refllm_seed must be a whole number * is '{2**64}'"),
        ("refllm_stand_ins = perhaps", "refllm_stand_ins must be true or false: *'perhaps'"),
    ],
)
def test_an_option_that_means_nothing_ends_the_run_in_one_line(
    option: str, complaint: str, pytester: pytest.Pytester
) -> None:
    pytester.makeini(f"[pytest]\n{option}")
    pytester.makepyfile("def test_it(): pass")
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {complaint}"])
    result.stderr.no_fnmatch_line("*Traceback*")


def test_the_fixtures_are_listed_with_what_they_are(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess("--fixtures", "-p", "no:cacheprovider")
    listed = result.stdout.str()
    for name, what in (
        ("llm", "Yield an engine that records this test's calls"),
        ("refllm_engine", "Yield the engine that all tests share"),
        ("refllm_server", "Yield one `refllm serve` for all tests, on a free port"),
    ):
        _, _, below = listed.partition(f"\n{name} ")
        assert what in below.split("\n\n")[0]


def test_the_server_s_fixture_answers_as_the_engine_does(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fastapi", reason="the extra server is not installed")
    if KERNELS is not None:
        monkeypatch.setenv("REFLLM_CACHE_DIR", str(KERNELS.parent))
    pytester.makeini("[pytest]\nrefllm_seed = 3\nrefllm_stand_ins = true\n")
    pytester.makepyfile(
        """
        import json
        from urllib.request import urlopen

        def test_it_answers(refllm_server, refllm_engine):
            asked = {"model": "llama2-chat", "prompt": "Once"}
            with urlopen(f"{refllm_server.url}/infer", json.dumps(asked).encode()) as answer:
                text = json.load(answer)["text"]
            assert text == refllm_engine.infer("llama2-chat", "Once").text
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


@pytest.mark.slow
def test_a_first_run_announces_compiling_past_the_capture_and_a_second_does_not(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFLLM_CACHE_DIR", str(pytester.path / "cache"))
    pytester.makepyfile(
        """
        def test_it(refllm_engine):
            print("captured")
            refllm_engine.generate_embeddings("tiny-embed", ["A cat."])
        """
    )
    first, second = (pytester.runpytest_subprocess() for _ in range(2))
    assert [run.ret for run in (first, second)] == [0, 0]
    announced = [line for line in first.errlines if line.startswith("refllm: compiling kernels ")]
    assert len(announced) == 1
    assert "REFLLM_CACHE_DIR" in announced[0]
    assert (second.errlines, "captured" in first.outlines) == ([], False)
