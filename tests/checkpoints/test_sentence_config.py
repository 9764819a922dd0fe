"""The files beside an encoder: every key is used, irrelevant, or refused by its name."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from refllm.api import LlmRuntimeError, ModelNotSupported
from refllm.checkpoints.open import open_weights
from refllm.checkpoints.sentence_config import SentenceConfig, sentence_config
from refllm.files.accounting import sentence_keys
from refllm.files.accounting.keys import Known, MustBe
from refllm.files.accounting.ledger import Ledger
from refllm.models.load import load_path, load_tokenizer
from refllm.pooling import Normalize
from tests.support.model_files import tiny_bert_folder, tiny_bert_gguf
from tests.support.sentence_folders import (
    NORMALIZE,
    PROMPTS,
    Module,
    dense,
    pooling,
    switches,
    write_sentence_folder,
)

# The files of the folder that `whole_folder` writes, and the table of each.
TABLES: Mapping[str, Known] = {
    "modules.json": sentence_keys.MODULES,
    "sentence_bert_config.json": sentence_keys.TRANSFORMER_CONFIG,
    "config_sentence_transformers.json": sentence_keys.SENTENCE_TRANSFORMERS_CONFIG,
    "1_Pooling/config.json": sentence_keys.POOLING_CONFIG,
    "2_Dense/config.json": sentence_keys.DENSE_CONFIG,
    "3_Dropout/config.json": sentence_keys.DROPOUT_CONFIG,
    "4_Normalize/config.json": sentence_keys.NORMALIZE_CONFIG,
}
KEYS = [(file, key) for file, known in TABLES.items() for key in known]
MUST_BE = [(file, key) for file, key in KEYS if isinstance(TABLES[file][key], MustBe)]


def whole_folder(folder: Path) -> Path:
    return write_sentence_folder(
        folder,
        pooling("mean"),
        dense(32, 16),
        Module(kind="Dropout", config={"dropout": 0.1}),
        Module(kind="Normalize", config={}),
        transformer={"max_seq_length": 64, "do_lower_case": False},
        prompts={**PROMPTS, "truncate_dim": 8},
    )


def change(path: Path, update: Callable[[Any], object]) -> None:
    """Change the JSON in a file; of modules.json, its last module."""
    content = json.loads(path.read_text("utf-8"))
    update(content[-1] if isinstance(content, list) else content)
    path.write_text(json.dumps(content), "utf-8")


def read(folder: Path, ledger: Ledger | None = None) -> SentenceConfig:
    return sentence_config(open_weights(folder), n_embd=32, ledger=ledger)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return whole_folder(tmp_path / "model")


def test_a_whole_folder_is_accounted_for_even_if_strict(folder: Path) -> None:
    ledger = Ledger(strict=True)
    read(folder, ledger)
    for file in TABLES:
        content = json.loads((folder / file).read_text("utf-8"))
        listed = isinstance(content, list)
        names = [f"[{i}].{key}" for i, module in enumerate(content) for key in module]
        recorded = [entry.name for entry in ledger.entries if entry.where == file]
        assert sorted(recorded) == sorted(names if listed else content)
    tensors = [entry.name for entry in ledger.entries if entry.where == "2_Dense/model.safetensors"]
    assert sorted(tensors) == ["linear.bias", "linear.weight"]
    assert not {entry.verdict for entry in ledger.entries} & {"unknown", "refused"}


@pytest.mark.parametrize("file", TABLES)
def test_an_unknown_key_is_warned_about_and_refused_if_strict(
    file: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change(folder / file, lambda content: content.update(surprise=3))
    with caplog.at_level(logging.WARNING, "refllm"):
        read(folder)
    assert [record.getMessage() for record in caplog.records if file in record.getMessage()]
    assert "surprise = 3 is a key that no table of refllm lists" in caplog.text
    with pytest.raises(ModelNotSupported, match=rf"{file}: .*surprise = 3"):
        read(folder, Ledger(strict=True))


@pytest.mark.parametrize(("file", "key"), MUST_BE)
def test_a_key_that_must_have_one_value_is_refused_with_another(
    file: str, key: str, folder: Path
) -> None:
    change(folder / file, lambda content: content.update({key: "another"}))
    with pytest.raises(ModelNotSupported, match=rf"{file}: {re.escape(key)} = 'another'"):
        read(folder)


@pytest.mark.parametrize(("file", "key"), MUST_BE)
def test_a_key_that_must_have_one_value_may_have_it(file: str, key: str, folder: Path) -> None:
    rule = TABLES[file][key]
    assert isinstance(rule, MustBe)
    before = read(folder)
    for value in (None, *rule.values):
        change(folder / file, lambda content: content.update({key: value}))  # noqa: B023
        assert read(folder, Ledger(strict=True)).prompts == before.prompts


# A caller may ask for max_seq_length, so it must be a number: see the tests of limits.
@pytest.mark.parametrize(
    ("file", "key"),
    [pair for pair in KEYS if pair not in MUST_BE and pair[1] != "max_seq_length"],
)
def test_an_irrelevant_key_may_have_any_value(file: str, key: str, folder: Path) -> None:
    change(folder / file, lambda content: content.update({key: ["anything"]}))
    ledger = Ledger(strict=True)
    read(folder, ledger)
    [entry] = [e for e in ledger.entries if e.where == file and e.name.split(".")[-1] == key][-1:]
    assert entry.verdict == "irrelevant"


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("sentence_transformers.models.WeightedLayerPooling", "WeightedLayerPooling"),
        ("sentence_transformers.models.LayerNorm", "LayerNorm"),
        ("sentence_transformers.models.CNN", "CNN"),
        ("sentence_transformers.sparse_encoder.models.SpladePooling", "SpladePooling"),
        ("modeling_custom.Pooling", "modeling_custom.Pooling"),
        ("sentence_transformers.models.PoolingToo", "PoolingToo"),
    ],
)
def test_another_module_is_refused_by_its_class(kind: str, shown: str, folder: Path) -> None:
    change(folder / "modules.json", lambda module: module.update(type=kind))
    with pytest.raises(ModelNotSupported, match=rf"modules\.json: \[4\]\.type = '.*{shown}'"):
        load_path(folder)


@pytest.mark.parametrize(
    "kind",
    [
        "sentence_transformers.models.Normalize",
        "sentence_transformers.models.normalize.Normalize",
        "sentence_transformers.base.modules.normalize.Normalize",
        "sentence_transformers.base.modules.Normalize",
        "sentence_transformers.sentence_transformer.modules.Normalize",
        "sentence_transformers.sentence_transformer.modules.normalize.Normalize",
    ],
)
def test_a_module_is_known_under_each_of_its_places(kind: str, folder: Path) -> None:
    change(folder / "modules.json", lambda module: module.update(type=kind))
    assert Normalize() in read(folder).head.steps


def modules_json(folder: Path, *modules: Mapping[str, object]) -> Path:
    listed = [{"name": str(i), **module} for i, module in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(listed), "utf-8")
    return folder


TRANSFORMER = {"type": "sentence_transformers.models.Transformer", "path": ""}
POOLING = {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}
DENSE = {"type": "sentence_transformers.models.Dense", "path": "2_Dense"}


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([{**TRANSFORMER, "path": "0_BERT"}, POOLING], r"\[0\]\.path = '0_BERT' .* move its files"),
        ([TRANSFORMER, POOLING, POOLING], r"\[2\]\.type = .*a second Pooling"),
        ([TRANSFORMER, DENSE, POOLING], r"\[1\]\.type = .*before Pooling"),
        ([POOLING, TRANSFORMER], r"\[0\]\.type = .*a Transformer stands first"),
        ([TRANSFORMER, POOLING, TRANSFORMER], r"\[2\]\.type = .*a Transformer stands first"),
    ],
    ids=["encoder in a folder", "two poolings", "dense first", "pooling first", "two encoders"],
)
def test_modules_in_another_order_are_refused(
    modules: list[dict[str, object]], message: str, folder: Path
) -> None:
    with pytest.raises(ModelNotSupported, match=message):
        read(modules_json(folder, *modules))


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([TRANSFORMER], "names no Pooling"),
        ([TRANSFORMER, {**POOLING, "path": ""}], "Pooling|pooling has no folder"),
        ([TRANSFORMER, {**POOLING, "path": "../elsewhere"}], "must be a folder inside"),
        ([TRANSFORMER, {**POOLING, "path": "/etc"}], "must be a folder inside"),
        ([TRANSFORMER, {**POOLING, "path": "9_Pooling"}], r"9_Pooling.*no such file"),
        ([TRANSFORMER, {**POOLING, "name": "0"}], "name is '0' for two modules"),
        ([TRANSFORMER, {"path": "1_Pooling"}], r"\[1\]\.type is missing"),
    ],
)
def test_a_damaged_list_of_modules_is_named(
    modules: list[dict[str, object]], message: str, folder: Path
) -> None:
    with pytest.raises(LlmRuntimeError, match=message):
        read(modules_json(folder, *modules))


@pytest.mark.parametrize("text", ["", "{", '{"0": 1}', "[1]", "null"])
def test_a_modules_json_that_is_no_list_is_named(text: str, folder: Path) -> None:
    (folder / "modules.json").write_text(text)
    with pytest.raises(LlmRuntimeError, match=r"modules\.json"):
        read(folder)


@pytest.mark.parametrize(
    ("file", "update", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode": []}, "pooling_mode must be a name"),
        ("1_Pooling/config.json", {"pooling_mode": [1]}, "pooling_mode must be a name"),
        (
            "1_Pooling/config.json",
            {"pooling_mode": None, "pooling_mode_cls_token": 1},
            "pooling_mode_cls_token must be true or false",
        ),
        ("1_Pooling/config.json", {"include_prompt": "no"}, "include_prompt must be true or false"),
        ("1_Pooling/config.json", {"word_embedding_dimension": 31}, "is 31, and .* 32 numbers"),
        ("2_Dense/config.json", {"in_features": 31}, "in_features is 31, and .* have 32"),
        ("2_Dense/config.json", {"out_features": 15}, r"linear\.weight has the shape \[16, 32\]"),
        ("2_Dense/config.json", {"out_features": None}, "out_features is missing|must be a whole"),
        ("config_sentence_transformers.json", {"prompts": ["x"]}, "prompts must map names"),
        ("config_sentence_transformers.json", {"prompts": {"x": 1}}, "prompts must map names"),
        (
            "config_sentence_transformers.json",
            {"default_prompt_name": "qurey"},
            "default_prompt_name is 'qurey', and the prompts are document, empty, passage, query",
        ),
        ("config_sentence_transformers.json", {"truncate_dim": 0}, "truncate_dim must be"),
        ("sentence_bert_config.json", {"max_seq_length": -1}, "max_seq_length must be"),
        ("sentence_bert_config.json", {"do_lower_case": "yes"}, "do_lower_case must be"),
    ],
)
def test_an_impossible_value_is_named(
    file: str, update: dict[str, object], message: str, folder: Path
) -> None:
    change(folder / file, lambda content: content.update(update))
    with pytest.raises(LlmRuntimeError, match=rf"{file}|2_Dense") as error:
        read(folder)
    assert error.match(message)


def test_a_folder_that_the_system_cannot_name_is_named(folder: Path) -> None:
    change(folder / "modules.json", lambda module: module.update(path="a" * 600))
    with pytest.raises(LlmRuntimeError, match=r"aaa.*cannot be read: .*modules.json names it"):
        read(folder)


def test_an_unknown_pooling_mode_is_refused_by_its_name(folder: Path) -> None:
    change(folder / "1_Pooling/config.json", lambda c: c.update(pooling_mode=["cls", "median"]))
    with pytest.raises(ModelNotSupported, match=r"pooling_mode = \['cls', 'median'\]"):
        read(folder)


@pytest.mark.parametrize(
    "activation",
    ["torch.nn.modules.activation.Softplus", "torch.nn.functional.tanh", "mine.Tanh", "torch.tanh"],
)
def test_another_activation_is_refused_by_its_name(activation: str, folder: Path) -> None:
    change(folder / "2_Dense/config.json", lambda c: c.update(activation_function=activation))
    with pytest.raises(ModelNotSupported, match=f"activation_function = '{activation}'"):
        read(folder)


def test_a_dense_layer_in_a_pickle_is_refused_with_what_to_do(folder: Path) -> None:
    (folder / "2_Dense" / "model.safetensors").rename(folder / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(ModelNotSupported, match=r"pytorch_model\.bin: a pickle.*save_pretrained"):
        read(folder)
    (folder / "2_Dense" / "pytorch_model.bin").unlink()
    with pytest.raises(LlmRuntimeError, match=r"model\.safetensors: no such file"):
        read(folder)


def test_a_bias_that_the_file_has_and_the_config_has_not_is_refused(folder: Path) -> None:
    change(folder / "2_Dense/config.json", lambda content: content.update(bias=False))
    with pytest.raises(ModelNotSupported, match=r"the tensor 'linear\.bias' is one that no layer"):
        read(folder)


def test_a_missing_bias_is_named(tmp_path: Path) -> None:
    folder = write_sentence_folder(tmp_path / "m", pooling("mean"), dense(32, 8, bias=False))
    change(folder / "2_Dense/config.json", lambda content: content.update(bias=True))
    with pytest.raises(LlmRuntimeError, match=r"linear\.bias is missing"):
        read(folder)


def test_a_collecting_ledger_records_every_refusal(folder: Path) -> None:
    change(folder / "modules.json", lambda module: module.update(type="x.Y"))
    change(folder / "2_Dense/config.json", lambda content: content.update(use_residual=True))
    change(folder / "1_Pooling/config.json", lambda content: content.update(pooling_mode="median"))
    ledger = Ledger(collecting=True)
    read(folder, ledger)
    refused = [(entry.where, entry.name) for entry in ledger.entries if entry.verdict == "refused"]
    assert refused == [
        ("1_Pooling/config.json", "pooling_mode"),
        ("2_Dense/config.json", "use_residual"),
        ("modules.json", "[4].type"),
    ]
    recorded = [(entry.where, entry.name) for entry in ledger.entries]
    assert len(recorded) == len(set(recorded))


def test_a_collecting_ledger_continues_after_a_refused_pooling(folder: Path) -> None:
    splade = "sentence_transformers.sparse_encoder.models.SpladePooling"
    modules_json(folder, TRANSFORMER, {**POOLING, "type": splade})
    ledger = Ledger(collecting=True)
    assert read(folder, ledger).head.pooling == SentenceConfig().head.pooling
    refused = [entry.name for entry in ledger.entries if entry.verdict == "refused"]
    assert refused == ["[1].type"]


def test_the_first_of_several_names_of_the_encoder_s_file_counts(folder: Path) -> None:
    (folder / "sentence_roberta_config.json").write_text('{"max_seq_length": 7}')
    assert read(folder).max_seq_length == 64
    (folder / "sentence_bert_config.json").write_text("{}")
    assert read(folder).max_seq_length == 7


def test_a_folder_that_names_nothing_takes_the_normalized_mean(tmp_path: Path) -> None:
    assert read(tiny_bert_folder(tmp_path / "model")) == SentenceConfig()


@pytest.mark.parametrize(
    ("number", "mode"), [(None, "mean"), (1, "mean"), (2, "cls"), (3, "lasttoken")]
)
def test_a_gguf_names_its_pooling_by_number(number: int | None, mode: str, tmp_path: Path) -> None:
    path = tiny_bert_gguf(tmp_path / "m.gguf", metadata={"bert.pooling_type": number})
    ledger = Ledger(strict=True)
    assert read(path, ledger).head.pooling.modes == (mode,)
    assert [(entry.name, entry.verdict) for entry in ledger.entries] == (
        [] if number is None else [("bert.pooling_type", "used")]
    )


@pytest.mark.parametrize(
    ("number", "why"), [(0, "a vector for each token"), (4, "reranker"), (9, "is not computed")]
)
def test_a_gguf_with_another_pooling_is_refused(number: int, why: str, tmp_path: Path) -> None:
    path = tiny_bert_gguf(tmp_path / "m.gguf", metadata={"bert.pooling_type": number})
    with pytest.raises(ModelNotSupported, match=rf"bert\.pooling_type = {number} .*{why}"):
        load_path(path)


def test_do_lower_case_changes_nothing_where_the_tokenizer_lower_cases(tmp_path: Path) -> None:
    folder = write_sentence_folder(
        tmp_path / "m", switches("mean_tokens"), NORMALIZE, transformer={"do_lower_case": True}
    )
    assert load_tokenizer(folder).encode("THE Cat") == load_tokenizer(folder).encode("the cat")


def test_do_lower_case_is_refused_without_a_tokenizer_json(tmp_path: Path, data_dir: Path) -> None:
    folder = write_sentence_folder(
        tmp_path / "m", switches("mean_tokens"), transformer={"do_lower_case": True}
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):  # which names BERT's special tokens
        (folder / name).unlink()
    shutil.copy(data_dir / "llama2-tokenizer" / "tokenizer.model", folder)
    with pytest.raises(ModelNotSupported, match=r"do_lower_case = True .* tokenizer\.json"):
        load_tokenizer(folder)
