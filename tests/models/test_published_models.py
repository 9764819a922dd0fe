"""Keys that published models have, and values that damaged ones have, each with its answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from refllm.api import LlmError
from refllm.doctor import examine
from refllm.files.accounting.ledger import Ledger
from refllm.models.load import BertModel, account, load_path
from tests.support.model_files import tiny_bert_folder, tiny_llama_folder, tiny_llama_gguf
from tests.support.sentence_folders import pooling, write_sentence_folder


@pytest.mark.parametrize(
    "config",
    [
        {"is_llama_config": True},  # SmolLM2
        {"max_sequence_length": 2048},  # LLaMA 1, Vicuna 16k
        {"aux_loss_alpha": 0.001},  # DeepSeek LLM
    ],
)
def test_a_key_that_published_llamas_have_is_in_the_table(
    tmp_path: Path, config: dict[str, object]
) -> None:
    folder = tiny_llama_folder(tmp_path / "tiny", config=config)
    ledger = Ledger(strict=True)
    load_path(folder, ledger=ledger)
    [key] = config
    [verdict] = [entry.verdict for entry in ledger.entries if entry.name == key]
    assert verdict == "irrelevant"


def test_a_limit_that_cuts_no_text_is_not_recorded_as_used(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    write_sentence_folder(folder, pooling("mean"), transformer={"max_seq_length": 8})
    [entry] = [each for each in account(folder).entries if each.name == "max_seq_length"]
    assert entry.verdict == "irrelevant"
    model = load_path(folder)
    assert isinstance(model, BertModel)
    text = "the cat sat on the mat " * 3
    assert len(model.tokenize([text]).token_ids[0]) > 8
    assert len(model.tokenize([text], max_tokens=model.max_seq_length).token_ids[0]) == 8


@pytest.mark.parametrize(
    "config",
    [
        {"layer_types": 3},
        {"rope_theta": 1.0, "rope_scaling": {"type": "yarn", "factor": 2.0}},
    ],
)
def test_an_impossible_value_of_config_json_is_named(
    tmp_path: Path, config: dict[str, object]
) -> None:
    folder = tiny_llama_folder(tmp_path / "tiny", config=config)
    with pytest.raises(LlmError, match=next(iter(config))):
        load_path(folder)


def test_a_hyperparameter_that_is_no_number_is_named(tmp_path: Path) -> None:
    folder = tiny_bert_folder(tmp_path / "tiny", config={"hidden_size": float("nan")})
    with pytest.raises(LlmError, match="hidden_size"):
        load_path(folder)


def test_a_missing_tensor_has_the_name_that_the_file_would_have_for_it(tmp_path: Path) -> None:
    folder = tiny_llama_folder(tmp_path / "tiny", config={"num_hidden_layers": 3})
    with pytest.raises(LlmError, match=r"model\.layers\.2\.input_layernorm\.weight"):
        load_path(folder)


def test_yarn_with_a_base_of_1_in_a_gguf_is_named(tmp_path: Path) -> None:
    metadata = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.freq_base": 1.0,
    }
    path = tiny_llama_gguf(tmp_path / "tiny.gguf", metadata=metadata)
    with pytest.raises(LlmError, match="freq_base"):
        load_path(path)


def test_the_doctor_continues_after_an_unreadable_model(tmp_path: Path) -> None:
    models = tmp_path / "ai-models"
    tiny_llama_folder(models / "llama" / "a", config={"layer_types": 3})
    tiny_llama_folder(models / "llama" / "b")
    findings = list(examine(tmp_path, (models,), {}))
    assert any(found.check == "model" and "b: a llama" in found.what for found in findings)
