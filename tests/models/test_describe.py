"""What a model is, from its files: counted by hand; and whether it is whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from typer.testing import CliRunner

from refllm.api import LlmRuntimeError
from refllm.checkpoints.chat_template import chat_template_of
from refllm.checkpoints.open import open_weights
from refllm.cli import app
from refllm.models.describe import Stored, describe, overview, verify
from refllm.models.find import FoundModel
from tests.support.model_files import (
    spm_vocabulary,
    tiny_bert_folder,
    tiny_llama_folder,
    tiny_llama_gguf,
)
from tests.support.sentence_folders import CASES

N_VOCAB = len(cast("list[str]", spm_vocabulary()["tokenizer.ggml.tokens"]))
MATRICES = 2 * N_VOCAB * 32 + 2 * (32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 64 * 32)
NORMS = 5 * 32


def test_a_llama_is_described_with_all_its_numbers_counted(tmp_path: Path) -> None:
    found = describe(tiny_llama_gguf(tmp_path / "tiny.gguf", type="Q8_0"))
    assert (found.kind, found.architecture) == ("inferencing", "llama")
    assert found.types == {
        "Q8_0": Stored(2 + 2 * 7, MATRICES, MATRICES // 32 * 34),
        "F32": Stored(5, NORMS, 4 * NORMS),
    }
    assert found.n_parameters == MATRICES + NORMS
    assert (found.n_tokens, found.bos_id, found.eos_ids) == (N_VOCAB, 1, (2,))
    assert found.hyperparameters["n_layers"] == 2


def test_an_overview_counts_what_the_description_counts(tmp_path: Path) -> None:
    path = tiny_llama_gguf(tmp_path / "tiny.gguf", type="Q8_0")
    whole, line = describe(path), overview(FoundModel("tiny", "llama", path))
    assert (line.kind, line.architecture, line.file_type) == ("inferencing", "llama", "Q8_0")
    assert (line.n_parameters, line.n_bytes) == (whole.n_parameters, whole.n_bytes)
    assert (line.verified, line.problem) == (None, None)


def test_another_model_under_a_published_name_is_not_verified(tmp_path: Path) -> None:
    folder = tiny_bert_folder(tmp_path / "all-minilm-l6-v2")
    assert overview(FoundModel("all-minilm-l6-v2", None, folder)).verified is False


def test_memory_is_weights_and_a_float32_for_each_key_and_value(tmp_path: Path) -> None:
    found = describe(tiny_llama_gguf(tmp_path / "tiny.gguf"))
    layers, kv_heads, head_dim, keys_and_values, float_bytes = 2, 2, 8, 2, 4
    a_token = layers * kv_heads * head_dim * keys_and_values * float_bytes
    assert found.memory(100) == found.n_bytes + 100 * a_token


def test_a_folder_is_described_like_the_gguf_of_the_same_model(tmp_path: Path) -> None:
    gguf, folder = (
        describe(tiny_llama_gguf(tmp_path / "tiny.gguf")),
        describe(tiny_llama_folder(tmp_path / "tiny")),
    )
    same = ("kind", "types", "n_tokens", "bos_id", "eos_ids", "chat_template", "cache_bytes")
    assert [getattr(gguf, name) for name in same] == [getattr(folder, name) for name in same]
    assert gguf.hyperparameters.keys() == folder.hyperparameters.keys()


def test_a_bert_is_for_embeddings_and_keeps_no_cache(tmp_path: Path) -> None:
    found = describe(tiny_bert_folder(tmp_path / "bert"))
    assert found.kind == "embedding"
    assert found.memory(1000) == found.n_bytes


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("mean and cls switched on", ("cls, mean", 64, True, "none")),
        ("dense with Tanh", ("mean", 24, False, "none")),
        ("a default prompt", ("mean", 32, True, "search the cat: ")),
    ],
)
def test_a_bert_is_described_with_what_makes_a_text_s_vector(
    case: str, expected: tuple[object, ...], tmp_path: Path
) -> None:
    found = describe(CASES[case].write(tmp_path / "model")).hyperparameters
    names = ("pooling", "vector_width", "normalized", "default_prompt")
    assert tuple(found[name] for name in names) == expected


TEMPLATE = "{{ messages }}"


@pytest.mark.parametrize(
    ("file", "contents", "template"),
    [
        ("chat_template.jinja", TEMPLATE, TEMPLATE),
        ("tokenizer_config.json", json.dumps({"chat_template": TEMPLATE}), TEMPLATE),
        (
            "tokenizer_config.json",
            json.dumps(
                {
                    "chat_template": [
                        {"name": "rag", "template": "no"},
                        {"name": "default", "template": TEMPLATE},
                    ]
                }
            ),
            TEMPLATE,
        ),
        ("tokenizer_config.json", "{}", None),
        ("README.md", TEMPLATE, None),
    ],
)
def test_a_folders_chat_template_is_where_transformers_puts_it(
    file: str, contents: str, template: str | None, tmp_path: Path
) -> None:
    folder = tiny_llama_folder(tmp_path / "tiny")
    (folder / file).write_text(contents)
    assert chat_template_of(open_weights(folder)) == template


def test_a_ggufs_chat_template_is_in_its_metadata(tmp_path: Path) -> None:
    metadata = {"tokenizer.chat_template": TEMPLATE}
    path = tiny_llama_gguf(tmp_path / "tiny.gguf", metadata=metadata)
    assert chat_template_of(open_weights(path)) == TEMPLATE


def test_a_chat_template_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    metadata = {"tokenizer.chat_template": 3}
    path = tiny_llama_gguf(tmp_path / "tiny.gguf", metadata=metadata)
    with pytest.raises(LlmRuntimeError, match="chat_template must be text"):
        chat_template_of(open_weights(path))


def test_a_whole_model_is_verified_tensor_by_tensor(tmp_path: Path) -> None:
    assert verify(tiny_llama_gguf(tmp_path / "tiny.gguf")) == 2 + 2 * 9 + 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_found_in_its_tensor(bad: float, tmp_path: Path) -> None:
    path = tiny_llama_gguf(tmp_path / "tiny.gguf")
    rows = open_weights(path).tensors["blk.1.ffn_up.weight"].array().copy()
    rows[63, 31] = bad
    changed = tiny_llama_gguf(tmp_path / "bad.gguf", tensors={"blk.1.ffn_up.weight": rows})
    with pytest.raises(LlmRuntimeError, match=r"bad.gguf: tensor blk.1.ffn_up.weight has values"):
        verify(changed)


def test_a_weight_of_another_shape_is_found(tmp_path: Path) -> None:
    wrong = {"blk.0.ffn_up.weight": np.zeros((63, 32), np.float32)}
    with pytest.raises(LlmRuntimeError, match=r"blk.0.ffn_up.weight has the shape \[63, 32\]"):
        verify(tiny_llama_gguf(tmp_path / "tiny.gguf", tensors=wrong))


class TestCommands:
    """`refllm models show` and `verify`, as they are typed."""

    def test_show_prints_what_a_model_is(self, tmp_path: Path) -> None:
        path = tiny_llama_gguf(tmp_path / "tiny.gguf")
        result = CliRunner().invoke(app, ["models", "show", str(path), "--context", "10"])
        lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
        assert result.exit_code == 0
        assert lines["kind"] == "inferencing, llama"
        assert lines["n_layers"] == "2"
        assert lines["memory"].endswith("for a context of 10 tokens")

    def test_json_has_the_same(self, tmp_path: Path) -> None:
        path = tiny_llama_gguf(tmp_path / "tiny.gguf")
        result = CliRunner().invoke(app, ["models", "show", str(path), "--json"])
        shown = json.loads(result.stdout)
        assert shown["n_parameters"] == MATRICES + NORMS
        assert shown["memory"]["n_tokens"] == 128

    def test_verify_prints_how_many_tensors_are_whole(self, tmp_path: Path) -> None:
        path = tiny_llama_gguf(tmp_path / "tiny.gguf")
        result = CliRunner().invoke(app, ["models", "verify", str(path)])
        assert (result.exit_code, result.stdout) == (
            0,
            f"{path}: 21 tensors, all whole and finite\n",
        )

    @pytest.mark.network
    def test_verify_compares_a_published_model_with_its_hashes(self, minilm_dir: Path) -> None:
        result = CliRunner().invoke(app, ["models", "verify", str(minilm_dir)])
        assert result.exit_code == 0
        assert "the published files" in result.stdout

    def test_a_file_that_was_changed_since_is_found(self, tmp_path: Path) -> None:
        folder = tiny_bert_folder(tmp_path / "all-minilm-l6-v2")
        result = CliRunner().invoke(app, ["models", "verify", str(folder)])
        assert result.exit_code == 1
        assert "all-minilm-l6-v2: is not the published model" in result.stderr
