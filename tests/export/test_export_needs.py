"""A model that lacks a tensor is not exported: what loading refuses, no file is made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from refllm.api import LlmRuntimeError, ModelNotSupported
from refllm.checkpoints.open import open_weights
from refllm.export import Layout, quantize
from refllm.models.load import load_path
from tests.support.exports import LAYOUTS, exported
from tests.support.model_files import (
    tiny_bert_folder,
    tiny_bert_gguf,
    tiny_llama_folder,
    tiny_llama_gguf,
)

# What the models of `tests.support.model_files` consist of, in their second and last layer.
OF_LLAMA = (
    "token_embd.weight",
    "output_norm.weight",
    "blk.1.attn_norm.weight",
    "blk.1.attn_q.weight",
    "blk.1.attn_k.weight",
    "blk.1.attn_v.weight",
    "blk.1.attn_output.weight",
    "blk.1.ffn_norm.weight",
    "blk.1.ffn_gate.weight",
    "blk.1.ffn_up.weight",
    "blk.1.ffn_down.weight",
)
OF_BERT = (
    "token_embd.weight",
    "position_embd.weight",
    *(
        f"{module}.{part}"
        for module in (
            "token_embd_norm",
            "blk.1.attn_q",
            "blk.1.attn_k",
            "blk.1.attn_v",
            "blk.1.attn_output",
            "blk.1.attn_output_norm",
            "blk.1.ffn_up",
            "blk.1.ffn_down",
            "blk.1.layer_output_norm",
        )
        for part in ("weight", "bias")
    ),
)
NEEDED = [(tiny_llama_gguf, name) for name in OF_LLAMA] + [
    (tiny_bert_gguf, name) for name in OF_BERT
]


@pytest.mark.parametrize(("make", "name"), NEEDED)
def test_a_tensor_without_which_nothing_loads_is_named(
    make: Callable[..., Path], name: str, tmp_path: Path
) -> None:
    source = make(tmp_path / "source.gguf", tensors={name: None})
    with pytest.raises(LlmRuntimeError, match=rf"{name} is missing"):
        load_path(source)
    with pytest.raises(
        LlmRuntimeError,
        match=rf"source.gguf: lacks {name}, which a \w+ needs; download the whole model again",
    ):
        exported(source, tmp_path, "gguf")
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize(
    ("make", "needed", "others"),
    [
        (tiny_llama_gguf, OF_LLAMA, {"output.weight"}),
        (tiny_bert_gguf, OF_BERT, {"token_types.weight"}),
    ],
)
def test_every_tensor_but_output_and_token_types_is_needed(
    make: Callable[..., Path], needed: tuple[str, ...], others: set[str], tmp_path: Path
) -> None:
    names = open_weights(make(tmp_path / "source.gguf")).tensors
    assert {name for name in names if not name.startswith("blk.0.")} == {*needed, *others}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_export_of_an_incomplete_model_is_refused_in_every_layout(
    layout: Layout, tmp_path: Path
) -> None:
    missing = {"blk.1.ffn_up.weight": None}
    source = tiny_llama_gguf(tmp_path / "source.gguf", tensors=missing)
    with pytest.raises(LlmRuntimeError, match=r"lacks blk\.1\.ffn_up\.weight"):
        exported(source, tmp_path, layout, "F16")
    assert not (tmp_path / "exported").exists()


def test_quantizing_an_incomplete_model_is_refused(tmp_path: Path) -> None:
    missing = {"output_norm.weight": None}
    source = tiny_llama_gguf(tmp_path / "source.gguf", tensors=missing)
    with pytest.raises(LlmRuntimeError, match=r"lacks output_norm\.weight"):
        quantize(source, tmp_path / "small.gguf", type_name="Q8_0")
    assert not (tmp_path / "small.gguf").exists()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (tiny_llama_folder, "model.layers.0.mlp.gate_proj.weight"),
        (tiny_bert_folder, "encoder.layer.1.output.LayerNorm.bias"),
    ],
)
def test_a_missing_tensor_of_a_folder_has_the_folder_s_name(
    make: Callable[[Path], Path], name: str, tmp_path: Path
) -> None:
    source = make(tmp_path / "source")
    file = source / "model.safetensors"
    kept = {key: value for key, value in load_file(file).items() if key != name}
    save_file(kept, file)
    with pytest.raises(LlmRuntimeError, match=f"source: lacks {name}, which"):
        exported(source, tmp_path, "gguf")


def test_of_many_missing_tensors_the_first_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    source = tiny_llama_folder(tmp_path / "source")
    config = json.loads((source / "config.json").read_text("utf-8"))
    (source / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(LlmRuntimeError) as caught:
        exported(source, tmp_path, "gguf")
    assert str(caught.value) == (
        f"{source}: lacks "
        + ", ".join(
            f"model.layers.2.{module}.weight"
            for module in (
                "input_layernorm",
                "self_attn.q_proj",
                "self_attn.k_proj",
                "self_attn.v_proj",
                "self_attn.o_proj",
                "post_attention_layernorm",
                "mlp.gate_proj",
                "mlp.up_proj",
            )
        )
        + ", 10 more, which a llama needs; download the whole model again, or convert it again"
    )


def test_a_file_of_what_is_not_supported_is_not_copied(tmp_path: Path) -> None:
    experts = {"llama.expert_count": 8}
    source = tiny_llama_gguf(tmp_path / "source.gguf", metadata=experts)
    with pytest.raises(ModelNotSupported, match=r"llama\.expert_count = 8"):
        exported(source, tmp_path, "gguf")
