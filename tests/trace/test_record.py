"""A trace has every value of a run, bit for bit, and what the sampler did."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import asdict
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open

from refllm import InferencingParams, InvalidInput, LlamaModel, LocalEngine, load
from refllm.checkpoints.open import open_weights
from refllm.models.load import BertModel
from refllm.plain.llama import forward
from refllm.sampling import sample, uniform
from refllm.trace import Trace, metadata, open_trace, record
from refllm.trace.writer import array_file

PROMPT = "Once upon a time"
SCHEMA = json.loads(
    Path(metadata.__file__).with_name("trace.schema.json").read_text(encoding="utf-8")
)


@pytest.fixture(scope="module")
def llama() -> LlamaModel:
    model = load("tiny-chat")
    assert isinstance(model, LlamaModel)
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    to = tmp_path_factory.mktemp("trace") / "run.safetensors"
    return record("tiny-chat", PROMPT, to=to, params=InferencingParams(max_tokens=4))


def tapped(llama: LlamaModel, token_ids: list[int]) -> dict[str, NDArray[np.float32]]:
    """All values of one call without a cache, by the names of a trace."""
    values: dict[str, NDArray[np.float32]] = {}

    def keep(name: str, array: NDArray[np.float32], /) -> None:
        values[f"{name}#2" if name in values else name] = array.copy()

    llama.forward(token_ids, tap=keep)
    return values


def test_a_trace_has_every_value_of_the_prompt_in_the_order_of_computation(
    run: Trace, llama: LlamaModel
) -> None:
    expected = tapped(llama, llama.prompt_tokens(PROMPT))
    assert run.metadata.calls[0].values == tuple(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(run.value(name), array, err_msg=name)


def test_the_values_of_a_drawn_token_are_those_of_its_row_in_the_whole_text(
    run: Trace, llama: LlamaModel
) -> None:
    [text] = run.metadata.texts
    expected = tapped(llama, list(text.token_ids[:-1]))
    assert [(call.first, call.n_tokens) for call in run.metadata.calls] == [
        *((0, 5), (5, 1), (6, 1), (7, 1)),
    ]
    for i, call in enumerate(run.metadata.calls[1:], 1):
        for name in call.values:
            if name.startswith("kq_soft_max"):
                row = expected[name][:, [call.first], : call.first + 1]
            else:
                row = expected[name][[call.first]]
            np.testing.assert_array_equal(run.value(name, i), row, err_msg=name)


def test_logits_are_those_of_the_float64_network(run: Trace, llama: LlamaModel) -> None:
    tensors = {name: each.array() for name, each in open_weights(llama.path).tensors.items()}
    [text] = run.metadata.texts
    expected = forward(llama.config, tensors, text.token_ids[:-1])
    rows = [run.value("result_output", call) for call in range(len(run.metadata.calls))]
    np.testing.assert_allclose(np.concatenate(rows), expected, atol=1e-4)


def test_each_draw_has_the_candidates_of_each_stage(run: Trace) -> None:
    [text] = run.metadata.texts
    params = InferencingParams(max_tokens=4)
    assert run.metadata.params == asdict(params)
    assert len(run.metadata.draws) == 4
    for i, draw in enumerate(run.metadata.draws):
        logits = run.value("result_output", draw.call)[-1]
        again = sample(logits, params, text.token_ids[: text.n_given + i], uniform(0, i), step=i)
        step = run.step(i)
        assert (step.token, step.u, step.counts) == (again.token, again.u, again.counts)
        assert text.token_ids[text.n_given + i] == step.token
        np.testing.assert_array_equal(step.penalties.after, again.penalties.after)
        for stage, expected in zip(step.stages, again.stages, strict=True):
            np.testing.assert_array_equal(stage.candidates.ids, expected.candidates.ids)
            np.testing.assert_array_equal(
                stage.candidates.probabilities, expected.candidates.probabilities
            )


def test_the_drawn_tokens_are_the_engine_s_text(run: Trace, llama: LlamaModel) -> None:
    [text] = run.metadata.texts
    given, drawn = text.token_ids[: text.n_given], text.token_ids[text.n_given :]
    expected = LocalEngine().infer("tiny-chat", PROMPT, InferencingParams(max_tokens=4)).text
    assert llama.tokenizer.decode_continuation(given, drawn) == expected
    assert text.pieces == tuple(map(llama.tokenizer.piece, text.token_ids))


def test_without_steps_the_prompt_alone_is_computed(tmp_path: Path) -> None:
    params = InferencingParams(max_tokens=0)
    trace = record("tiny-chat", PROMPT, to=tmp_path / "run", params=params)
    assert (len(trace.metadata.calls), trace.metadata.draws) == (1, ())


def test_a_trace_of_an_encoder_has_a_call_for_each_text(tmp_path: Path) -> None:
    texts = ["A cat sat on the mat.", "Dogs bark."]
    trace = record("tiny-embed", texts, to=tmp_path / "run")
    model = load("tiny-embed")
    assert isinstance(model, BertModel)
    together = model.embed(texts)
    for i, call in enumerate(trace.metadata.calls):
        assert (call.text, call.first) == (i, 0)
        assert call.n_tokens == len(trace.metadata.texts[i].token_ids)
        assert call.values[0] == "inp_embd"
        np.testing.assert_array_equal(trace.value("result_embd", i)[0], together[i])


def test_an_encoder_in_the_profile_spin_local_has_the_engine_s_vectors(tmp_path: Path) -> None:
    texts = ["A cat sat on the mat.", "Dogs bark."]
    engine = LocalEngine(profile="spin-local")
    trace = record("tiny-embed", texts, to=tmp_path / "run", engine=engine)
    expected = engine.generate_embeddings("tiny-embed", texts).embeddings
    for i, vector in enumerate(expected):
        assert trace.value("result_embd", i)[0].tolist() == vector


def test_only_values_of_these_names_are_written(tmp_path: Path, run: Trace) -> None:
    only = ("Qcur-*", "result_output")
    trace = record("tiny-chat", PROMPT, to=tmp_path / "run", only=only)
    assert set(trace.metadata.calls[0].values) == {
        *(f"Qcur-{i}{second}" for i in range(4) for second in ("", "#2")),
        "result_output",
    }
    np.testing.assert_array_equal(trace.value("Qcur-2#2"), run.value("Qcur-2#2"))
    assert trace.metadata.only == only


def test_names_that_no_value_has_are_refused_with_the_names_there_are(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no value has a name like Q-0; the names are") as error:
        record("tiny-chat", PROMPT, to=tmp_path / "run", only=["Q-0"])
    assert "Qcur-0" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.write_text("mine")
    with pytest.raises(InvalidInput, match="exists already"):
        record("tiny-chat", PROMPT, to=path)
    assert path.read_text() == "mine"
    record("tiny-chat", PROMPT, to=path, overwrite=True)
    assert open_trace(path).metadata.model == "tiny-chat"


def test_the_same_run_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        record("tiny-chat", PROMPT, to=tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def spans(trace: Trace) -> list[tuple[int, int]]:
    return [(call.first, call.n_tokens) for call in trace.metadata.calls]


@pytest.mark.parametrize(
    ("prompt_calls", "expected"),
    [
        ([4], [(0, 4), (4, 1), (5, 1)]),
        ([2, 3], [(0, 2), (2, 3), (5, 1)]),
        ([1, 1, 9, 9], [(0, 1), (1, 1), (2, 3), (5, 1)]),
    ],
)
def test_a_prompt_of_several_calls_has_the_values_of_one(
    prompt_calls: list[int],
    expected: list[tuple[int, int]],
    run: Trace,
    tmp_path: Path,
    llama: LlamaModel,
) -> None:
    params, to = InferencingParams(max_tokens=2), tmp_path / "run"
    trace = record("tiny-chat", PROMPT, to=to, params=params, prompt_calls=prompt_calls)
    assert spans(trace) == expected
    assert [draw.call for draw in trace.metadata.draws] == [len(expected) - 2, len(expected) - 1]
    whole = tapped(llama, list(trace.metadata.texts[0].token_ids[:-1]))
    for name in ("Kcur-0#2", "kqv_out-2", "l_out-3", "result_output"):
        rows = np.concatenate([trace.value(name, i) for i in range(len(expected))])
        np.testing.assert_array_equal(rows, whole[name], err_msg=name)
    assert trace.metadata.texts[0].token_ids == run.metadata.texts[0].token_ids[:7]


def test_a_prompt_of_more_tokens_than_a_piece_is_one_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refllm.generate.PROMPT_PIECE", 2)
    monkeypatch.setattr("refllm.trace.recorder.PROMPT_PIECE", 2)
    trace = record("tiny-chat", PROMPT, to=tmp_path / "whole", only=["l_out-3"])
    assert spans(trace) == [(0, 5)]
    monkeypatch.setattr("refllm.trace.recorder.MAX_WEIGHTS", 8 * 5**2)  # 8 heads, 5 tokens
    assert spans(record("tiny-chat", PROMPT, to=tmp_path / "most")) == [(0, 5)]
    monkeypatch.setattr("refllm.trace.recorder.MAX_WEIGHTS", 8 * 5**2 - 1)
    assert spans(record("tiny-chat", PROMPT, to=tmp_path / "split")) == [(0, 2), (2, 2), (4, 1)]


def test_a_call_of_no_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidInput, match=r"each of prompt_calls must be at least 1; got \[2, 0\]"
    ):
        record("tiny-chat", PROMPT, to=tmp_path / "run", prompt_calls=[2, 0])


@pytest.mark.parametrize("model", ["tiny-chat", "tiny-embed"])
def test_the_metadata_are_as_the_published_schema_has_them(tmp_path: Path, model: str) -> None:
    trace = record(model, PROMPT, to=tmp_path / "run")
    with safe_open(trace.path, framework="numpy") as file:
        stored = json.loads(file.metadata()["refllm.trace"])
        keys = set(file.keys())
    jsonschema.validate(stored, SCHEMA)
    assert stored.keys() <= SCHEMA["properties"].keys()
    named = {f"calls/{i}/{n}" for i, call in enumerate(stored["calls"]) for n in call["values"]}
    assert named == {key for key in keys if key.startswith("calls/")}
    assert trace.metadata.numerics_revision == 2


def test_progress_counts_the_layers_of_all_calls(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    record(
        "tiny-chat",
        PROMPT,
        to=tmp_path / "run",
        params=InferencingParams(max_tokens=2),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(i, 8) for i in range(1, 9)]


def test_arrays_are_written_in_the_memory_of_one(tmp_path: Path) -> None:
    array = np.arange(2**18, dtype=np.float32)  # 1 MiB
    path = tmp_path / "many.safetensors"
    tracemalloc.start()
    try:
        with array_file(path) as writer:
            for i in range(64):
                writer.add(str(i), array.reshape(512, 512).T)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 64 * 2**20
    assert peak < 4 * 2**20
    with safe_open(path, framework="numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("63"), array.reshape(512, 512).T)
