"""The recording engine: the real answers, every call, and failures on demand."""

from __future__ import annotations

import threading

import pytest

from refllm.api import InferencingParams, InvalidInput, LlmRuntimeError, ModelNotSupported
from refllm.engine import LocalEngine
from refllm.spin.remote import RemoteEngine
from refllm.testing.recording import Call, RecordingEngine
from tests.support.model_files import tiny_bert_gguf, tiny_llama_gguf

SHORT = InferencingParams(max_tokens=5)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> LocalEngine:
    root = tmp_path_factory.mktemp("ai-models")
    tiny_llama_gguf(root / "tiny.gguf")
    tiny_bert_gguf(root / "embedder.gguf")
    return LocalEngine(roots=[root])


@pytest.fixture
def recording(engine: LocalEngine) -> RecordingEngine:
    return RecordingEngine(engine)


def test_the_answer_is_the_engines(engine: LocalEngine, recording: RecordingEngine) -> None:
    assert recording.infer("tiny", "the", SHORT) == engine.infer("tiny", "the", SHORT)


def test_the_vectors_are_the_engines(engine: LocalEngine, recording: RecordingEngine) -> None:
    texts = ["the cat", "sat"]
    vectors = engine.generate_embeddings("embedder", texts)
    assert recording.generate_embeddings("embedder", texts) == vectors


def test_a_call_is_kept_with_its_arguments_and_result(recording: RecordingEngine) -> None:
    result = recording.infer("tiny", "the", SHORT)
    call = Call(operation="infer", model="tiny", prompt="the", params=SHORT, result=result)
    assert recording.calls == (call,)


def test_omitted_params_are_recorded_as_none(recording: RecordingEngine) -> None:
    recording.infer("tiny", "the")
    assert recording.calls[0].params is None


def test_texts_are_kept_as_they_were(recording: RecordingEngine) -> None:
    texts = ["the cat", "sat"]
    result = recording.generate_embeddings("embedder", texts)
    texts.clear()
    call = Call(
        operation="generate_embeddings", model="embedder", texts=("the cat", "sat"), result=result
    )
    assert recording.calls == (call,)


def test_an_error_of_the_engine_is_kept_and_raised(recording: RecordingEngine) -> None:
    with pytest.raises(InvalidInput) as caught:
        recording.infer("absent", "the")
    assert recording.calls == (
        Call(operation="infer", model="absent", prompt="the", error=caught.value),
    )


def test_an_argument_that_is_no_list_is_refused_as_by_the_engine() -> None:
    recording = RecordingEngine(RemoteEngine("http://127.0.0.1:9"))
    for texts in ("the cat", 3):
        with pytest.raises(InvalidInput, match="put a single one in a list"):
            recording.generate_embeddings("embedder", texts)  # type: ignore[arg-type]


def test_calls_are_kept_in_order(recording: RecordingEngine) -> None:
    recording.infer("tiny", "one", SHORT)
    recording.generate_embeddings("embedder", ["two"])
    recording.infer("tiny", "three", SHORT)
    assert [call.prompt or call.texts for call in recording.calls] == ["one", ("two",), "three"]


class Unreachable:
    """An engine that must not be asked."""

    def infer(self, *_: object) -> None:
        raise AssertionError("the engine was asked")

    generate_embeddings = infer


def test_a_call_with_a_queued_failure_does_not_reach_the_engine() -> None:
    recording = RecordingEngine(Unreachable())  # type: ignore[arg-type]
    recording.fail_next(LlmRuntimeError("out of memory"))
    with pytest.raises(LlmRuntimeError, match="out of memory"):
        recording.infer("tiny", "the")


def test_embeddings_can_fail_on_request() -> None:
    recording = RecordingEngine(Unreachable())  # type: ignore[arg-type]
    recording.fail_next(ModelNotSupported("no"))
    with pytest.raises(ModelNotSupported):
        recording.generate_embeddings("embedder", ["the"])


def test_a_call_that_fails_on_request_is_kept(recording: RecordingEngine) -> None:
    error = LlmRuntimeError("out of memory")
    recording.fail_next(error)
    with pytest.raises(LlmRuntimeError):
        recording.infer("tiny", "the")
    assert [(call.prompt, call.error) for call in recording.calls] == [("the", error)]


def test_only_the_next_call_fails(engine: LocalEngine, recording: RecordingEngine) -> None:
    recording.fail_next(LlmRuntimeError("out of memory"))
    with pytest.raises(LlmRuntimeError):
        recording.infer("tiny", "the", SHORT)
    assert recording.infer("tiny", "the", SHORT) == engine.infer("tiny", "the", SHORT)


def test_several_failures_come_in_the_order_in_which_they_were_asked_for(
    recording: RecordingEngine,
) -> None:
    recording.fail_next(LlmRuntimeError("first"))
    recording.fail_next(InvalidInput("second"))
    with pytest.raises(LlmRuntimeError, match="first"):
        recording.infer("tiny", "the")
    with pytest.raises(InvalidInput, match="second"):
        recording.infer("tiny", "the")


def test_an_error_outside_the_interface_is_refused(recording: RecordingEngine) -> None:
    with pytest.raises(TypeError, match=r"error of the interface.*got ValueError\('x'\)"):
        recording.fail_next(ValueError("x"))  # type: ignore[arg-type]


def test_calls_from_several_threads_are_all_kept(recording: RecordingEngine) -> None:
    n_threads, n_calls = 8, 50
    for _ in range(n_threads * n_calls):
        recording.fail_next(LlmRuntimeError("no"))
    start = threading.Barrier(n_threads)

    def ask(name: str) -> None:
        start.wait()
        for number in range(n_calls):
            with pytest.raises(LlmRuntimeError):
                recording.infer(name, str(number))

    threads = [threading.Thread(target=ask, args=[str(i)]) for i in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = {(call.model, call.prompt) for call in recording.calls}
    assert kept == {(str(i), str(n)) for i in range(n_threads) for n in range(n_calls)}
    assert len(recording.calls) == n_threads * n_calls
