"""golden/logits: the file is whole, kernels and oracle give it, and wrong networks do not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import jsonschema
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from refllm import oracle
from refllm.conform.models import model_sha256s
from refllm.models.load import LlamaModel, load_path
from tests.conftest import PROJECT
from tools.golden_logits import ARRAYS, Peer, expected, path_of, tolerance
from tools.oracle_orders import RULE, Model, Variant, logits, open_model

Array: TypeAlias = NDArray[Any]
Case: TypeAlias = Mapping[str, Any]
Loaded: TypeAlias = Callable[[Case], LlamaModel]
Opened: TypeAlias = Callable[[Case], Model]

FOLDER = PROJECT / "golden" / "logits"
DOCUMENT = json.loads((FOLDER / "cases.json").read_text(encoding="ascii"))
ROWS = load_file(FOLDER / ARRAYS)
CASES = {case["id"].removeprefix("logits/"): case for case in DOCUMENT["cases"]}
SHORT = {name: case for name, case in CASES.items() if len(case["input"]["token_ids"]) == 1}
SETTLED = {name: case for name, case in CASES.items() if name.endswith("-settled")}
OF_TINY_CHAT = [CASES[f"tiny-chat-exact-{passage}"] for passage in ("first", "story", "chat")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("suite-models")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Loaded:
    @cache
    def load(name: str, numerics: str) -> LlamaModel:
        model = load_path(path_of(name, folder), numerics=numerics)
        assert isinstance(model, LlamaModel)
        return model

    return lambda case: load(case["input"]["model"], case["input"]["numerics"])


@pytest.fixture(scope="module")
def opened(folder: Path) -> Opened:
    @cache
    def open_once(name: str) -> Model:
        return open_model(path_of(name, folder))

    return lambda case: open_once(case["input"]["model"])


def by_variant(model: Model, case: Case, variant: Variant = RULE) -> Array:
    return logits(model, case["input"]["token_ids"], case["input"]["numerics"], variant)


def floats(values: Mapping[str, Any]) -> Array:
    return np.array([float.fromhex(x) for x in values["values"]]).reshape(values["shape"])


def error_in_bounds(got: Array, case: Case) -> float:
    """By how many times the bound the logits are off, as the README says how to compare."""
    wanted, bound = case["expected"], float.fromhex(case["tolerance"]["absolute"])
    assert list(got.shape) == wanted["shape"]
    assert np.isfinite(got).all()
    wide = got.astype(np.float64)
    in_rows = np.abs(wide[wanted["positions"]] - ROWS[wanted["rows"]["tensor"]]).max()
    best = wide[np.arange(len(wide)), wanted["best"]["ids"]]
    of_best = np.abs(best - floats(wanted["best"]["logits"])).max()
    beyond = (wide.max(axis=1) - best).max() / 2
    return float(max(in_rows, of_best, beyond) / bound)


# The files


def test_the_file_keeps_to_its_schema() -> None:
    schema = json.loads((FOLDER / "schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(DOCUMENT)


def test_the_models_are_those_that_are_made_here(folder: Path) -> None:
    made = model_sha256s(folder)
    assert DOCUMENT["models"] == {name: made[name] for name in DOCUMENT["models"]}
    assert {case["input"]["model"] for case in CASES.values()} == DOCUMENT["models"].keys()


def test_every_row_is_named_and_every_name_has_rows() -> None:
    assert {case["expected"]["rows"]["tensor"] for case in CASES.values()} == ROWS.keys()


def test_every_type_is_asked_in_exact_and_every_quantized_one_in_int8() -> None:
    asked = {(case["input"]["model"], case["input"]["numerics"]) for case in CASES.values()}
    assert {model for model, numerics in asked if numerics == "exact"} == DOCUMENT["models"].keys()
    quantized = {"tiny-chat", "tiny-chat-Q4_0", "tiny-chat-Q4_K"}
    assert {model for model, numerics in asked if numerics == "int8"} == quantized


def test_the_decoded_model_has_the_logits_of_the_quantized_one() -> None:
    for case in OF_TINY_CHAT:
        decoded = case["id"].removeprefix("logits/").replace("tiny-chat", "tiny-chat-F32")
        assert CASES[decoded]["expected"] == case["expected"]


# refllm


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_kernels_give_every_bit(case: Case, loaded: Loaded) -> None:
    got = loaded(case).forward(case["input"]["token_ids"])
    tensor = case["expected"]["rows"]["tensor"]
    assert expected(got, tensor) == case["expected"]
    assert got[case["expected"]["positions"]].tobytes() == ROWS[tensor].tobytes()


@pytest.mark.parametrize("case", SHORT.values(), ids=SHORT)
def test_the_oracle_gives_every_bit_of_a_single_token(case: Case, opened: Opened) -> None:
    got = by_variant(opened(case), case)
    assert got.tobytes() == ROWS[case["expected"]["rows"]["tensor"]].tobytes()


@pytest.mark.parametrize("name", ["tiny-chat-exact-first", "tiny-chat-Q4_0-int8-settled"])
def test_the_tolerance_is_measured_the_same_again(name: str, opened: Opened) -> None:
    case = CASES[name]
    peer = Peer(case["input"]["numerics"], opened(case))
    computed = ROWS[case["expected"]["rows"]["tensor"]]
    deviations = peer.deviations(case["input"]["token_ids"], computed)
    assert tolerance(deviations) == case["tolerance"]


# Others


@pytest.mark.parametrize("case", OF_TINY_CHAT, ids=lambda case: case["id"])
def test_a_matrix_product_in_an_order_of_its_own_is_inside(case: Case, opened: Opened) -> None:
    by_blas = Variant(product=lambda x, w: x @ w.T)
    got = by_variant(opened(case), case, by_blas)
    assert 0 < error_in_bounds(got, case) <= 1


# As they are before a variant replaces them.
oracle_rope, oracle_attention = oracle.rope, oracle.attention
oracle_rms_norm, oracle_matmul = oracle.rms_norm, oracle.matmul


def rope_by_halves(x: Array, positions: Array, frequencies: Array, magnitude: float) -> Array:
    order = np.arange(x.shape[2]).reshape(2, -1).T.ravel()
    turned = oracle_rope(x[..., order], positions, frequencies, magnitude)
    return turned[..., np.argsort(order)]


def rope_one_further(x: Array, positions: Array, frequencies: Array, magnitude: float) -> Array:
    # All positions alike would change no score.
    return oracle_rope(x, positions + (positions > 0), frequencies, magnitude)


def unscaled_attention(q: Array, k: Array, v: Array, n_visible: Sequence[int]) -> Array:
    return oracle_attention(q * np.sqrt(q.dtype.type(q.shape[2])), k, v, n_visible)


def attention_without_a_mask(q: Array, k: Array, v: Array, n_visible: Sequence[int]) -> Array:
    return oracle_attention(q, k, v, [len(k)] * len(q))


def attention_that_forgets_the_last(
    q: Array, k: Array, v: Array, n_visible: Sequence[int]
) -> Array:
    return oracle_attention(q, k, v, [max(n - 1, 1) for n in n_visible])


def rms_norm_by_the_sum(x: Array, weight: Array, eps: float) -> Array:
    return oracle_rms_norm(x / np.sqrt(x.dtype.type(x.shape[1])), weight, eps)


def product_of_halves(x: Array, w: Array) -> Array:
    return oracle_matmul(x.astype(np.float16).astype(np.float32), w)


WRONG: Mapping[str, Variant] = {
    "RoPE's other layout": Variant(functions={"rope": rope_by_halves}),
    "a position off by one": Variant(functions={"rope": rope_one_further}),
    "unscaled scores": Variant(functions={"attention": unscaled_attention}),
    "no causal mask": Variant(functions={"attention": attention_without_a_mask}),
    "a cache off by one": Variant(functions={"attention": attention_that_forgets_the_last}),
    "a sum for a mean": Variant(functions={"rms_norm": rms_norm_by_the_sum}),
    "float16 activations": Variant(product=product_of_halves),
    "GELU for SiLU": Variant(functions={"silu": oracle.gelu}),
}


@pytest.mark.parametrize("variant", WRONG.values(), ids=WRONG)
def test_a_wrong_network_is_far_outside(variant: Variant, opened: Opened) -> None:
    case = CASES["tiny-chat-exact-story"]
    assert error_in_bounds(by_variant(opened(case), case, variant), case) > 5


@pytest.mark.parametrize(("eps", "base"), [(1e-6, 1e4), (1e-5, 5e5)])
def test_a_wrong_hyperparameter_is_far_outside(eps: float, base: float, opened: Opened) -> None:
    case = CASES["tiny-chat-exact-story"]
    model = opened(case)
    config = dataclasses.replace(model.config, rms_norm_eps=eps, rope_theta=base)
    got = by_variant(dataclasses.replace(model, config=config), case)
    assert error_in_bounds(got, case) > 5


@pytest.mark.parametrize("case", SETTLED.values(), ids=SETTLED)
def test_activations_that_are_not_quantized_are_far_outside_int8(
    case: Case, opened: Opened
) -> None:
    got = logits(opened(case), case["input"]["token_ids"], "exact")
    assert error_in_bounds(got, case) > 100
