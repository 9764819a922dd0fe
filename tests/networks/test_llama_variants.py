"""Llamas with biases, fused matrices and stretched contexts, beside transformers and llama.cpp."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from refllm.rope import YarnScaling
from tests.support.llama_variants import FOLDERS, GGUFS, SAMPLED, logits_of
from tests.support.model_files import tiny_llama_gguf
from tests.support.networks import same_bits
from tests.support.peer_values import peer_values

# Both sum in another order. transformers stretches with float32 frequencies, whose rounding is
# 6e-8 of an angle of up to 59 radians; llama.cpp multiplies frequencies up, pair by pair.
TRANSFORMERS_ERROR = 2e-5
LLAMA_CPP_ERROR = 2e-4


def error(path: Path, expected: list[list[float]]) -> float:
    """The largest difference between refllm's logits and the recorded ones."""
    ours = logits_of(path)
    return max(
        float(np.abs(ours[place, : len(right)] - np.array(right)).max())
        for place, right in zip(SAMPLED, expected, strict=True)
    )


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_gives_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    path = FOLDERS[name](tmp_path / "tiny")
    assert error(path, peer_values("llama_folders")[name]) < TRANSFORMERS_ERROR


@pytest.mark.parametrize("name", GGUFS)
def test_a_gguf_gives_the_logits_of_llama_cpp(name: str, tmp_path: Path) -> None:
    assert error(GGUFS[name](tmp_path), peer_values("llama_ggufs")[name]) < LLAMA_CPP_ERROR


@pytest.mark.parametrize("topic", ["llama_folders", "llama_ggufs"])
def test_every_option_of_a_model_changes_its_logits(topic: str) -> None:
    cases = peer_values(topic)
    plain = np.array(cases["plain"])
    same = {name for name, values in cases.items() if np.abs(plain - values).max() < 1e-3}
    assert (
        same
        == {
            "llama_folders": {
                "plain",
                "tied, with an output matrix all the same",
                "SiLU under its other name",
                "a window as long as the context",
                "dynamic",  # until the context's end
            },
            "llama_ggufs": {
                "plain",
                "a number for each layer",
                "a factor of 0",
                "a factor of 0 beside its old name",
                "a factor for no stretch",
            },
        }[topic]
    )


def test_fused_matrices_give_the_bits_of_separate_ones(tmp_path: Path) -> None:
    fused = GGUFS["fused queries, keys and values"](tmp_path)
    separate = tiny_llama_gguf(tmp_path / "separate.gguf", biases=True)
    assert same_bits(logits_of(fused), logits_of(separate))


def test_yarn_s_ramp_can_begin_and_end_at_one_pair() -> None:
    divisors = YarnScaling(4.0, 1000, beta_fast=4.0, beta_slow=4.0, truncate=False).divisors(
        base=10000.0, rope_dim=8
    )
    assert [float(divisor) for divisor in divisors] == [1.0, 1.0, 4.0, 4.0]
