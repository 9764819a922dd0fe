"""refllm as a target: a case of each group whose answer can be checked by hand, and its name."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from refllm import engine, llama, sampling
from refllm.api import InferencingParams, InferencingResult
from refllm.conform.case import GROUPS, Case, Group
from refllm.conform.reply import Answer, Reply, Skipped
from refllm.conform.targets.command import CommandTarget
from refllm.conform.targets.itself import Refllm, SuiteModels
from refllm.conform.targets.python import EntryPointTarget
from refllm.conform.wire import to_wire
from refllm.engine import LocalEngine
from refllm.models import bundled
from refllm.models.load import LlamaModel, load_path

PROMPT = "Once upon a time"
GREEDY = {"max_tokens": 5, "temperature": 0.0, "repeat_penalty": 1.0}
TEXT = {"model": "tiny-chat", "prompt": PROMPT, "params": GREEDY, "seed": "0"}
TINY_CHAT = bundled.ROOT / "llama" / "tiny-chat.gguf"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Refllm:
    return Refllm(SuiteModels(tmp_path_factory.mktemp("models")))


def case(group: Group, **asked: object) -> Case:
    return Case(id=f"{group}/a", group=group, proves="-", clause="-", input=asked, expected={})


def array(*values: float, shape: tuple[int, ...] | None = None) -> Mapping[str, Any]:
    return {"shape": list(shape or (len(values),)), "values": list(values)}


# --- quant, ops and sampling ---------------------------------------------------------------------


def test_blocks_are_decoded(own: Refllm) -> None:
    half_and_levels = b"\x00\x38" + bytes([1, 255]) + bytes(30)
    asked = {"format": "Q8_0", "bytes": half_and_levels.hex(), "n": 32}
    assert own.run("quant", asked) == {"values": [0.5, -0.5, *[0.0] * 30]}


def test_more_blocks_than_any_case_has_are_not_decoded(own: Refllm) -> None:
    with pytest.raises(ValueError, match="2000000 digits"):
        own.run("quant", {"format": "Q8_0", "bytes": "0" * 2_000_000, "n": 32})


COS, SIN = math.cos(1.0), math.sin(1.0)
FOUR = array(1, 0, 0, 2, 7, shape=(1, 1, 5))  # four elements to turn, and one beside them
TURN = {"x": FOUR, "positions": [1], "theta": 1.0, "rope_dim": 4}  # by one radian, every pair
FLAT = array(0, 0, 0, 0, shape=(2, 2, 1))  # two queries of two heads that see everything alike
KEYS = {"q": FLAT, "k": array(1, 1, shape=(2, 1, 1)), "v": array(2, 4, shape=(2, 1, 1))}
PAIR = {name: array(0, 0, shape=(2, 1, 1)) for name in "qk"} | {"v": array(2, 4, shape=(2, 1, 1))}


@pytest.mark.parametrize(
    ("asked", "output"),
    [
        (
            {"op": "rms_norm", "x": array(2, -2, shape=(1, 2)), "weight": array(3, 5), "eps": 0.0},
            array(3, -5, shape=(1, 2)),
        ),
        (
            {
                "op": "layer_norm",
                "x": array(1, 3, shape=(1, 2)),
                "weight": array(1, 2),
                "bias": array(0, 10),
                "eps": 0.0,
            },
            array(-1, 12, shape=(1, 2)),
        ),
        # Pairs (1, 0) and (0, 2); then, half-split, (1, 0) and (0, 2) again, elsewhere.
        (
            {"op": "rope", "layout": "norm", **TURN},
            array(COS, SIN, -2 * SIN, 2 * COS, 7, shape=(1, 1, 5)),
        ),
        (
            {"op": "rope", "layout": "neox", **TURN},
            array(COS, -2 * SIN, SIN, 2 * COS, 7, shape=(1, 1, 5)),
        ),
        (
            {"op": "softmax", "x": array(0, math.log(3), 5, 5, shape=(2, 2))},
            array(0.25, 0.75, 0.5, 0.5, shape=(2, 2)),
        ),
        ({"op": "silu", "x": array(0, 1)}, array(0, 1 / (1 + math.exp(-1)))),
        ({"op": "gelu", "x": array(0, 1)}, array(0, 0.5 + 0.5 * math.erf(math.sqrt(0.5)))),
        ({"op": "attention", "causal": True, **KEYS}, array(2, 2, 3, 3, shape=(2, 2, 1))),
        ({"op": "attention", "causal": False, **KEYS}, array(3, 3, 3, 3, shape=(2, 2, 1))),
        ({"op": "attention", "causal": False, **PAIR}, array(3, 3, shape=(2, 1, 1))),
        (
            {
                "op": "attention",
                "causal": True,
                "q": array(0, shape=(1, 1, 1)),
                "k": PAIR["k"],
                "v": PAIR["v"],
            },
            array(3, shape=(1, 1, 1)),
        ),
        (
            {
                "op": "matmul",
                "x": array(1, 2, shape=(1, 2)),
                "w": array(3, 4, 5, 6, 7, 8, shape=(3, 2)),
            },
            array(11, 17, 23, shape=(1, 3)),
        ),
        (
            {"op": "mean_pool", "x": array(1, 2, 3, 4, 99, 99, shape=(3, 2)), "mask": [1, 1, 0]},
            array(2, 3),
        ),
        ({"op": "l2_normalize", "x": array(3, 4)}, array(0.6, 0.8)),
    ],
    ids=lambda value: str(value.get("op", "")),
)
def test_an_operation_is_computed(
    asked: Mapping[str, Any], output: Mapping[str, Any], own: Refllm
) -> None:
    got = own.run("ops", asked)["output"]
    assert got["shape"] == output["shape"]
    assert got["values"] == pytest.approx(output["values"], rel=2**-22, abs=2**-24)


@pytest.mark.parametrize(
    ("profile", "stages", "kept"),
    [
        ("contract", ["penalty", "temperature", "softmax", "top_k", "top_p"], [0]),
        ("llama.cpp", ["penalty", "top_k", "softmax", "top_p", "temperature", "softmax"], [0, 1]),
    ],
)
def test_the_stages_of_a_sample_are_in_the_result(
    profile: str, stages: list[str], kept: list[int], own: Refllm
) -> None:
    params = {"repeat_penalty": 2.0, "temperature": 0.5, "top_p": 0.8, "top_k": 40}
    asked = {"logits": [3.0, 4.0, 1.0], "params": params, "previous_tokens": [1], "u": 0.0}
    result = own.run("sampling", {**asked, "profile": profile})
    assert [stage["stage"] for stage in result["stages"]] == stages
    assert result["stages"][0] == {"stage": "penalty", "ids": [0, 1, 2], "logits": [3.0, 2.0, 1.0]}
    assert result["stages"][-1]["ids"] == kept
    [scaled] = [stage for stage in result["stages"] if stage["stage"] == "temperature"]
    assert scaled["logits"] == [6.0, 4.0, 2.0][: len(scaled["ids"])]
    assert result["token"] == 0


# --- Models --------------------------------------------------------------------------------------


def test_a_text_becomes_ids_and_a_text_again(own: Refllm) -> None:
    result = own.run("tokenizer", {"model": "tiny-chat", "text": "Grüße, 你好 🙂"})
    tokenizer = load_path(TINY_CHAT).tokenizer
    assert result["text"] == "Grüße, 你好 🙂"
    assert result["ids"][0] == tokenizer.bos_id
    assert tokenizer.decode(result["ids"]) == result["text"]


def test_logits_are_the_model_s_in_either_numerics(own: Refllm) -> None:
    asked = {"model": "tiny-chat", "token_ids": [1, 40, 41]}
    for numerics in ("exact", "int8"):
        model = load_path(TINY_CHAT, numerics=numerics)
        assert isinstance(model, LlamaModel)
        expected = model.forward(asked["token_ids"])  # type: ignore[arg-type]
        got = own.run("logits", {**asked, "numerics": numerics})["logits"]
        assert got["shape"] == list(expected.shape)
        assert got["values"] == expected.ravel().tolist()


def test_the_tokens_of_a_text_decode_to_it(own: Refllm) -> None:
    result = own.run("text", TEXT)
    tokenizer = load_path(TINY_CHAT).tokenizer
    prompt = tokenizer.encode(PROMPT)
    assert result["usage"] == {"prompt_token_count": len(prompt), "generated_token_count": 5}
    assert len(result["token_ids"]) == 5
    assert result["text"] == tokenizer.decode_continuation(prompt, result["token_ids"])


def test_a_seed_decides_a_text(own: Refllm) -> None:
    asked = {**TEXT, "params": {"max_tokens": 20, "temperature": 2.0, "top_k": 0, "top_p": 1.0}}
    texts = [own.run("text", {**asked, "seed": seed})["text"] for seed in ("1", str(2**64 - 1))]
    params = InferencingParams(**asked["params"])  # type: ignore[arg-type]
    for text, seed in zip(texts, (1, 2**64 - 1), strict=True):
        expected = LocalEngine(roots=[bundled.ROOT], seed=seed).infer("tiny-chat", PROMPT, params)
        assert text == expected.text
    assert texts[0] != texts[1]


def test_embeddings_have_length_1_and_their_texts_can_be_cut(own: Refllm) -> None:
    asked = {"model": "tiny-embed", "texts": ["A cat sat on the mat.", "Why?"]}
    whole = own.run("embeddings", asked)
    cut = own.run("embeddings", {**asked, "max_tokens": 3})
    lengths = np.linalg.norm(np.array(whole["embeddings"]), axis=1)
    assert lengths == pytest.approx([1.0, 1.0], rel=1e-6)
    assert cut["usage"]["prompt_token_count"] == 6 < whole["usage"]["prompt_token_count"]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"params": {"temperature": "nan"}}, "temperature"),
        ({"params": {"max_tokens": -1}}, "max_tokens"),
        ({"setup": {"ai_models": []}}, "does not have access"),
        ({"setup": {"enabled": False}}, "not supported"),
        ({"model": "bad", "setup": {"files": {"llama/bad.gguf": "47475546"}}}, "bad.gguf"),
        ({"model": "all-minilm-l6-v2"}, "all-minilm-l6-v2"),  # no stand-in for it
    ],
)
def test_the_interface_s_errors_are_results(asked: Mapping[str, Any], says: str) -> None:
    target = EntryPointTarget("refllm.conform.targets.itself:Refllm")
    target.start()
    common = {"operation": "infer", "model": "tiny-chat", "prompt": PROMPT}
    reply = target.run(case("api", **{**common, **asked}))
    target.stop()
    assert isinstance(reply, Answer)
    assert says in reply.result["error"]["message"]


def test_the_api_group_does_not_keep_the_seed_of_a_text(own: Refllm) -> None:
    own.run("text", {**TEXT, "seed": "5"})
    asked = {"operation": "infer", "model": "tiny-chat", "prompt": PROMPT, "params": None}
    expected = LocalEngine(roots=[bundled.ROOT]).infer("tiny-chat", PROMPT)
    assert own.run("api", asked)["text"] == expected.text


# --- The answers come from the package's functions, also from patched ones -----------------------


def test_another_rotation_shows_in_the_operation_and_in_the_logits(
    own: Refllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"model": "tiny-chat", "token_ids": [1, 40, 41], "numerics": "exact"}
    before = own.run("logits", asked)
    monkeypatch.setattr(llama, "apply_rope", lambda x, _table, _n_heads: x)
    turned = own.run("ops", {"op": "rope", "layout": "neox", **TURN})["output"]
    assert turned["values"] == FOUR["values"]
    assert own.run("logits", asked) != before


def test_another_penalty_shows_in_its_stage(own: Refllm, monkeypatch: pytest.MonkeyPatch) -> None:
    original = sampling.apply_penalty

    def twice(*arguments: Any, penalty: float, last_n: int) -> Any:
        return original(*arguments, penalty=penalty**2, last_n=last_n)

    monkeypatch.setattr(sampling, "apply_penalty", twice)
    params = {"repeat_penalty": 2.0, "temperature": 0.0}
    asked = {"logits": [8.0, 1.0], "params": params, "previous_tokens": [0], "u": 0.0}
    result = own.run("sampling", {**asked, "profile": "contract"})
    assert result["stages"][0]["logits"] == [2.0, 1.0]


def test_another_engine_shows_in_texts(own: Refllm, monkeypatch: pytest.MonkeyPatch) -> None:
    original = LocalEngine.infer

    def echoing(self: LocalEngine, model: str, prompt: str, params: Any) -> InferencingResult:
        result = original(self, model, prompt, params)
        return replace(result, text=prompt + result.text)

    monkeypatch.setattr(LocalEngine, "infer", echoing)
    assert own.run("text", TEXT)["text"].startswith(PROMPT)


def test_another_activation_shows_in_the_operation_and_in_embeddings(
    own: Refllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"model": "tiny-embed", "texts": ["A cat."]}
    before = own.run("embeddings", asked)
    monkeypatch.setattr(engine, "gelu", engine.gelu_tanh)  # type: ignore[attr-defined]
    [one] = own.run("ops", {"op": "gelu", "x": array(1)})["output"]["values"]
    assert one == pytest.approx(0.841192, abs=1e-6)
    assert own.run("embeddings", asked) != before


# --- As targets ----------------------------------------------------------------------------------


def wired(reply: Reply) -> Reply:
    """The reply as it comes over a wire: NaN and infinities are strings."""
    return Answer(to_wire(reply.result)) if isinstance(reply, Answer) else reply


@pytest.fixture(scope="module")
def targets() -> Iterator[tuple[EntryPointTarget, CommandTarget]]:
    here = EntryPointTarget("refllm.conform.targets.itself:Refllm")
    elsewhere = CommandTarget([sys.executable, "-m", "refllm.conform.targets.itself"])
    yield here, elsewhere
    here.stop()
    elsewhere.stop()


def test_results_are_equal_in_this_process_and_in_another(
    targets: tuple[EntryPointTarget, CommandTarget],
) -> None:
    cases = [
        case("text", **TEXT),
        case("tokenizer", model="tiny-chat", text="a\ud800"),  # an error of the interface
        case("quant", format="F32", bytes="0000c07f0000807f", n=2),  # NaN and infinity
        case("quant", format="no-such-format", bytes="", n=0),
    ]
    implementations = [target.start() for target in targets]
    assert implementations[0] == implementations[1]
    assert implementations[0].groups == set(GROUPS)
    assert implementations[0].draws_as_refllm
    for asked in cases:
        here, elsewhere = (target.run(asked) for target in targets)
        assert wired(here) == elsewhere


def test_a_case_of_an_absent_model_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refllm.conform.models.suite_model", lambda *_: None)
    target = EntryPointTarget("refllm.conform.targets.itself:Refllm")
    target.start()
    reply = target.run(case("tokenizer", model="stories260K", text="a"))
    assert reply == Skipped("the model stories260K is not here")
