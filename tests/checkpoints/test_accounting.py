"""Every tensor and key of a model is used, irrelevant by a table, or refused by name."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from refllm.api import LlmRuntimeError, ModelNotSupported
from refllm.engine import LocalEngine
from refllm.files.accounting.gguf_keys import ANY_GGUF, LLAMA_GGUF
from refllm.files.accounting.json_keys import ANY_CONFIG, LLAMA_CONFIG
from refllm.files.accounting.keys import Known, MustBe
from refllm.files.accounting.ledger import Ledger
from refllm.files.accounting.tensors import IRRELEVANT_TENSORS, OTHER_KINDS
from refllm.models.describe import verify
from refllm.models.load import account, load_path
from tests.support.model_files import (
    hf_llama_name,
    safetensors_tensor,
    tiny_llama_folder,
    tiny_llama_gguf,
    tiny_llama_tensors,
    write_safetensors,
)

N_VOCAB = 342
NUMBERS = np.ones(8, np.float32)


def example_of(pattern: str) -> str:
    """A name that the pattern matches."""
    return pattern.replace("*", "x")


def flipped(rule: MustBe) -> object:
    """A value that the rule does not allow."""
    values: tuple[object, ...] = (True, False, 7, "another")
    return next(value for value in values if value not in rule.values)


def required(*tables: Known) -> list[tuple[str, object]]:
    """A key and a forbidden value for each key that must have one value."""
    return [
        (example_of(pattern), flipped(rule))
        for table in tables
        for pattern, rule in table.items()
        if isinstance(rule, MustBe)
    ]


def irrelevant(*tables: Known) -> list[str]:
    return [
        example_of(pattern)
        for table in tables
        for pattern, rule in table.items()
        if isinstance(rule, str)
    ]


def folder_with(folder: Path, extra: Mapping[str, object]) -> Path:
    """A llama's folder with further keys in its config.json."""
    return tiny_llama_folder(folder / "tiny", config=extra)


def strict_verdict(path: Path, name: str) -> str:
    """What becomes of the tensor or key when the model is loaded by a strict engine."""
    ledger = Ledger(strict=True)
    load_path(path, ledger=ledger)
    [verdict] = [entry.verdict for entry in ledger.entries if entry.name == name]
    return verdict


class TestKeysOfAGguf:
    @pytest.mark.parametrize(
        ("key", "value"),
        [pair for pair in required(LLAMA_GGUF, ANY_GGUF) if pair[0] != "general.architecture"],
    )
    def test_a_value_that_is_not_computed_is_refused_by_name(
        self, key: str, value: object, tmp_path: Path
    ) -> None:
        path = tiny_llama_gguf(tmp_path / "tiny.gguf", metadata={key: value})
        with pytest.raises(ModelNotSupported, match=re.escape(f"{path}: {key} = {value!r}")):
            load_path(path)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            (example_of(pattern), value)
            for pattern, rule in LLAMA_GGUF.items()
            if isinstance(rule, MustBe)
            for value in rule.values
        ],
    )
    def test_the_value_that_is_computed_is_allowed(
        self, key: str, value: object, tmp_path: Path
    ) -> None:
        path = tiny_llama_gguf(tmp_path / "tiny.gguf", metadata={key: value})
        assert strict_verdict(path, key) == "used"

    @pytest.mark.parametrize(
        "key", [key for key in irrelevant(LLAMA_GGUF, ANY_GGUF) if key != "general.alignment"]
    )
    def test_an_irrelevant_key_is_allowed(self, key: str, tmp_path: Path) -> None:
        path = tiny_llama_gguf(tmp_path / "tiny.gguf", metadata={key: 1})
        assert strict_verdict(path, key) == "irrelevant"

    @pytest.mark.parametrize("key", ["llama.unheard_of", "llama.attention.unheard_of"])
    def test_a_key_that_no_table_lists_is_refused_by_name(self, key: str, tmp_path: Path) -> None:
        path = tiny_llama_gguf(tmp_path / "tiny.gguf", metadata={key: 3})
        with pytest.raises(ModelNotSupported, match=f"{key} = 3 is not supported"):
            load_path(path)

    def test_layers_that_differ_are_refused(self, tmp_path: Path) -> None:
        key = "llama.attention.head_count"
        path = tiny_llama_gguf(tmp_path / "tiny.gguf", metadata={key: [4, 2]})
        with pytest.raises(ModelNotSupported, match=re.escape(f"{key} = [4, 2]")):
            load_path(path)

    def test_a_window_shorter_than_the_context_is_refused(self, tmp_path: Path) -> None:
        key = "llama.attention.sliding_window"
        load_path(tiny_llama_gguf(tmp_path / "all.gguf", metadata={key: 128}))
        path = tiny_llama_gguf(tmp_path / "short.gguf", metadata={key: 127})
        with pytest.raises(ModelNotSupported, match=f"{key} = 127"):
            load_path(path)

    def test_an_unknown_stretch_of_rope_is_refused(self, tmp_path: Path) -> None:
        key = "llama.rope.scaling.type"
        path = tiny_llama_gguf(tmp_path / "tiny.gguf", metadata={key: "longrope"})
        with pytest.raises(ModelNotSupported, match=f"{key} = 'longrope'"):
            load_path(path)


class TestKeysOfConfigJson:
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            pair
            for pair in required(LLAMA_CONFIG, ANY_CONFIG)
            if not pair[0].endswith(("quantization_config", "compression_config"))
        ],
    )
    def test_a_value_that_is_not_computed_is_refused_by_name(
        self, key: str, value: object, tmp_path: Path
    ) -> None:
        path = folder_with(tmp_path, {key: value})
        with pytest.raises(ModelNotSupported, match=re.escape(f"json: {key} = {value!r}")):
            load_path(path)

    @pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
    def test_quantized_weights_are_refused_by_their_method(self, key: str, tmp_path: Path) -> None:
        path = folder_with(tmp_path, {key: {"quant_method": "gptq", "bits": 4}})
        with pytest.raises(ModelNotSupported, match=f"{key} says .* quantized by 'gptq'"):
            load_path(path)

    @pytest.mark.parametrize("key", irrelevant(LLAMA_CONFIG, ANY_CONFIG))
    def test_an_irrelevant_key_is_allowed(self, key: str, tmp_path: Path) -> None:
        assert strict_verdict(folder_with(tmp_path, {key: 1}), key) == "irrelevant"

    def test_a_key_that_no_table_lists_is_a_warning_once(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = folder_with(tmp_path, {"unheard_of": 3})
        with caplog.at_level(logging.WARNING, "refllm"):
            load_path(path)
            load_path(path)
        [record] = caplog.records
        assert "unheard_of = 3 is a key that no table of refllm lists" in record.getMessage()

    def test_a_strict_engine_refuses_a_key_that_no_table_lists(self, tmp_path: Path) -> None:
        path = folder_with(tmp_path, {"unheard_of": 3})
        with pytest.raises(ModelNotSupported, match="unheard_of = 3"):
            LocalEngine(strict=True).infer(path, "a")
        assert LocalEngine().infer(path, "a").usage.prompt_token_count == 2

    def test_verify_is_strict(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotSupported, match="unheard_of = 3"):
            verify(folder_with(tmp_path, {"unheard_of": 3}))

    def test_a_key_that_is_null_counts_as_absent(self, tmp_path: Path) -> None:
        folder = folder_with(tmp_path, {})
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"unheard_of": None}))
        assert strict_verdict(folder, "unheard_of") == "irrelevant"

    def test_an_unknown_key_of_the_stretch_is_named_with_its_object(self, tmp_path: Path) -> None:
        scaling = {"rope_type": "linear", "factor": 2.0, "unheard_of": 3}
        path = folder_with(tmp_path, {"rope_scaling": scaling})
        with pytest.raises(ModelNotSupported, match=r"rope_scaling\.unheard_of = 3"):
            load_path(path, ledger=Ledger(strict=True))

    @pytest.mark.parametrize("kind", ["longrope", "su", "mrope", "proportional", 7])
    def test_an_unknown_stretch_of_rope_is_refused(self, kind: object, tmp_path: Path) -> None:
        path = folder_with(tmp_path, {"rope_scaling": {"rope_type": kind, "factor": 2.0}})
        with pytest.raises(
            ModelNotSupported, match=re.escape(f"rope_scaling.rope_type = {kind!r}")
        ):
            load_path(path)

    @pytest.mark.parametrize("other", [{"factor": 4.0}, {"factor": 2.0, "rope_theta": 5e5}])
    def test_two_stretches_that_differ_are_refused(
        self, other: dict[str, object], tmp_path: Path
    ) -> None:
        path = folder_with(
            tmp_path,
            {
                "rope_scaling": {"rope_type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "linear", **other},
            },
        )
        with pytest.raises(LlmRuntimeError, match="rope_scaling and rope_parameters contradict"):
            load_path(path)


class TestBiasesAndTies:
    @pytest.mark.parametrize(
        ("key", "made"), [("attention_bias", "biases"), ("mlp_bias", "mlp_biases")]
    )
    def test_biases_that_config_json_does_not_announce_are_refused(
        self, key: str, made: str, tmp_path: Path
    ) -> None:
        path = tiny_llama_folder(tmp_path / "tiny", config={key: False}, **{made: True})  # type: ignore[arg-type]
        with pytest.raises(LlmRuntimeError, match=rf"{key} is not true, .*model\.layers\.0\."):
            load_path(path)

    @pytest.mark.parametrize("key", ["attention_bias", "mlp_bias"])
    def test_biases_that_are_announced_and_missing_are_named(
        self, key: str, tmp_path: Path
    ) -> None:
        with pytest.raises(LlmRuntimeError, match=f"{key} is true, and there is none of"):
            load_path(folder_with(tmp_path, {key: True}))

    @pytest.mark.parametrize("message", [False, None])
    def test_an_output_matrix_that_is_missing_and_not_tied_is_an_error(
        self, message: bool | None, tmp_path: Path
    ) -> None:
        path = tiny_llama_folder(
            tmp_path / "tiny", tied=True, config={"tie_word_embeddings": message}
        )
        with pytest.raises(LlmRuntimeError, match=r"lm_head\.weight is missing, and tie_word_emb"):
            load_path(path)


class TestTensors:
    @pytest.mark.parametrize("pattern", OTHER_KINDS)
    def test_a_tensor_of_another_kind_of_model_is_refused_by_name(
        self, pattern: str, tmp_path: Path
    ) -> None:
        name = example_of(pattern)
        path = tiny_llama_gguf(tmp_path / "tiny.gguf", tensors={name: NUMBERS})
        with pytest.raises(
            ModelNotSupported, match=re.escape(f"llama does not use: {name} (F32 [8])")
        ):
            load_path(path)

    @pytest.mark.parametrize(
        "name",
        [
            "blk.0.attn_q.extra",
            "blk.0.attn_norm.bias",
            "blk.2.attn_q.weight",
            "output.bias",
            "token_types.weight",
            "unheard_of",
        ],
    )
    def test_a_tensor_that_the_network_does_not_ask_for_is_refused(
        self, name: str, tmp_path: Path
    ) -> None:
        path = tiny_llama_gguf(tmp_path / "tiny.gguf", tensors={name: NUMBERS})
        with pytest.raises(
            ModelNotSupported, match=re.escape(f"1 tensor that a llama does not use: {name} ")
        ):
            load_path(path)

    @pytest.mark.parametrize("pattern", IRRELEVANT_TENSORS)
    def test_an_irrelevant_tensor_is_allowed(self, pattern: str, tmp_path: Path) -> None:
        name = example_of(pattern)
        path = tiny_llama_gguf(tmp_path / "tiny.gguf", tensors={name: NUMBERS})
        assert strict_verdict(path, name) == "irrelevant"

    def test_the_first_five_are_named_and_all_are_counted(self, tmp_path: Path) -> None:
        names = [f"unheard_of.{i}" for i in range(7)]
        path = tiny_llama_gguf(tmp_path / "tiny.gguf", tensors=dict.fromkeys(names, NUMBERS))
        with pytest.raises(
            ModelNotSupported, match=r"7 tensors .*unheard_of\.4 .* and 2 more"
        ) as error:
            load_path(path)
        assert "unheard_of.5" not in str(error.value)

    @pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_norm.weight", "unheard_of"])
    def test_a_tensor_of_a_folder_is_refused_under_the_file_s_name(
        self, name: str, tmp_path: Path
    ) -> None:
        folder = folder_with(tmp_path, {})
        stored = {
            hf_llama_name(key): safetensors_tensor(array, "F32")
            for key, array in tiny_llama_tensors(n_vocab=N_VOCAB).items()
        }
        stored[name] = safetensors_tensor(NUMBERS, "F32")
        write_safetensors(folder / "model.safetensors", stored, None)
        with pytest.raises(ModelNotSupported, match=re.escape(f"does not use: {name} (F32 [8])")):
            load_path(folder)

    def test_a_layer_beyond_the_last_is_refused_under_the_file_s_name(self, tmp_path: Path) -> None:
        path = folder_with(tmp_path, {"num_hidden_layers": 1})
        with pytest.raises(
            ModelNotSupported, match=r"9 tensors .*model\.layers\.1\.input_layernorm"
        ):
            load_path(path)


class TestTheLedger:
    def test_the_ledger_has_each_key_and_tensor_of_a_gguf_once(self, tmp_path: Path) -> None:
        path = tiny_llama_gguf(
            tmp_path / "tiny.gguf",
            metadata={"llama.unheard_of": 1, "some.tool": "x"},
            tensors={"unheard_of": NUMBERS},
        )
        entries = account(path).entries
        counts = Counter((entry.where, entry.name) for entry in entries)
        assert set(counts.values()) == {1}
        verdicts = {entry.name: entry.verdict for entry in entries}
        assert verdicts["llama.block_count"] == "used"
        assert verdicts["blk.0.attn_q.weight"] == "used"
        assert verdicts["general.name"] == verdicts["some.tool"] == "irrelevant"
        assert verdicts["llama.unheard_of"] == verdicts["unheard_of"] == "refused"

    def test_each_entry_has_a_reason(self, tmp_path: Path) -> None:
        assert all(entry.reason for entry in account(tiny_llama_folder(tmp_path / "x")).entries)
