"""Values behind the encoder and in its relatives follow from their inputs; a fault in one is named.

A fault is planted in the model: refllm computes a model that has it, and its trace is compared with
that of the right model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from refllm import LocalEngine
from refllm.trace import Trace, record
from refllm.trace.compare import Comparison, compare
from refllm.trace.expected import How, Inputs, formulas_of, layer_of
from refllm.trace.faults.bert import TRACED_FAULTS
from tests.support.exported_models import MODELS
from tests.support.planted import write_trace
from tests.support.sentence_folders import CASES
from tools.record_traces import FAULTS

TEXT = "the cat sat on the mat."
ENCODERS = ("bert, cased, by cls", "roberta", "xlm-roberta", "camembert", "distilbert", "mpnet")
HEADS = [name for name, case in CASES.items() if not case.options and name != "texts cut"]

Tensors = dict[str, NDArray[np.float32]]


def made(name: str, folder: Path, change: Callable[[Tensors], object] | None = None) -> Path:
    """Write a model of `CASES` or `MODELS`, with changed tensors, and return its path."""
    folder.mkdir()
    path = CASES[name].write(folder) if name in CASES else MODELS[name].make(folder)
    if change is not None:
        file = path / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, {"format": "pt"})
    return path


def traced(model: Path, to: Path, text: str = TEXT) -> Trace:
    return record(model, text, to=to, engine=LocalEngine(), max_tokens=100)


def found_in(right: Path, wrong: Path, folder: Path, text: str = TEXT) -> Comparison:
    """Compare a right model with a wrong one, as if both were the right one."""
    a, b = traced(right, folder / "a", text), traced(wrong, folder / "b", text)
    b = replace(b, metadata=replace(b.metadata, model=a.metadata.model))
    return compare(a, b, formulas=formulas_of(right))


def assert_each_value_follows(trace: Trace, model: Path, names: tuple[str, ...]) -> None:
    formulas, inputs = formulas_of(model), Inputs(trace, 0)
    distances = []
    for name in trace.metadata.calls[0].values:
        if names and layer_of(name)[0] not in names:
            continue
        expected, value = formulas.expected(inputs, name, How()), inputs.get(name)
        assert expected is not None, name
        assert value is not None
        assert expected.value.size == value.size, name
        distances.append(expected.distance(value.reshape(expected.value.shape)))
        assert distances[-1] <= 1.0, name
        off = value.reshape(expected.value.shape) * (1 + 1e-3)
        assert not expected.admits(off), name  # a bound that admits everything proves nothing
    assert len(distances) >= 2
    assert max(distances) > 0


@pytest.mark.parametrize("name", HEADS)
def test_every_value_of_a_head_follows_from_its_inputs(name: str, tmp_path: Path) -> None:
    model = made(name, tmp_path / "model")
    trace = traced(model, tmp_path / "a")
    names = ("result_embd_pooled", "result_embd_dense", "result_embd", "l_out")
    assert_each_value_follows(trace, model, names)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_value_of_a_relative_of_bert_follows_from_its_inputs(
    name: str, tmp_path: Path
) -> None:
    model = made(name, tmp_path / "model")
    trace = traced(model, tmp_path / "a", "the cafe playing. " * 30)
    assert trace.metadata.calls[0].n_tokens > 60
    assert_each_value_follows(trace, model, ())


def test_each_fault_of_traces_alone_is_planted() -> None:
    planted = {
        *PLANTED_HEADS,
        *PLANTED_ENCODERS,
        "normalized after the cut",
        *FAULTS["sentence-transformers"],
    }
    assert {fault.name for fault in TRACED_FAULTS} <= planted


PLANTED_HEADS: Mapping[str, tuple[str, str, str]] = {
    "CLS pooling": ("mean", "cls", "result_embd_pooled"),
    "max pooling": ("weightedmean", "max", "result_embd_pooled"),
    "last token pooling": ("mean_sqrt_len_tokens", "lasttoken", "result_embd_pooled"),
    "mean pooling": ("cls", "mean", "result_embd_pooled"),
    "weighted mean pooling": ("lasttoken", "weightedmean", "result_embd_pooled"),
    "mean by the root of the length": ("max", "mean_sqrt_len_tokens", "result_embd_pooled"),
    "prompt pooled": ("a prompt left out of mean", "a default prompt", "result_embd_pooled"),
    "dense layer missing": ("dense after normalizing", "mean, then normalized", "result_embd"),
    "biases missing": ("dense with Tanh", "dense without a bias", "result_embd_dense-0"),
    "embeddings not normalized": ("cls, then normalized", "cls", "result_embd"),
    **{
        f"dense layer with {activation}": (
            "dense with Tanh" if activation != "Tanh" else "dense with Identity",
            f"dense with {activation}",
            "result_embd_dense-0",
        )
        for activation in ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")
    },
}
"""By the fault's name: the right model's case, the wrong one's, and the first wrong value."""


@pytest.mark.parametrize("name", PLANTED_HEADS)
def test_a_fault_behind_the_encoder_is_found_at_its_value_and_named(
    name: str, tmp_path: Path
) -> None:
    right, wrong, value = PLANTED_HEADS[name]
    models = made(right, tmp_path / "right"), made(wrong, tmp_path / "wrong")
    found = found_in(*models, tmp_path)
    assert found.first is not None
    assert (found.first.name, found.first.wrong) == (value, "B")
    reproducing = [cause.name for cause in found.first.causes if cause.share == 1]
    assert reproducing[0] == name
    # Of the models with another pooling, only one of the two normalizes in this case.
    assert [each.name for each in found.others] == ["result_embd"] * (name == "prompt pooled")


def test_a_vector_that_is_normalized_after_its_cut_is_named(tmp_path: Path) -> None:
    model = made("only some numbers kept", tmp_path / "model")
    a = traced(model, tmp_path / "a")
    values = {n: a.value(n).astype(np.float64) for n in a.metadata.calls[0].values}
    values["result_embd"] /= np.linalg.norm(values["result_embd"])
    b = write_trace(
        tmp_path / "b", [values], architecture="bert", model="x", texts=a.metadata.texts
    )
    found = compare(a, b, formulas=formulas_of(model))
    assert found.first is not None
    assert found.first.name == "result_embd"
    assert [cause.name for cause in found.first.causes] == ["normalized after the cut"]


def zeroed(*ends: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        chosen = [array for name, array in tensors.items() if name.endswith(ends)]
        assert chosen
        for array in chosen:
            array[...] = 0

    return change


BIAS = "encoder.relative_attention_bias.weight"
POSITIONS = "embeddings.position_embeddings.weight"


def exchange_directions(tensors: Tensors) -> None:
    """Exchange the buckets of keys before the query with those behind it; both have no bucket 0."""
    table = tensors[BIAS]
    tensors[BIAS] = np.concatenate([table[:1], table[17:], table[16:17], table[1:16]])


def shift_positions(tensors: Tensors) -> None:
    tensors[POSITIONS] = np.roll(tensors[POSITIONS], 2, axis=0)  # row 2 is now row 0


def scale_bias(tensors: Tensors) -> None:
    tensors[BIAS] = tensors[BIAS] / np.float32(np.sqrt(8))


PLANTED_ENCODERS: Mapping[str, tuple[str, Callable[[Tensors], object], str]] = {
    "relative bias missing": ("mpnet", zeroed(BIAS), "kq_soft_max-0"),
    "relative bias backwards": ("mpnet", exchange_directions, "kq_soft_max-0"),
    "relative bias scaled": ("mpnet", scale_bias, "kq_soft_max-0"),
    "positions without the padding token's id": ("roberta", shift_positions, "inp_embd"),
    "LayerNorm without bias": ("distilbert", zeroed("LayerNorm.bias"), "inp_norm"),
    "biases missing": ("camembert", zeroed("query.bias", "key.bias", "value.bias"), "Qcur-0"),
}
"""By the fault's name: the model, how its tensors are changed, and the first wrong value."""


@pytest.mark.parametrize("name", PLANTED_ENCODERS)
def test_a_fault_in_a_relative_of_bert_is_found_at_its_value_and_named(
    name: str, tmp_path: Path
) -> None:
    kind, change, value = PLANTED_ENCODERS[name]
    models = made(kind, tmp_path / "right"), made(kind, tmp_path / "wrong", change)
    found = found_in(*models, tmp_path, "the cafe playing. a b c ab " * 3)
    assert found.first is not None
    assert (found.first.name, found.first.wrong) == (value, "B")
    assert [cause.name for cause in found.first.causes if cause.share == 1] == [name]
