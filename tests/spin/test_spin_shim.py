"""The stand-in for spin_sdk: its API is spin-sdk's, its answers are the engine's.

How it comes and goes is tested in tests/spin/test_spin_shim_install.py.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, fields
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from types import ModuleType

import pytest

from refllm.api import (
    InferencingParams,
    InvalidInput,
    LlmError,
    LlmRuntimeError,
    ModelNotSupported,
)
from refllm.engine import LocalEngine
from refllm.spin.shim import Request, Response
from refllm.spin.shim.handlers import handle
from refllm.spin.shim.install import spin_sdk_backed_by
from refllm.spin.shim.wit import Err
from refllm.testing.recording import RecordingEngine
from tests.support.model_files import tiny_bert_gguf, tiny_llama_gguf

GET = Request("GET", "/", {}, None)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> LocalEngine:
    root = tmp_path_factory.mktemp("ai-models")
    tiny_llama_gguf(root / "tiny.gguf")
    tiny_bert_gguf(root / "embedder.gguf")
    return LocalEngine(roots=[root])


@pytest.fixture
def engine(local: LocalEngine) -> Iterator[RecordingEngine]:
    """The engine behind spin_sdk, while the test runs."""
    recording = RecordingEngine(local)
    with spin_sdk_backed_by(recording):
        yield recording


def handler_file(folder: Path, source: str, name: str = "app.py") -> Path:
    path = folder / name
    path.write_text(dedent(source), "utf-8")
    return path


# --- spin_sdk.llm --------------------------------------------------------------------------------


@pytest.mark.usefixtures("engine")
def test_the_parameters_have_the_sdks_names_and_defaults() -> None:
    params = import_module("spin_sdk.llm").InferencingParams()
    names = "max_tokens repeat_penalty repeat_penalty_last_n_token_count temperature top_k top_p"
    assert [field.name for field in fields(params)] == names.split()
    assert astuple(params) == (100, 1.1, 64, 0.8, 40, 0.9)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        ("infer", ["model", "prompt"]),
        ("infer_with_options", ["model", "prompt", "options"]),
        ("generate_embeddings", ["model", "text"]),
    ],
)
def test_a_function_has_the_sdks_arguments_none_with_a_default(
    function: str, parameters: list[str]
) -> None:
    signature = inspect.signature(getattr(import_module("spin_sdk.llm"), function))
    assert list(signature.parameters) == parameters
    assert all(p.default is inspect.Parameter.empty for p in signature.parameters.values())


def test_infer_answers_as_the_engine_does(local: LocalEngine, engine: RecordingEngine) -> None:
    result = import_module("spin_sdk.llm").infer("tiny", "the cat")
    expected = local.infer("tiny", "the cat")
    assert result.text == expected.text
    assert vars(result.usage) == {
        "prompt_token_count": expected.usage.prompt_token_count,
        "generated_token_count": expected.usage.generated_token_count,
    }


def test_infer_sends_all_parameters_as_the_sdk_does(engine: RecordingEngine) -> None:
    import_module("spin_sdk.llm").infer("tiny", "the cat")
    assert engine.calls[0].params == InferencingParams()


def test_no_options_are_the_defaults(engine: RecordingEngine) -> None:
    import_module("spin_sdk.llm").infer_with_options("tiny", "the cat", None)
    assert engine.calls[0].params == InferencingParams()


def test_options_reach_the_engine_in_the_order_of_the_interface(engine: RecordingEngine) -> None:
    llm = import_module("spin_sdk.llm")
    llm.infer_with_options("tiny", "the cat", llm.InferencingParams(3, 1.2, 5, 0.7, 9, 0.6))
    assert engine.calls[0].params == InferencingParams(
        max_tokens=3,
        repeat_penalty=1.2,
        repeat_penalty_last_n_token_count=5,
        temperature=0.7,
        top_k=9,
        top_p=0.6,
    )


def test_the_interface_itself_takes_none(engine: RecordingEngine) -> None:
    import_module("spin_sdk.wit.imports.llm").infer("tiny", "the cat", None)
    assert engine.calls[0].params is None


def test_embeddings_are_the_engines(local: LocalEngine, engine: RecordingEngine) -> None:
    result = import_module("spin_sdk.llm").generate_embeddings("embedder", ["the cat", "sat"])
    expected = local.generate_embeddings("embedder", ["the cat", "sat"])
    assert result.embeddings == expected.embeddings
    assert result.usage.prompt_token_count == expected.usage.prompt_token_count


@pytest.mark.parametrize(
    ("error", "case"),
    [
        (ModelNotSupported("no"), ("Error_ModelNotSupported", ())),
        (InvalidInput("too long"), ("Error_InvalidInput", ("too long",))),
        (LlmRuntimeError("no memory"), ("Error_RuntimeError", ("no memory",))),
        (LlmError("something"), ("Error_RuntimeError", ("something",))),
    ],
)
@pytest.mark.parametrize("interface", ["llm", "fermyon_spin_llm_2_0_0"])
def test_an_error_of_the_engine_is_an_err_with_its_case(
    error: LlmError, case: tuple[str, tuple[str, ...]], interface: str, engine: RecordingEngine
) -> None:
    engine.fail_next(error)
    with pytest.raises(Err) as caught:
        import_module("spin_sdk.llm").infer("tiny", "the cat")
    name, values = case
    expected = getattr(import_module(f"spin_sdk.wit.imports.{interface}"), name)(*values)
    assert caught.value == Err(expected)


def test_embeddings_that_fail_raise_err_too(engine: RecordingEngine) -> None:
    engine.fail_next(ModelNotSupported("no"))
    with pytest.raises(Err, match="Error_ModelNotSupported"):
        import_module("spin_sdk.llm").generate_embeddings("embedder", ["the cat"])


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("module", ["spin_sdk.wit.types", "componentize_py_types"])
def test_err_is_where_the_sdks_have_it(module: str) -> None:
    assert import_module(module).Err is Err


@pytest.mark.usefixtures("engine")
def test_an_err_passes_through_a_with_statement() -> None:
    @contextmanager
    def something() -> Iterator[None]:
        yield

    with pytest.raises(Err), something():
        raise Err("refused")


# --- Handlers ------------------------------------------------------------------------------------

ECHO = """
    from spin_sdk.http import IncomingHandler, Request, Response

    class IncomingHandler(IncomingHandler):
        def handle_request(self, request: Request) -> Response:
            seen = f"{request.method} {request.uri} {request.headers} {request.body}"
            return Response(201, {"X-Seen": seen}, None)
"""


@pytest.mark.usefixtures("engine")
def test_a_handler_sees_what_spin_would_give_it(tmp_path: Path) -> None:
    request = Request("POST", "/a?b=c", {"Content-Type": "text/plain"}, None)
    response = handle(handler_file(tmp_path, ECHO), request)
    seen = "POST /a?b=c {'content-type': 'text/plain'} b''"
    assert response == Response(201, {"x-seen": seen, "content-length": "0"}, b"")


@pytest.mark.usefixtures("engine")
def test_a_module_is_a_handler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(handler_file(tmp_path, ECHO, "echo_app.py").parent)
    assert handle(import_module("echo_app"), GET).status == 201


def test_a_handler_is_answered_by_the_engine(
    tmp_path: Path, local: LocalEngine, engine: RecordingEngine
) -> None:
    source = """
        from spin_sdk import http, llm

        class IncomingHandler(http.IncomingHandler):
            def handle_request(self, request):
                answer = llm.infer("tiny", request.body.decode())
                return http.Response(200, {}, answer.text.encode())
    """
    response = handle(handler_file(tmp_path, source), Request("POST", "/", {}, b"the cat"))
    assert response.body == local.infer("tiny", "the cat").text.encode()
    assert engine.calls[0].prompt == "the cat"


def test_a_handler_of_spin_sdk_5_is_awaited(tmp_path: Path, engine: RecordingEngine) -> None:
    source = """
        from componentize_py_types import Err
        from spin_sdk import http, llm
        from spin_sdk.wit.imports.fermyon_spin_llm_2_0_0 import Error_InvalidInput

        class HttpHandler(http.Handler):
            async def handle_request(self, request):
                try:
                    llm.infer("tiny", "the cat")
                except Err as error:
                    match error.value:
                        case Error_InvalidInput(message):
                            return http.Response(400, {}, message.encode())
    """
    engine.fail_next(InvalidInput("too long"))
    response = handle(handler_file(tmp_path, source), GET)
    assert (response.status, response.body) == (400, b"too long")


@pytest.mark.usefixtures("engine")
def test_a_content_length_of_the_handlers_own_is_kept(tmp_path: Path) -> None:
    source = """
        from spin_sdk import http

        class IncomingHandler(http.IncomingHandler):
            def handle_request(self, request):
                return http.Response(200, {"Content-Length": "2"}, b"ok")
    """
    assert handle(handler_file(tmp_path, source), GET).headers == {"content-length": "2"}


@pytest.mark.usefixtures("engine")
def test_an_exception_of_a_handler_is_raised_in_the_test(tmp_path: Path) -> None:
    source = """
        from spin_sdk import http

        class IncomingHandler(http.IncomingHandler):
            def handle_request(self, request):
                raise ZeroDivisionError("by hand")
    """
    with pytest.raises(ZeroDivisionError, match="by hand"):
        handle(handler_file(tmp_path, source), GET)


COUNTING = """
    from spin_sdk import http
    from neighbour import count

    class IncomingHandler(http.IncomingHandler):
        def handle_request(self, request):
            return http.Response(200, {}, str(count()).encode())
"""
NEIGHBOUR = """
    n = 0

    def count():
        global n
        n += 1
        return n
"""


@pytest.mark.usefixtures("engine")
def test_a_file_and_its_neighbours_are_read_anew_for_each_request(tmp_path: Path) -> None:
    handler_file(tmp_path, NEIGHBOUR, "neighbour.py")
    app = handler_file(tmp_path, COUNTING)
    assert [handle(app, GET).body for _ in range(2)] == [b"1", b"1"]


@pytest.mark.usefixtures("engine")
def test_a_file_leaves_nothing_to_import(tmp_path: Path) -> None:
    handler_file(tmp_path, NEIGHBOUR, "neighbour.py")
    before = list(sys.path)
    handle(handler_file(tmp_path, COUNTING, "counting_app.py"), GET)
    assert sys.path == before
    assert not {"counting_app", "neighbour"} & sys.modules.keys()


@pytest.mark.usefixtures("engine")
def test_a_package_further_down_stays_imported(tmp_path: Path) -> None:
    # As in a project with its virtual environment inside: some packages load only once.
    packages = tmp_path / ".venv"
    packages.mkdir()
    handler_file(packages, "", "heavy_package.py")
    source = f"""
        import sys
        sys.path.append({str(packages)!r})
        import heavy_package
        sys.path.pop()
    """
    try:
        with pytest.raises(InvalidInput, match="has no handler"):
            handle(handler_file(tmp_path, source), GET)
        assert "heavy_package" in sys.modules
    finally:
        sys.modules.pop("heavy_package", None)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    "source",
    ["", "from spin_sdk.http import IncomingHandler", "class IncomingHandler: ..."],
)
def test_a_file_without_a_handler_is_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"app\.py has no handler: it needs a `class Incoming"):
        handle(handler_file(tmp_path, source), GET)


@pytest.mark.usefixtures("engine")
def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"there is no handler at .*nowhere\.py"):
        handle(tmp_path / "nowhere.py", GET)


@pytest.mark.usefixtures("engine")
def test_a_file_that_is_not_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"app\.txt is not a Python file"):
        handle(handler_file(tmp_path, "", "app.txt"), GET)


def test_without_the_stand_in_no_handler_runs(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="call handle inside `with spin_sdk_backed_by"):
        handle(handler_file(tmp_path, ECHO), GET)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    ("response", "complaint"),
    [
        ("{'status': 200}", r"must be a spin_sdk\.http\.Response, not dict"),
        ("request", r"must be a spin_sdk\.http\.Response, not Request"),
        ("http.Response(200, {}, 'text')", r"body must be bytes .* not str; a text needs \.encode"),
        ("http.Response('200', {}, b'')", "status must be a number from 100 to 999, not '200'"),
        ("http.Response(42, {}, b'')", "status must be a number from 100 to 999, not 42"),
        ("http.Response(200, {'x': 1}, b'')", "headers must be text, not 'x': 1"),
        ("http.Response(200, None, b'')", "headers must be a dict, not None"),
    ],
)
def test_a_response_that_spin_could_not_send_is_refused(
    response: str, complaint: str, tmp_path: Path
) -> None:
    source = f"""
        from spin_sdk import http

        class IncomingHandler(http.IncomingHandler):
            def handle_request(self, request):
                return {response}
    """
    with pytest.raises(TypeError, match=complaint):
        handle(handler_file(tmp_path, source), GET)


@pytest.mark.usefixtures("engine")
def test_a_request_whose_body_is_text_is_refused(tmp_path: Path) -> None:
    request = Request("POST", "/", {}, "text")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"the request's body must be bytes or None, not str"):
        handle(handler_file(tmp_path, ECHO), request)


@pytest.mark.usefixtures("engine")
def test_a_module_without_a_file_is_named_too() -> None:
    with pytest.raises(InvalidInput, match="nothing has no handler"):
        handle(ModuleType("nothing"), GET)
