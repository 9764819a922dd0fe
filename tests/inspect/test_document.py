"""The document of a run: its numbers are those of the network, and it fits its schema."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import zlib
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from numpy.typing import NDArray

from refllm.checkpoints.open import open_weights
from refllm.engine import LocalEngine
from refllm.errors import InvalidInput
from refllm.inspect import run as run_module
from refllm.inspect.document import document_of, encoded
from refllm.inspect.files import single_file
from refllm.inspect.quantization import PARTS, quantization_of
from refllm.inspect.run import Run, run_of
from refllm.interface import InferencingParams
from refllm.models.bundled import ROOT
from refllm.models.load import BertModel, LlamaModel
from refllm.quant import FORMATS, quantized
from refllm.trace import record
from tests.conftest import PROJECT

SCHEMA = json.loads((PROJECT / "refllm" / "inspect" / "document.schema.json").read_text("utf-8"))
FILE_BYTES = 3_000_000
TEXTS = ("A cat sleeps.", "The cat naps.", "Stocks fell on Monday.")

Floats = NDArray[np.float32]


@pytest.fixture(scope="module")
def engine() -> LocalEngine:
    return LocalEngine(seed=7)


@pytest.fixture(scope="module")
def told(engine: LocalEngine) -> Run:
    """A run of tiny-chat of 60 tokens."""
    params = InferencingParams(max_tokens=55)
    return run_of(engine, "tiny-chat", ["Once upon a time"], params, name="tiny-chat")


@pytest.fixture(scope="module")
def embedded(engine: LocalEngine) -> Run:
    """A run of tiny-embed over three texts."""
    return run_of(engine, "tiny-embed", TEXTS, InferencingParams(), name="tiny-embed")


@pytest.fixture(scope="module")
def document(told: Run) -> dict[str, Any]:
    return document_of(told, n_array_bytes=2_600_000)


def numbers_of(array: dict[str, Any]) -> Floats:
    """The numbers of an array of a document, read as its schema says."""
    dtype = np.dtype(array["dtype"])
    planes = np.frombuffer(zlib.decompress(base64.b64decode(array["data"])), np.uint8)
    joined = np.ascontiguousarray(planes.reshape(dtype.itemsize, -1).T)
    numbers = joined.view(dtype.newbyteorder("<")).reshape(array["shape"])
    return np.asarray(numbers, np.float32)


def errors_in(document: dict[str, Any]) -> list[str]:
    """What the schema refuses in the document, as JSON."""
    content = json.loads(json.dumps(document, allow_nan=False))
    return [error.message for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(content)]


def test_the_document_of_a_llama_fits_the_schema(document: dict[str, Any]) -> None:
    assert errors_in(document) == []
    assert errors_in({**document, "format": "another"}) != []


def test_the_document_of_an_encoder_fits_the_schema(embedded: Run) -> None:
    assert errors_in(document_of(embedded, n_array_bytes=2_600_000)) == []


def test_each_array_is_the_value_that_the_network_shows(
    told: Run, document: dict[str, Any]
) -> None:
    assert isinstance(told.model, LlamaModel)
    seen: dict[str, Floats] = {}

    def take(name: str, array: Floats, /) -> None:
        seen[f"0/{name}#2" if f"0/{name}" in seen else f"0/{name}"] = array.copy()

    told.model.forward(told.token_ids[0], tap=take)
    scores = {f"0/kq-{i}" for i in range(4)}
    assert told.values.keys() - scores == seen.keys()
    for name, array in seen.items():
        assert np.array_equal(told.array(name), array)
    for name, array in document["arrays"].items():
        if name in seen and array["data"] is not None:
            expected = seen[name].astype(array["dtype"]).astype(np.float32)
            assert np.array_equal(numbers_of(array), expected), name


def test_the_values_have_the_names_and_the_bits_of_a_trace_of_the_run(
    told: Run, engine: LocalEngine, tmp_path: Path
) -> None:
    params = InferencingParams(max_tokens=4)
    trace = record(
        "tiny-chat", "Once upon a time", to=tmp_path / "t.safetensors", params=params, engine=engine
    )
    for call, part in ((0, slice(0, 5)), (3, slice(7, 8))):
        names = trace.metadata.calls[call].values
        assert {f"0/{name}" for name in names} <= told.values.keys()
        for name in ("inp_embd", "Qcur-1", "Qcur-1#2", "ffn_swiglu-2", "l_out-3", "result_norm"):
            assert np.array_equal(trace.value(name, call), told.array(f"0/{name}")[part]), name
    assert [draw.token_id for draw in trace.metadata.draws] == [
        draw.step.token for draw in told.draws[:4]
    ]


def test_an_encoder_s_arrays_are_those_of_each_text_alone(embedded: Run) -> None:
    assert isinstance(embedded.model, BertModel)
    for call, ids in enumerate(embedded.token_ids):
        assert np.array_equal(
            embedded.array(f"{call}/l_out-1"), embedded.model.network.hidden([ids])
        )


@pytest.mark.parametrize("which", ["told", "embedded"])
def test_the_softmax_of_the_scores_is_the_attention_weight(
    which: str, request: pytest.FixtureRequest
) -> None:
    run: Run = request.getfixturevalue(which)
    scores = run.array("0/kq-1").astype(np.float64)  # [H, T, S]
    weights = np.exp(np.where(np.isnan(scores), -np.inf, scores))
    weights /= weights.sum(axis=-1, keepdims=True)
    assert np.allclose(weights, run.array("0/kq_soft_max-1"), rtol=1e-4, atol=1e-7)


def test_a_value_that_is_not_kept_is_computed_again_with_the_same_bits(
    told: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "KEPT_BYTES", 0)
    params = InferencingParams(max_tokens=55)
    small = run_of(told.engine, "tiny-chat", ["Once upon a time"], params, name="tiny-chat")
    left_out = [name for name, value in small.values.items() if value.array is None]
    assert len(left_out) > 40
    assert not any(name.startswith(("0/l_out", "0/attn_out")) for name in left_out)
    for name in ("0/Qcur-0", "0/Qcur-0#2", "0/kq-3", "0/ffn_up-2"):
        assert np.array_equal(small.array(name), told.array(name), equal_nan=True)
    with pytest.raises(InvalidInput, match="no value 'nothing'"):
        small.array("nothing")


def test_the_last_layer_of_the_lens_has_the_model_s_own_probabilities(
    told: Run, document: dict[str, Any]
) -> None:
    assert isinstance(told.model, LlamaModel)
    logits = told.model.forward(told.token_ids[0]).astype(np.float64)  # [T, V]
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    last = document["lens"]["layers"][-1]
    assert last["after"] == "l_out-3"
    for t, place in enumerate(last["positions"]):
        order = np.argsort(-shares[t], kind="stable")[:5]
        assert place["ids"] == order.tolist()
        assert place["probabilities"] == pytest.approx(shares[t][order].tolist(), rel=1e-9)
        if t + 1 < len(shares):
            following = told.token_ids[0][t + 1]
            assert place["next"]["probability"] == pytest.approx(shares[t][following], rel=1e-9)
            assert place["next"]["rank"] == 1 + int((shares[t] > shares[t][following]).sum())


def test_the_lengths_of_the_residual_stream_are_those_of_the_values(
    told: Run, document: dict[str, Any]
) -> None:
    for i, layer in enumerate(document["residual"][0]):
        for key, name in (("attention", "attn_out"), ("feed_forward", "ffn_out")):
            lengths = np.linalg.norm(told.array(f"0/{name}-{i}").astype(np.float64), axis=1)
            assert layer[key] == pytest.approx(lengths.tolist(), rel=1e-12)
        stream = told.array("0/inp_embd" if i == 0 else f"0/l_out-{i - 1}").astype(np.float64)
        assert layer["before"] == pytest.approx(np.linalg.norm(stream, axis=1).tolist(), rel=1e-12)


def test_the_pooling_weights_make_the_vectors(embedded: Run) -> None:
    content = document_of(embedded)["embeddings"]
    for call, weights in enumerate(content["weights"]):
        pooled = np.array(weights) @ embedded.array(f"{call}/l_out-1").astype(np.float64)
        pooled /= np.linalg.norm(pooled)
        assert np.allclose(pooled, content["vectors"][call], atol=1e-6)
    assert content["cosines"][0][1] > content["cosines"][0][2]
    assert np.allclose(np.diag(content["cosines"]), 1)


def test_the_file_of_60_tokens_has_at_most_3_mb_and_all_arrays(
    told: Run, document: dict[str, Any]
) -> None:
    assert len(told.token_ids[0]) == 60
    assert [name for name, array in document["arrays"].items() if not array["data"]] == []
    assert len(single_file(document).encode()) <= FILE_BYTES


def test_without_room_an_array_has_its_shape_alone(told: Run) -> None:
    arrays = document_of(told, n_array_bytes=100_000)["arrays"]
    kept = [name for name, array in arrays.items() if array["data"]]
    assert any(name.startswith("0/kq_soft_max") for name in kept)
    assert sum(len(arrays[name]["data"]) for name in kept) <= 100_000
    assert all(array["shape"] for array in arrays.values())


def test_a_text_in_the_prompt_cannot_end_the_file_s_elements(engine: LocalEngine) -> None:
    prompt = "</script><script>alert(1)</script><!--"
    run = run_of(engine, "tiny-chat", [prompt], InferencingParams(max_tokens=1), name="</title>")
    page = single_file(document_of(run))
    assert "alert(1)" not in page
    assert page.count("</script>") == 3  # the document, the arrays, the program
    assert page.count("</title>") == 1


def test_the_file_allows_its_own_script_and_style_by_their_hashes_and_no_request(
    document: dict[str, Any],
) -> None:
    page = single_file(document)
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    rules = dict(rule.strip().split(" ", 1) for rule in html.unescape(policy).split(";"))
    for rule, element in (("script-src", 'script type="module"'), ("style-src", "style")):
        (text,) = re.findall(rf"<{element}>(.*?)</{element.split()[0]}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules.pop(rule) == f"'sha256-{digest}'"
    assert rules.pop("img-src") == "data:"  # the page's icon, which is empty
    assert rules == {"default-src": "'none'", "base-uri": "'none'", "form-action": "'none'"}
    assert re.findall(r'(?:src|href)="([^"]*)"', page) == ["data:,"]
    assert not re.search(r"^import |\bstyle=\"", page, re.MULTILINE)


def test_float16_is_as_the_schema_says() -> None:
    x = np.array([[1.5, -2.0], [np.nan, 65504.0]], np.float32)
    array = {"shape": [2, 2], "dtype": "float16", "data": encoded(x, "float16")}
    assert np.array_equal(numbers_of(array), x, equal_nan=True)


# Quantization


@pytest.mark.parametrize("name", PARTS)
def test_the_parts_of_a_block_are_its_bytes(name: str) -> None:
    assert sum(n for _, n in PARTS[name]) == FORMATS[name].block_bytes


def test_the_bytes_and_the_numbers_are_those_of_the_file() -> None:
    tensors = open_weights(ROOT / "llama" / "tiny-chat.gguf").tensors
    tensor = tensors["blk.2.ffn_up.weight"]
    found = quantization_of(tensors, "blk.2.ffn_up.weight", row=500, column=70)
    own = found["types"][0]
    assert (own["type"], own["column"]) == ("Q8_0", 64)
    assert bytes.fromhex(own["bytes"]) == tensor.data[500, 68:102].tobytes()
    assert own["values"] == own["reference"] == tensor.array()[500, 64:96].tolist()
    assert own["max_error"] == 0
    scale = np.frombuffer(bytes.fromhex(own["bytes"])[:2], "<f2")[0]
    levels = np.frombuffer(bytes.fromhex(own["bytes"])[2:], np.int8)
    assert own["values"] == (levels * np.float32(scale)).tolist()


def test_a_byte_touches_the_numbers_that_the_format_s_drawing_has_there() -> None:
    rows = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)
    tensors = {"w": quantized("w", rows, "Q4_0")}
    own = quantization_of(tensors, "w")["types"][0]
    assert own["type"] == "Q4_0"
    is_zero = [value == 0 for value in own["values"]]
    assert own["touches"][0] == [i for i in range(32) if not is_zero[i]]
    assert own["touches"][1] == list(range(32))  # its sign changes a zero's, too
    assert own["touches"][2:] == [[i, i + 16] for i in range(16)]


def test_the_histogram_and_the_errors_are_those_of_the_coded_matrix() -> None:
    rows = np.random.default_rng(1).standard_normal((3, 256)).astype(np.float32)
    found = quantization_of({"w": quantized("w", rows, "F32")}, "w", row=2)
    by_type = {each["type"]: each for each in found["types"]}
    for name in ("Q8_0", "Q4_0", "Q4_K", "BF16", "F16"):
        errors = quantized("w", rows, name).array().astype(np.float64) - rows
        assert by_type[name]["rms_error"] == pytest.approx(np.sqrt((errors**2).mean()))
        assert by_type[name]["max_error"] == np.abs(errors).max()
        assert sum(by_type[name]["histogram"]["counts"]) == rows.size
    assert by_type["Q4_0"]["rms_error"] > by_type["Q8_0"]["rms_error"] > 0


@pytest.mark.parametrize(
    ("name", "place", "problem"),
    [
        ("blk.9.attn_q.weight", {}, "has no matrix 'blk.9.attn_q.weight'"),
        ("output_norm.weight", {}, "has no matrix"),
        ("blk.0.attn_q.weight", {"row": 256}, "256 rows and 256 columns, asked for row 256"),
        ("blk.0.attn_q.weight", {"column": -1}, "column -1"),
    ],
)
def test_a_place_outside_the_model_is_named(name: str, place: dict[str, int], problem: str) -> None:
    tensors = open_weights(ROOT / "llama" / "tiny-chat.gguf").tensors
    with pytest.raises(InvalidInput, match=problem):
        quantization_of(tensors, name, **place)


def test_a_type_that_cannot_hold_a_number_is_left_out_with_its_reason() -> None:
    numbers = np.ones((3, 32), np.float32)
    numbers[1, 5] = 1e38
    found = quantization_of({"x": quantized("x", numbers, "F32")}, "x")
    left_out = {each["type"]: each["reason"] for each in found["left_out"]}
    assert "1e+38" in left_out["F16"]
    shown = [each["type"] for each in found["types"]]
    assert {"F32", "BF16"} <= set(shown)
    assert not set(shown) & set(left_out)
    assert found["n_measured_rows"] == 3
    json.dumps(found, allow_nan=False)


def test_a_stored_number_that_is_not_finite_leaves_every_type_out() -> None:
    numbers = np.ones((2, 32), np.float32)
    tensor = quantized("x", numbers, "F32")
    tensor.data.view("<f4")[0, 0] = np.inf
    found = quantization_of({"x": tensor}, "x", row=1)
    assert found["types"] == []
    assert found["left_out"][0] == {
        "type": "F32",
        "reason": "tensor x has a number that is not finite",
    }
    schema = {**SCHEMA["$defs"]["quantization"], "$defs": SCHEMA["$defs"]}
    jsonschema.validate(json.loads(json.dumps(found, allow_nan=False)), schema)


def test_several_prompts_for_a_llama_are_refused(engine: LocalEngine) -> None:
    with pytest.raises(InvalidInput, match="takes one prompt, got 2"):
        run_of(engine, "tiny-chat", ["a", "b"], InferencingParams(), name="tiny-chat")


def test_a_full_context_is_shown_without_the_token_that_does_not_fit(
    engine: LocalEngine,
) -> None:
    ids = engine.inferencing_model("tiny-chat").prompt_tokens("a b c d e f " * 80)[:510]
    prompt = engine.inferencing_model("tiny-chat").tokenizer.decode(ids)
    params = InferencingParams(max_tokens=100)
    run = run_of(engine, "tiny-chat", [prompt], params, name="tiny-chat")
    n_drawn_or_given = run.n_prompt[0] + len(run.draws)
    assert len(run.token_ids[0]) == min(512, n_drawn_or_given)
    assert n_drawn_or_given > 500
    assert len(document_of(run)["lens"]["layers"][0]["positions"]) == len(run.token_ids[0])
