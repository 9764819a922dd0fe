"""Every key of a tokenizer is read, irrelevant by a table, or refused by name."""

from __future__ import annotations

import json
import logging
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from refllm.api import ModelNotSupported
from refllm.files.accounting.ledger import Ledger
from refllm.files.accounting.tokenizer_keys import GGUF_BERT_TOKENIZER, GGUF_LLAMA_TOKENIZER
from refllm.models.load import account, load_path
from refllm.tokenizer import tokenizer_from_folder, tokenizer_from_gguf
from refllm.tokenizer.bpe import PRE_TOKENIZERS
from tests.support.model_files import tiny_bert_folder, tiny_llama_folder
from tests.support.peer_values import peer_values
from tests.support.token_cases import (
    FAST,
    FOLDERS,
    GGUFS,
    WORD_RULES,
    Files,
    bert_case,
    llama_case,
    llama_json,
    model_case,
    nfc_json,
    roberta_files,
    unigram_metadata,
    write_folder,
)
from tests.support.vocabularies import bert_toy, bpe_metadata, spm_toy

PATH = Path("vocabulary.gguf")
KINDS: dict[str, Callable[[], dict[str, object]]] = {
    "llama": spm_toy,
    "gpt2": bpe_metadata,
    "bert": bert_toy,
    "t5": unigram_metadata,
}


def verdicts(ledger: Ledger, where: str) -> dict[str, str]:
    return {entry.name: entry.verdict for entry in ledger.entries if entry.where == where}


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_key_of_gguf_metadata_is_refused_by_name(kind: str) -> None:
    for key in ("tokenizer.ggml.sparkles", "tokenizer.sparkles"):
        with pytest.raises(ModelNotSupported, match=f"{key} = 7 is not supported: no table"):
            tokenizer_from_gguf({**KINDS[kind](), key: 7}, path=PATH)


@pytest.mark.parametrize("kind", KINDS)
def test_each_key_of_gguf_metadata_is_in_the_ledger(kind: str) -> None:
    ledger = Ledger()
    metadata = {**KINDS[kind](), "tokenizer.chat_template": "", "llama.block_count": 1}
    tokenizer_from_gguf(metadata, path=PATH, ledger=ledger)
    found = verdicts(ledger, "metadata")
    assert found.keys() == {k for k in metadata if k.startswith("tokenizer.ggml.")}
    assert set(found.values()) <= {"used", "irrelevant"}


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        *((kind, "huggingface.json", "{}") for kind in KINDS),
        *((kind, "ggml.suppress_tokens", []) for kind in KINDS),
        *((kind, "ggml.padding_token_id", 10**6) for kind in KINDS),
        *((kind, "ggml.fim_pre_token_id", 1) for kind in KINDS),
        *((kind, "ggml.token_type_count", 2) for kind in KINDS),
        *((kind, "ggml.add_sep_token", True) for kind in KINDS),
        *(
            (kind, key.removeprefix("tokenizer.").replace("*", "lowercase"), True)
            for kind, table in (
                ("gpt2", GGUF_LLAMA_TOKENIZER),
                ("bert", GGUF_BERT_TOKENIZER),
            )
            for key in table
            if key.rpartition(".")[2] not in ("pre", "merges", "*", "scores")
        ),
    ],
)
def test_a_key_that_changes_no_ids_is_taken(kind: str, key: str, value: object) -> None:
    plain = tokenizer_from_gguf(KINDS[kind](), path=PATH)
    ledger = Ledger()
    tokenizer = tokenizer_from_gguf(
        {**KINDS[kind](), f"tokenizer.{key}": value}, path=PATH, ledger=ledger
    )
    assert tokenizer.encode(" a  the.") == plain.encode(" a  the.")
    assert verdicts(ledger, "metadata")[f"tokenizer.{key}"] in ("used", "irrelevant")


def test_tokens_that_must_never_be_drawn_are_refused() -> None:
    with pytest.raises(
        ModelNotSupported, match=r"suppress_tokens = \[7\] is not supported: tokens"
    ):
        tokenizer_from_gguf({**spm_toy(), "tokenizer.ggml.suppress_tokens": [7]}, path=PATH)


@pytest.mark.parametrize("kind", ["rwkv", "plamo2", "gemma4", "none", "no_vocab", "klingon"])
def test_another_kind_of_vocabulary_is_refused_by_name(kind: str) -> None:
    with pytest.raises(ModelNotSupported, match=f"model = '{kind}' is not supported: .* llama, "):
        tokenizer_from_gguf({**spm_toy(), "tokenizer.ggml.model": kind}, path=PATH)


@pytest.mark.parametrize("case", FOLDERS)
def test_no_key_of_a_folder_that_transformers_reads_is_unknown(tmp_path: Path, case: str) -> None:
    ledger = Ledger(strict=True)
    tokenizer_from_folder(write_folder(tmp_path, FOLDERS[case]), ledger)
    files = {name for name in FOLDERS[case] if name.endswith(".json") and name != "config.json"}
    assert files - {"vocab.json"} == {entry.where for entry in ledger.entries}
    assert {entry.verdict for entry in ledger.entries} <= {"used", "irrelevant"}


def strict_cases() -> dict[str, tuple[Files, str, str]]:
    document = llama_json()
    document["decoder"]["decoders"][0]["sparkles"] = 7
    return {
        "config": (llama_case({**FAST, "sparkles": 7}), "tokenizer_config.json", "sparkles"),
        "model": (model_case({"sparkles": 7}), "tokenizer_config.json", "sparkles"),
        "map": (
            llama_case(FAST, **{"special_tokens_map.json": {"sparkles": 7}}),
            "special_tokens_map.json",
            "sparkles",
        ),
        "generation": (
            llama_case(FAST, **{"generation_config.json": {"sparkles": 7}}),
            "generation_config.json",
            "sparkles",
        ),
        "tokenizer.json": (
            {**llama_case(FAST), "tokenizer.json": document},
            "tokenizer.json",
            "decoder.decoders.sparkles",
        ),
    }


@pytest.mark.parametrize("case", strict_cases())
def test_an_unknown_key_of_a_json_file_is_a_warning_and_refused_where_strict(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    files, where, name = strict_cases()[case]
    folder = write_folder(tmp_path, files)
    ledger = Ledger()
    with caplog.at_level(logging.WARNING, "refllm"):
        tokenizer_from_folder(folder, ledger)
    assert verdicts(ledger, where)[name] == "unknown"
    assert f"{where}: {name} = 7 is a key that" in caplog.text
    with pytest.raises(ModelNotSupported, match=f"{where}: {name} = 7 is a key that"):
        tokenizer_from_folder(folder, Ledger(strict=True))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("split_special_tokens", True),
        ("fast_tokenizer_files", ["tokenizer.4.0.json"]),
        ("do_basic_tokenize", False),
        ("fix_mistral_regex", True),
        ("sp_model_kwargs", {"enable_sampling": True}),
        ("init_inputs", [1]),
    ],
)
def test_an_option_that_asks_for_what_is_not_computed_is_refused(
    tmp_path: Path, key: str, value: object
) -> None:
    for config in ({key: value}, {key: None}):
        folder = write_folder(tmp_path / str(len(str(config))), llama_case({**FAST, **config}))
        if config[key] is None:
            assert tokenizer_from_folder(folder).encode("a")
            continue
        with pytest.raises(ModelNotSupported, match=rf"tokenizer_config\.json: {key} = "):
            tokenizer_from_folder(folder)


@pytest.mark.parametrize(
    ("files", "key", "verdict"),
    [
        (bert_case({"do_lower_case": False}), "do_lower_case", "used"),
        ({**bert_case({}), "tokenizer_config.json": {**FAST, "do_lower_case": False}},
         "do_lower_case", "irrelevant"),
        (llama_case({"tokenizer_class": "LlamaTokenizer", "legacy": False}), "legacy", "used"),
        (llama_case({**FAST, "legacy": False}), "legacy", "irrelevant"),
        (llama_case({**FAST, "add_bos_token": False}), "add_bos_token", "irrelevant"),
        (model_case({}), "add_bos_token", "used"),
        (roberta_files(add_prefix_space=True), "add_prefix_space", "used"),
    ],
)  # fmt: skip
def test_an_option_is_used_where_the_class_has_it(
    tmp_path: Path, files: Files, key: str, verdict: str
) -> None:
    ledger = Ledger()
    tokenizer_from_folder(write_folder(tmp_path, files), ledger)
    assert verdicts(ledger, "tokenizer_config.json")[key] == verdict


def test_defaults_of_sampling_are_irrelevant_and_ids_of_ends_are_read(tmp_path: Path) -> None:
    content = {"temperature": 0.6, "top_p": 0.9, "do_sample": True, "eos_token_id": [2, 260]}
    ledger = Ledger(strict=True)
    files = llama_case(FAST, **{"generation_config.json": content})
    tokenizer_from_folder(write_folder(tmp_path, files), ledger)
    assert verdicts(ledger, "generation_config.json") == {
        **dict.fromkeys(("temperature", "top_p", "do_sample"), "irrelevant"),
        "eos_token_id": "used",
    }


NFC_NAMES = [name for name, rule in PRE_TOKENIZERS.items() if rule.nfc]


@pytest.mark.parametrize("pre", NFC_NAMES)
def test_a_text_is_normalized_where_the_models_of_that_name_were_trained_so(
    tmp_path: Path, pre: str
) -> None:
    text = "e\u0301te\u0301 A\u030angstro\u0308m"
    assert text != unicodedata.normalize("NFC", text)
    tokenizer = tokenizer_from_gguf(bpe_metadata(pre=pre, add_bos_token=False), path=PATH)
    assert tokenizer.encode(text) == tokenizer.encode(unicodedata.normalize("NFC", text))
    assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)


def test_a_vocabulary_without_nfc_leaves_a_decomposed_text_unchanged() -> None:
    tokenizer = tokenizer_from_gguf(bpe_metadata(pre="gpt-2"), path=PATH)
    assert tokenizer.decode(tokenizer.encode("e\u0301")) == "e\u0301"


def test_these_five_rules_normalize_to_nfc() -> None:
    assert sorted(NFC_NAMES) == ["command-r", "mpt", "olmo", "qwen2", "qwen35"]


def test_gguf_special_tokens_have_names() -> None:
    keys = {"eos_token_id": 286, "padding_token_id": 0}
    metadata = spm_toy(("<|im_end|>", 3)) | {
        f"tokenizer.ggml.{name}": token_id for name, token_id in keys.items()
    }
    assert tokenizer_from_gguf(metadata, path=PATH).special_tokens == {
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
    }
    assert tokenizer_from_gguf(bert_toy(), path=PATH).special_tokens == {
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "unk_token": "[UNK]",
    }


def test_recorded_values_are_of_the_cases_that_there_are() -> None:
    words = {f"words: {pre}" for pre in WORD_RULES}
    assert peer_values("tokens").keys() == FOLDERS.keys() | GGUFS.keys() | words
    assert json.dumps(nfc_json())  # the cases are JSON


@pytest.mark.parametrize(
    "config",
    [
        {"use_fast": True, "revision": "main", "max_seq_length": 512},
        {"vocab_size": 49152},  # SmolLM2, Granite Code
        {"unk_id": 0},  # what transformers 5.24 saves of a sentencepiece.bpe.model
    ],
)
def test_a_key_that_published_tokenizers_have_is_in_the_table(
    tmp_path: Path, config: dict[str, object]
) -> None:
    folder = tiny_llama_folder(tmp_path / "tiny")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    ledger = Ledger(strict=True)
    load_path(folder, ledger=ledger)
    verdicts = {e.name: e.verdict for e in ledger.entries if e.where == "tokenizer_config.json"}
    assert verdicts == dict.fromkeys(config, "irrelevant")


def test_a_tokenizer_json_of_sentence_transformers_with_lowercase_is_all_known(
    tmp_path: Path,
) -> None:
    folder = tiny_bert_folder(tmp_path / "tiny")
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text("utf-8"))
    steps = [{"type": "Lowercase"}, document["normalizer"]]
    document["normalizer"] = {"type": "Sequence", "normalizers": steps}
    path.write_text(json.dumps(document), "utf-8")
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    assert [e.name for e in account(folder).entries if e.verdict == "unknown"] == []
