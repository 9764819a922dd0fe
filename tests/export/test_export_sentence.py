"""Exports keep pooling, dense layers and prompts, or are refused by what they cannot keep."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from numpy.typing import NDArray

from refllm.api import ModelNotSupported
from refllm.models.load import BertModel, load_path
from tests.support.exports import exported
from tests.support.model_files import tiny_bert_folder, tiny_bert_gguf
from tests.support.sentence_folders import (
    CASES,
    GGUF_TEXTS,
    NORMALIZE,
    PROMPTS,
    TEXTS,
    dense,
    pooling,
    write_sentence_folder,
)

Floats = NDArray[np.float32]
# As in tests/networks/test_pooling.py and tests/export/test_export_peers.py.
SENTENCE_TRANSFORMERS_ERROR = 1e-5
LLAMA_CPP_ERROR = 0.005
IN_GGUF = {"mean": 1, "cls": 2, "lasttoken": 3}


def vectors(path: Path) -> Floats:
    model = load_path(path)
    assert isinstance(model, BertModel)
    return model.embed(TEXTS)


@pytest.mark.parametrize(
    "name",
    [
        "every switch is on",
        "a list of modes",
        "only some numbers kept",
        "dense after two modes, normalized",
        "two dense",
        "dropout",
        "a default prompt",
        "a prompt left out of weightedmean",
        "lower-cased",
    ],
)
def test_a_folder_s_copy_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    source = CASES[name].write(tmp_path / "source")
    made = exported(source, tmp_path, "hf")
    assert vectors(made).tobytes() == vectors(source).tobytes()
    for path in source.rglob("*.json"):
        if path.parent != source or "sentence" in path.name or path.name == "modules.json":
            assert (made / path.relative_to(source)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("mode", "number"), IN_GGUF.items())
def test_a_gguf_file_gets_the_pooling_of_its_folder(mode: str, number: int, tmp_path: Path) -> None:
    source = write_sentence_folder(tmp_path / "source", pooling(mode), NORMALIZE)
    made = exported(source, tmp_path, "gguf")
    assert GGUFReader(made).fields["bert.pooling_type"].contents() == number
    assert vectors(made).tobytes() == vectors(source).tobytes()


@pytest.mark.parametrize("number", [None, 1, 2, 3])
def test_a_folder_gets_the_pooling_of_its_gguf_file(number: int | None, tmp_path: Path) -> None:
    source = tiny_bert_gguf(tmp_path / "m.gguf", metadata={"bert.pooling_type": number})
    made = exported(source, tmp_path, "hf")
    assert vectors(made).tobytes() == vectors(source).tobytes()
    kinds = [module["type"] for module in json.loads((made / "modules.json").read_text("utf-8"))]
    assert [kind.rpartition(".")[2] for kind in kinds] == ["Transformer", "Pooling", "Normalize"]


def test_a_folder_that_names_no_modules_still_names_none(tmp_path: Path) -> None:
    made = exported(tiny_bert_folder(tmp_path / "source"), tmp_path, "hf")
    assert not (made / "modules.json").exists()


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("mean and cls switched on", "pooling by cls and mean"),
        ("mean_sqrt_len, then normalized", "pooling by mean_sqrt_len_tokens"),
        ("mean", "vectors that are not normalized"),
        ("dense after two modes, normalized", "pooling by cls and mean"),
        ("dropout", "a Dense layer"),
        ("only some numbers kept", "vectors cut to 20 numbers"),
        ("a default prompt", "a default prompt, 'search the cat: '"),
    ],
)
def test_a_sentence_option_without_a_gguf_key_is_refused(
    name: str, what: str, tmp_path: Path
) -> None:
    source = CASES[name].write(tmp_path / "source")
    with pytest.raises(ModelNotSupported, match=rf"has {what}.* GGUF file has no key for; .* hf"):
        exported(source, tmp_path, "gguf")
    assert not list((tmp_path / "exported").glob("*.gguf"))


def test_lower_casing_is_refused_for_gguf_where_the_tokenizer_does_not(tmp_path: Path) -> None:
    modules = [pooling("mean"), NORMALIZE]
    source = write_sentence_folder(
        tmp_path / "source", *modules, transformer={"do_lower_case": True}
    )
    exported(source, tmp_path, "gguf")
    path = source / "tokenizer.json"
    document = json.loads(path.read_text("utf-8"))
    document["normalizer"]["lowercase"] = False
    path.write_text(json.dumps(document), "utf-8")
    with pytest.raises(ModelNotSupported, match="do_lower_case"):
        exported(source, tmp_path / "again", "gguf")


def test_prompts_that_a_caller_names_may_be_left_out_of_a_gguf_file(tmp_path: Path) -> None:
    prompts = {**PROMPTS, "default_prompt_name": None}
    modules = [pooling("cls"), NORMALIZE]
    source = write_sentence_folder(tmp_path / "source", *modules, prompts=prompts)
    assert vectors(exported(source, tmp_path, "gguf")).tobytes() == vectors(source).tobytes()


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("cls, then normalized", "pooling by cls"),
        ("mean", "vectors that are not normalized"),
        ("dropout", "a Dense layer"),
        ("a default prompt", "a default prompt"),
    ],
)
def test_a_sentence_option_that_spin_does_not_compute_is_refused(
    name: str, what: str, tmp_path: Path
) -> None:
    source = CASES[name].write(tmp_path / "source")
    with pytest.raises(ModelNotSupported, match=f"has {what}.*Spin's engine does not know"):
        exported(source, tmp_path, "spin")


def test_a_gguf_file_of_cls_is_refused_for_spin(tmp_path: Path) -> None:
    source = tiny_bert_gguf(tmp_path / "m.gguf", metadata={"bert.pooling_type": 2})
    with pytest.raises(ModelNotSupported, match="has pooling by cls"):
        exported(source, tmp_path, "spin")


@pytest.mark.parametrize("layout", ["hf", "gguf"])
def test_a_pooling_that_is_not_computed_is_not_exported(layout: str, tmp_path: Path) -> None:
    source = tiny_bert_gguf(tmp_path / "m.gguf", metadata={"bert.pooling_type": 4})
    with pytest.raises(ModelNotSupported, match=r"bert\.pooling_type = 4"):
        exported(source, tmp_path, "hf" if layout == "hf" else "gguf")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", IN_GGUF.values())
def test_sentence_transformers_makes_our_vectors_of_an_exported_gguf_file(
    number: int, tmp_path: Path
) -> None:
    peer = pytest.importorskip("sentence_transformers", reason="pip install sentence-transformers")
    source = tiny_bert_gguf(tmp_path / "m.gguf", metadata={"bert.pooling_type": number})
    made = exported(source, tmp_path, "hf")
    theirs = peer.SentenceTransformer(str(made), device="cpu").encode(list(TEXTS))
    np.testing.assert_allclose(theirs, vectors(source), atol=SENTENCE_TRANSFORMERS_ERROR)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", IN_GGUF)
def test_llama_cpp_makes_our_vectors_of_an_exported_folder(mode: str, tmp_path: Path) -> None:
    peer = pytest.importorskip("llama_cpp", reason="pip install llama-cpp-python")
    source = write_sentence_folder(tmp_path / "source", pooling(mode), NORMALIZE)
    made = exported(source, tmp_path, "gguf")
    model = peer.Llama(str(made), embedding=True, verbose=False)
    theirs = np.array([model.embed(text, normalize=True) for text in GGUF_TEXTS], np.float32)
    ours = load_path(source)
    assert isinstance(ours, BertModel)
    assert np.abs(theirs - ours.embed(GGUF_TEXTS)).max() < LLAMA_CPP_ERROR


def test_a_dense_layer_keeps_its_numbers_whatever_the_type(tmp_path: Path) -> None:
    source = write_sentence_folder(tmp_path / "source", pooling("mean"), dense(32, 8))
    made = exported(source, tmp_path, "hf", "F16")
    place = "2_Dense/model.safetensors"
    assert (made / place).read_bytes() == (source / place).read_bytes()
