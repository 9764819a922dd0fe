"""The engine with profile spin-local: where Spin's own engine differs from the contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from refllm.api import (
    InferencingParams,
    LlmRuntimeError,
)
from refllm.engine import LocalEngine
from tests.support.engines import GREEDY


def test_profile_spin_local_refuses_top_k_0(tiny_models: Path) -> None:
    engine = LocalEngine(roots=[tiny_models], profile="spin-local")
    with pytest.raises(LlmRuntimeError, match="top_k 0"):
        engine.infer("tiny", "the", InferencingParams(top_k=0))


def test_profile_spin_local_repeats_the_prompt_and_counts_as_spin_does(
    tiny_models: Path, tiny_engine: LocalEngine
) -> None:
    spin = LocalEngine(roots=[tiny_models], profile="spin-local")
    as_spin, as_contract = (e.infer("tiny", "the cat", GREEDY) for e in (spin, tiny_engine))
    assert as_spin.text == "the cat" + as_contract.text
    assert "".join(chunk.text for chunk in spin.stream("tiny", "the cat", GREEDY)) == as_spin.text
    n_prompt, n_generated = (
        as_contract.usage.prompt_token_count,
        as_contract.usage.generated_token_count,
    )
    assert as_spin.usage.prompt_token_count == n_prompt + n_generated
    assert as_spin.usage.generated_token_count == n_generated


def test_profile_spin_local_lets_texts_influence_each_other(tiny_models: Path) -> None:
    spin = LocalEngine(roots=[tiny_models], profile="spin-local")
    alone = spin.generate_embeddings("embedder", ["a"])
    together = spin.generate_embeddings("embedder", ["a", "the cat sat on the mat"])
    assert together.embeddings[0] != alone.embeddings[0]
    longest = spin.generate_embeddings("embedder", ["the cat sat on the mat"])
    assert together.usage == longest.usage, "the longest padded length, whatever the number"
    assert together.embeddings[1] == longest.embeddings[0], "the longest has no padding"
    with pytest.raises(LlmRuntimeError, match="empty list"):
        spin.generate_embeddings("embedder", [])
