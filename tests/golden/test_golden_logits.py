"""golden/logits: the file is whole, kernels and oracle give it, and wrong networks do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray

from refllm import oracle
from refllm.conform.faults.faulty_llama import Network
from refllm.conform.faults.faulty_llama import logits as network_logits
from refllm.conform.faults.float64_models import tiny_chat_weights
from refllm.conform.faults.logits import LOGITS
from refllm.conform.faults.text import TEXT
from refllm.conform.models import model_sha256s
from refllm.models.load import LlamaModel, load_path
from tests.conftest import PROJECT
from tests.support.golden_networks import LOGITS_BY_NAME as CASES
from tests.support.golden_networks import LOGITS_FILE, ROWS, error_in_bounds
from tools.golden_logits import Peer, expected, path_of, tolerance
from tools.oracle_orders import RULE, Model, Variant, logits, open_model

Array: TypeAlias = NDArray[Any]
Case: TypeAlias = Mapping[str, Any]
Loaded: TypeAlias = Callable[[Case], LlamaModel]
Opened: TypeAlias = Callable[[Case], Model]

FOLDER = PROJECT / "golden" / "logits"
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


# The files


def test_the_models_have_the_hashes_of_the_file(folder: Path) -> None:
    made = model_sha256s(folder)
    assert LOGITS_FILE["models"] == {name: made[name] for name in LOGITS_FILE["models"]}
    assert {case["input"]["model"] for case in CASES.values()} == LOGITS_FILE["models"].keys()


def test_every_row_is_named_and_every_name_has_rows() -> None:
    assert {case["expected"]["rows"]["tensor"] for case in CASES.values()} == ROWS.keys()


def test_every_type_is_asked_in_exact_and_every_quantized_one_in_int8() -> None:
    asked = {(case["input"]["model"], case["input"]["numerics"]) for case in CASES.values()}
    assert {model for model, numerics in asked if numerics == "exact"} == LOGITS_FILE[
        "models"
    ].keys()
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


# Backends of others


@pytest.mark.parametrize("case", OF_TINY_CHAT, ids=lambda case: case["id"])
def test_a_matrix_product_in_an_order_of_its_own_is_inside(case: Case, opened: Opened) -> None:
    by_blas = Variant(product=lambda x, w: x @ w.T)
    got = by_variant(opened(case), case, by_blas)
    assert 0 < error_in_bounds(got, case) <= 1


# Faults that do not change tiny-chat: its own base and epsilon, and an output that it shares.
WITHOUT_EFFECT = {"RoPE base 10000", "RMSNorm epsilon 1e-05", "embeddings for output"}
NETWORKS: Mapping[str, Network] = {
    **{fault.name: fault.wrong for fault in LOGITS if fault.name not in WITHOUT_EFFECT},
    # All positions alike would change no score: those after the first token.
    "a position off by one": TEXT.named("KV cache position one too large").wrong.network(1),
}


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_a_faulty_network_is_far_outside(network: Network) -> None:
    case = CASES["tiny-chat-exact-story"]
    got = network_logits(tiny_chat_weights(), case["input"]["token_ids"], network)
    assert error_in_bounds(got, case) > 5


def test_float16_activations_are_far_outside(opened: Opened) -> None:
    case, product = CASES["tiny-chat-exact-story"], oracle.matmul
    halves = Variant(product=lambda x, w: product(x.astype(np.float16).astype(np.float32), w))
    assert error_in_bounds(by_variant(opened(case), case, halves), case) > 5


@pytest.mark.parametrize("case", SETTLED.values(), ids=SETTLED)
def test_activations_that_are_not_quantized_are_far_outside_int8(
    case: Case, opened: Opened
) -> None:
    got = logits(opened(case), case["input"]["token_ids"], "exact")
    assert error_in_bounds(got, case) > 100
