"""Each key and tensor of BERT's family is used, irrelevant, or refused by its name."""

from __future__ import annotations

import logging
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from refllm.api import LlmRuntimeError, ModelNotSupported
from refllm.checkpoints.config import bert_config
from refllm.checkpoints.names import FAMILIES, canonical_name
from refllm.checkpoints.open import open_weights
from refllm.files.accounting.gguf_keys import BERT_GGUF
from refllm.files.accounting.json_keys import BERT_CONFIGS
from refllm.files.accounting.keys import Known, MustBe
from refllm.files.accounting.ledger import Entry, Ledger
from refllm.files.accounting.tensors import BERT_TENSORS
from tests.support.model_files import tiny_bert_gguf
from tests.support.peer_values import peer_values
from tests.support.tiny_encoders import ENCODERS, tiny_encoder_folder

RIGHT = peer_values("encoders")


def ruled(
    folder: Path, kind: str, key: str, value: object, ledger: Ledger | None = None
) -> dict[str, Entry]:
    """Return the ledger of a folder whose config.json has this key, by key."""
    ledger = ledger or Ledger(strict=True)
    bert_config(open_weights(tiny_encoder_folder(folder, kind, config={key: value})), ledger=ledger)
    return {entry.name: entry for entry in ledger.entries}


def ruled_in_gguf(folder: Path, key: str, value: object) -> dict[str, Entry]:
    ledger = Ledger()
    path = tiny_bert_gguf(folder / "model.gguf", metadata={key: value})
    bert_config(open_weights(path), ledger=ledger)
    return {entry.name: entry for entry in ledger.entries}


def another(rule: MustBe) -> list[object]:
    """Return values other than those that a key must have."""
    if not rule.values:
        return [1, {"key": "value"}]
    match rule.values[0]:
        case bool() as flag:
            return [not flag, "maybe"]
        case int() | float() as number:
            return [number + 1]
        case str():
            return ["something else"]
        case _:
            return [{"0": {"key": "value"}}]


def a_key(pattern: str) -> str:
    return pattern.replace("*", "thing")


MUST_BE = [
    (kind, a_key(pattern), rule)
    for kind, encoder in ENCODERS.items()
    for pattern, rule in BERT_CONFIGS[FAMILIES[encoder.model_type]].items()
    if isinstance(rule, MustBe)
    # Quantized weights are refused before the keys are read: tests/checkpoints/test_accounting.py.
    and pattern not in ("quantization_config", "compression_config")
]
IRRELEVANT = [
    (kind, a_key(pattern), rule)
    for kind, encoder in ENCODERS.items()
    for pattern, rule in BERT_CONFIGS[FAMILIES[encoder.model_type]].items()
    if isinstance(rule, str) and pattern != "pad_token_id"
]


@pytest.mark.parametrize(("kind", "key", "rule"), MUST_BE)
def test_a_key_of_config_json_that_must_have_one_value_is_refused_with_another(
    kind: str, key: str, rule: MustBe, tmp_path: Path
) -> None:
    for value in another(rule):
        with pytest.raises(ModelNotSupported) as refused:
            ruled(tmp_path, kind, key, value)
        assert f"config.json: {key} = {value!r} is not supported: {rule.otherwise}" in str(
            refused.value
        )


@pytest.mark.parametrize(("kind", "key", "rule"), MUST_BE)
def test_a_key_of_config_json_is_used_with_each_value_that_it_must_have(
    kind: str, key: str, rule: MustBe, tmp_path: Path
) -> None:
    for value in rule.values:
        assert ruled(tmp_path, kind, key, value)[key].verdict == "used"


@pytest.mark.parametrize(("kind", "key", "reason"), IRRELEVANT)
def test_an_irrelevant_key_of_config_json_is_in_the_ledger_with_its_reason(
    kind: str, key: str, reason: str, tmp_path: Path
) -> None:
    assert ruled(tmp_path, kind, key, 1e-5)[key] == Entry("config.json", key, "irrelevant", reason)


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_key_that_transformers_writes_is_known(kind: str, tmp_path: Path) -> None:
    written = RIGHT["keys of config.json"][kind]
    assert {"model_type", "vocab_size", "max_position_embeddings"} < set(written)
    ledger = Ledger(strict=True)
    folder = tiny_encoder_folder(tmp_path, kind)
    of_the_file = open_weights(folder).hparams
    absent = {key: False for key in written if key not in of_the_file}
    absent.pop("architectures", None)
    weights = open_weights(tiny_encoder_folder(tmp_path, kind, config=absent))
    bert_config(weights, ledger=ledger)
    ruled_on = {entry.name: entry.verdict for entry in ledger.entries}
    assert {*written} - {"architectures"} <= ruled_on.keys()
    assert set(ruled_on.values()) == {"used", "irrelevant"}


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_unknown_key_of_config_json_is_a_warning_once_and_an_error_where_strict(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = "a_new_kind_of_attention"
    named = rf"config\.json: {key} = 'wide' is a key that no table of refllm lists"
    with pytest.raises(ModelNotSupported, match=named):
        ruled(tmp_path, kind, key, "wide")
    with caplog.at_level(logging.WARNING, logger="refllm"):
        for _ in range(2):
            entry = ruled(tmp_path, kind, key, "wide", Ledger())[key]
            assert entry.verdict == "unknown"
    assert [key in record.getMessage() for record in caplog.records] == [True]


def test_two_names_of_one_key_must_agree(tmp_path: Path) -> None:
    assert ruled(tmp_path, "distilbert", "hidden_size", 32)["hidden_size"].verdict == "used"
    with pytest.raises(LlmRuntimeError, match="dim and hidden_size must be the same"):
        ruled(tmp_path, "distilbert", "hidden_size", 64)


def test_a_whole_ledger_shows_every_refusal(tmp_path: Path) -> None:
    weights = open_weights(
        tiny_encoder_folder(
            tmp_path, "bert", config={"is_decoder": True, "auto_map": {"AutoModel": "own.Bert"}}
        )
    )
    ledger = Ledger(collecting=True)
    bert_config(weights, ledger=ledger)
    refused = {entry.name for entry in ledger.entries if entry.verdict == "refused"}
    assert refused == {"is_decoder", "auto_map"}
    assert {entry.name for entry in ledger.entries} == weights.hparams.keys()


# GGUF


def of_gguf(table: Known) -> list[tuple[str, str | MustBe]]:
    return [(a_key(pattern), rule) for pattern, rule in table.items()]


@pytest.mark.parametrize(("key", "rule"), of_gguf(BERT_GGUF))
def test_a_key_of_a_gguf_has_its_value_or_is_irrelevant(
    key: str, rule: str | MustBe, tmp_path: Path
) -> None:
    if isinstance(rule, str):
        entry = ruled_in_gguf(tmp_path, key, 7)[key]
        assert entry == Entry("metadata", key, "irrelevant", rule)
        return
    for value in rule.values:
        assert ruled_in_gguf(tmp_path, key, value)[key].verdict == "used"
    for value in another(rule):
        with pytest.raises(ModelNotSupported) as refused:
            ruled_in_gguf(tmp_path, key, value)
        assert f"model.gguf: {key} = {value!r} is not supported: {rule.otherwise}" in str(
            refused.value
        )


@pytest.mark.parametrize("key", ["bert.rotary", "bert.attention.window", "bert.dense_2_feat_in"])
def test_an_unknown_key_of_a_gguf_is_refused_by_name(key: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNotSupported, match=f"{key} = 7 is not supported"):
        ruled_in_gguf(tmp_path, key, 7)


@pytest.mark.parametrize(
    ("key", "computed", "other"),
    [
        ("bert.attention.head_count_kv", 4, 2),
        ("bert.attention.key_length", 8, 16),
        ("bert.attention.value_length", 8, 16),
    ],
)
def test_a_gguf_file_must_have_the_heads_of_a_bert(
    key: str, computed: int, other: int, tmp_path: Path
) -> None:
    assert ruled_in_gguf(tmp_path, key, computed)[key].verdict == "used"
    with pytest.raises(ModelNotSupported, match=f"{key} = {other} .* only {computed} is computed"):
        ruled_in_gguf(tmp_path, key, other)


@pytest.mark.parametrize("key", ["bert.feed_forward_length", "bert.attention.head_count"])
def test_numbers_for_each_layer_must_be_one_number(key: str, tmp_path: Path) -> None:
    n = 64 if key.startswith("bert.feed") else 4
    same = bert_config(open_weights(tiny_bert_gguf(tmp_path / "a.gguf", metadata={key: [n, n]})))
    assert same == bert_config(open_weights(tiny_bert_gguf(tmp_path / "b.gguf")))
    differ = open_weights(tiny_bert_gguf(tmp_path / "c.gguf", metadata={key: [n, 2 * n]}))
    with pytest.raises(ModelNotSupported, match=f"{key} = .* layers that differ"):
        bert_config(differ)


# Tensors


@pytest.mark.parametrize("kind", ENCODERS)
def test_each_tensor_that_transformers_saves_is_used_or_irrelevant(kind: str) -> None:
    family = FAMILIES[ENCODERS[kind].model_type]
    patterns = BERT_TENSORS[family]
    neither, both = [], []
    for name in RIGHT["tensors"][kind]:
        is_used = canonical_name(family, name) is not None
        is_irrelevant = any(fnmatchcase(name, pattern) for pattern in patterns)
        if not (is_used or is_irrelevant):
            neither.append(name)
        if is_used and is_irrelevant:
            both.append(name)
    assert (neither, both) == ([], [])
    assert len(RIGHT["tensors"][kind]) > 30


def test_every_family_has_its_tables() -> None:
    families = {*FAMILIES.values()} - {"llama"}
    assert BERT_CONFIGS.keys() == families
    assert BERT_TENSORS.keys() == families | {"gguf"}
