"""`refllm explain`: its tables, its JSON, and its errors."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.support.commands import answer, refllm

PROMPT = "Once upon a time"


def steps(*options: str) -> list[dict[str, Any]]:
    """The steps of `refllm explain --json`."""
    found: list[dict[str, Any]] = json.loads(
        answer("explain", "tiny-chat", PROMPT, "--json", *options)
    )["steps"]
    return found


def test_the_tokens_are_those_of_infer() -> None:
    text = answer("infer", "tiny-chat", PROMPT, "--max-tokens", "12", "--seed", "3")
    explained = steps("--max-tokens", "12", "--seed", "3", "--steps", "all")
    assert len(explained) == 12
    assert "".join(step["text"] for step in explained) == text.removesuffix("\n")


def test_the_table_has_every_candidate_of_the_json_and_the_one_that_is_drawn() -> None:
    (step,) = steps("--steps", "3", "--top", "6")
    heading, _, *rows, bar, pointer, blank = answer(
        "explain", "tiny-chat", PROMPT, "--steps", "3", "--top", "6"
    ).split("\n")[:-1]
    assert heading.startswith(f"step 3  {step['piece']} (token {step['token']}, text")
    for stage, name in zip(
        step["stages"], ["penalty", "temp.", "softmax", "top-k", "top-p"], strict=True
    ):
        if stage["n_removed"]:
            assert f"{name} removes {stage['n_removed']}" in heading
    assert [row.split()[0] for row in rows] == [c["piece"] for c in step["candidates"]]
    (drawn,) = (row for row in rows if row.rstrip().endswith("← u·Σ"))
    assert drawn.split()[0] == step["piece"]
    for row, candidate in zip(rows, step["candidates"], strict=True):
        shown = [float(number) for number in row.split()[1:5]]
        expected = [candidate["logit"], *candidate["values"][:3]]
        assert shown == pytest.approx(expected, abs=0.0006)
    assert f"u = {step['u']:.4f}" in pointer
    cell = pointer.index("↑") - 2
    assert cell == int(64 * step["u"])
    assert len(bar) == len("0  Σ") + 64
    assert blank == ""


def test_steps_after_the_last_one_to_show_are_not_computed_and_change_nothing() -> None:
    everything = steps("--steps", "all", "--max-tokens", "6")
    assert steps("--steps", "2-3") == everything[2:4]
    assert steps("--steps", "4-", "--max-tokens", "6") == everything[4:]
    assert steps() == everything[:5]


@pytest.mark.parametrize("profile", ["contract", "spin-local", "llama.cpp"])
def test_every_profile_has_its_own_order(profile: str) -> None:
    (step,) = steps("--steps", "0", "--profile", profile)
    names = [stage["name"] for stage in step["stages"]]
    first = ["penalty", "temperature", "softmax", "top_k", "top_p"]
    last = ["penalty", "top_k", "softmax", "top_p", "temperature", "softmax"]
    assert names == (last if profile == "llama.cpp" else first)


@pytest.mark.parametrize("value", ["x", "4-2", "-1", "1-2-3", "1,2", "٣"])
def test_an_unusable_range_is_wrong_usage(value: str) -> None:
    result = refllm("explain", "tiny-chat", PROMPT, f"--steps={value}")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "'--steps'" in result.stderr


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_step_behind_the_end_is_refused(options: tuple[str, ...]) -> None:
    command = ("explain", "tiny-chat", PROMPT, "--steps", "9", *options)
    for n, steps_ in (("1", "1 step"), ("2", "2 steps")):
        result = refllm(*command, "--max-tokens", n)
        assert (result.exit_code, result.stdout) == (1, "")
        assert f"invalid-input: there is no step 9; the text has {steps_}, " in result.stderr


def test_all_steps_of_a_text_without_one_are_none() -> None:
    assert steps("--steps", "all", "--max-tokens", "0") == []


def test_an_embedding_model_is_refused_with_what_to_do() -> None:
    result = refllm("explain", "tiny-embed", PROMPT)
    assert result.exit_code == 1
    assert re.search(r"model-not-supported: .*embedding model", result.stderr)
    assert "refllm embed tiny-embed" in result.stderr


def test_greedy_steps_have_no_bar() -> None:
    output = answer("explain", "tiny-chat", PROMPT, "--temperature", "0", "--steps", "0")
    assert "the largest logit" in output
    assert "█" not in output
    assert "█" in answer("explain", "tiny-chat", PROMPT, "--steps", "0")
