"""Every kind of llama is exported as what it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from refllm.api import ModelNotSupported
from tests.support.exports import exported
from tests.support.llama_variants import FOLDERS, GGUFS, logits_of
from tests.support.networks import same_bits

# A magnitude, and a ramp of YaRN as divisors, are float32 in a GGUF file.
FLOAT32_ERROR = 2e-6


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_the_same_model_as_a_folder(name: str, tmp_path: Path) -> None:
    source = FOLDERS[name](tmp_path / "source")
    assert same_bits(logits_of(exported(source, tmp_path, "hf")), logits_of(source))


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_the_same_model_as_a_gguf(name: str, tmp_path: Path) -> None:
    source = FOLDERS[name](tmp_path / "source")
    made, expected = logits_of(exported(source, tmp_path, "gguf")), logits_of(source)
    if "yarn" in name:
        assert np.abs(made - expected).max() < FLOAT32_ERROR * np.abs(expected).max()
    else:
        assert same_bits(made, expected)


WITHOUT_WORDS = {"a magnitude", "yarn and divisors of frequencies"}


@pytest.mark.parametrize("name", [name for name in GGUFS if name not in WITHOUT_WORDS])
def test_a_gguf_is_the_same_model_as_a_folder(name: str, tmp_path: Path) -> None:
    source = GGUFS[name](tmp_path)
    assert same_bits(logits_of(exported(source, tmp_path, "hf")), logits_of(source))


@pytest.mark.parametrize("name", sorted(WITHOUT_WORDS))
def test_a_stretch_that_config_json_cannot_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNotSupported, match="only --format gguf keeps it"):
        exported(GGUFS[name](tmp_path), tmp_path, "hf")


@pytest.mark.parametrize("name", GGUFS)
def test_a_gguf_is_the_same_model_as_a_gguf_of_another_type(name: str, tmp_path: Path) -> None:
    source = GGUFS[name](tmp_path)
    assert same_bits(logits_of(exported(source, tmp_path, "gguf", "F32")), logits_of(source))


@pytest.mark.parametrize(
    ("name", "what"),
    [("feed-forward biases", "biases in its feed-forward network"), ("yarn", "YaRN")],
)
def test_spin_s_layout_refuses_what_its_engine_ignores(
    name: str, what: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelNotSupported, match=f"has {what}, which Spin's engine does not know"):
        exported(FOLDERS[name](tmp_path / "source"), tmp_path, "spin")


def test_spin_s_layout_leaves_out_a_stretch_that_begins_beyond_the_context(tmp_path: Path) -> None:
    source = FOLDERS["dynamic"](tmp_path / "source")
    made = exported(source, tmp_path, "spin")
    assert "rope_scaling" not in json.loads((made / "config.json").read_text("utf-8"))
    assert same_bits(logits_of(made), logits_of(source))


def test_a_stretch_is_written_with_its_names_of_today(tmp_path: Path) -> None:
    made = exported(FOLDERS["linear under its old name"](tmp_path / "source"), tmp_path, "hf")
    config = json.loads((made / "config.json").read_text("utf-8"))
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    llama3 = exported(FOLDERS["llama3 of the context"](tmp_path / "2"), tmp_path / "made", "hf")
    scaling = json.loads((llama3 / "config.json").read_text("utf-8"))["rope_scaling"]
    assert scaling["original_max_position_embeddings"] == 128
