"""A student's questions, answered from the page alone: by its roles, names and texts.

The answers are computed here from the logits and the attention weights that a tap sees, by the
stages of golden/sampling in NumPy; no function of `refllm.inspect` or `refllm.sampling` is used but
`uniform`, whose numbers golden/sampling has.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import refllm
from refllm.models.load import LlamaModel
from refllm.sampling import uniform
from tests.conftest import PROJECT
from tests.inspect.conftest import PROMPT, SEED

STEPS = (3, 5)
STAGES = ["penalty", "temperature", "softmax", "top_k", "top_p"]


@dataclass(frozen=True, slots=True)
class Answers:
    """What a student should find: ids are in the order of the page's list."""

    order: NDArray[np.int64]
    removed_by_top_p: list[int]
    drawn: int
    threshold: float
    ends: NDArray[np.float64]
    shares: NDArray[np.float64]


@pytest.fixture(scope="module")
def model() -> LlamaModel:
    found = refllm.load("tiny-chat")
    assert isinstance(found, LlamaModel)
    return found


def sampled(logits: NDArray[np.float32], tokens: list[int], u: float) -> Answers:
    """The stages of a draw with the default parameters."""
    x = logits.astype(np.float64)  # [V]
    penalty = float(np.float32(1.1))
    for token in set(tokens[-64:]):
        x[token] = x[token] / penalty if x[token] >= 0 else x[token] * penalty
    e = np.exp((x - x.max()) / float(np.float32(0.8)))
    shares = e / e.sum()
    order = np.argsort(-shares, kind="stable")
    top_k = order[:40]
    ends = np.cumsum(shares[top_k])
    n = 1 + int(np.searchsorted(ends, float(np.float32(0.9))))
    threshold = u * float(ends[n - 1])
    drawn = int(np.searchsorted(ends[:n], threshold, side="right"))
    return Answers(order, top_k[n:].tolist(), int(order[drawn]), threshold, ends[:n], shares)


@pytest.fixture(scope="module")
def answers(model: LlamaModel) -> list[Answers]:
    """The answers of each step, up to the last one that is asked about."""
    tokens = model.tokenizer.encode(PROMPT)
    found = []
    for step in range(max(STEPS) + 1):
        seen: dict[str, Any] = {}
        model.forward(tokens, tap=seen.__setitem__)
        found.append(sampled(seen["result_output"][-1], tokens, uniform(SEED, step)))
        tokens.append(found[-1].drawn)
    return found


@pytest.fixture
def sampling(open_page: Any) -> Any:
    """A function that opens the view of sampling and goes to a step, as a student does."""

    def at_step(last: int) -> Any:
        page = open_page("llama file").page
        page.get_by_role("tab", name="Sampling").click()
        for step in range(last):
            page.get_by_text(f"step {step} (of 0 to 54)").wait_for()
            page.get_by_role("button", name="next step").click()
        page.get_by_text(f"step {last} (of 0 to 54)").wait_for()
        return page

    return at_step


def rows(page: Any, table: str) -> list[dict[str, str]]:
    """The rows of a table that is found by its name, by the names of the columns."""
    found = page.get_by_role("table", name=re.compile(table))
    head = found.get_by_role("columnheader").all_inner_texts()
    return [
        dict(zip(head, row.get_by_role("cell").all_inner_texts(), strict=True))
        for row in found.get_by_role("row").all()[1:]
    ]


def test_the_page_has_the_golden_suite_s_stages(sampling: Any) -> None:
    cases = json.loads((PROJECT / "golden" / "sampling" / "cases.json").read_text("utf-8"))["cases"]
    contract = (case for case in cases if case["profile"] == "contract")
    assert STAGES in [[entry["stage"] for entry in case.get("stages", ())] for case in contract]
    items = sampling(0).get_by_role("list", name="Stages").get_by_role("button").all()
    named = [item.inner_text().split()[0].replace("-", "_") for item in items]
    assert named == STAGES


@pytest.mark.parametrize("step", STEPS)
def test_which_token_was_second_best_and_why_it_lost(
    sampling: Any, answers: list[Answers], model: LlamaModel, step: int
) -> None:
    second = rows(sampling(step), "candidates, the most probable first")[1]
    right = answers[step]
    token = int(right.order[1])
    assert second["place"] == "2"
    assert second["token"] == model.tokenizer.piece(token)
    assert second["id"] == str(token)
    assert right.drawn != token
    if token in right.removed_by_top_p:
        assert second["lost by"] == "top-p"
        assert second["why"] == f"top-p: the one before it has {right.ends[0]:.4f}"
        assert right.ends[0] >= 0.9
    else:
        assert second["lost by"] == "the draw"
        low, high = right.ends[:2]
        assert not low <= right.threshold < high
        assert second["why"] == (
            f"u·Σ = {right.threshold:.4f} is outside its part, {low:.4f} … {high:.4f}"
        )


def test_the_two_steps_have_both_reasons(answers: list[Answers]) -> None:
    seconds = [int(answers[step].order[1]) in answers[step].removed_by_top_p for step in STEPS]
    assert seconds == [True, False]


@pytest.mark.parametrize("step", STEPS)
def test_what_was_drawn_and_how_likely_it_was(
    sampling: Any, answers: list[Answers], model: LlamaModel, step: int
) -> None:
    page, right = sampling(step), answers[step]
    place = 1 + right.order.tolist().index(right.drawn)
    piece = model.tokenizer.piece(right.drawn)
    sentence = f"Drawn: {piece} (token {right.drawn}), number {place} of 1536 in the order of"
    assert sentence in page.get_by_role("tabpanel").inner_text()
    [drawn] = [row for row in rows(page, "most probable first") if row["lost by"] == "drawn"]
    assert float(drawn["softmax"]) == pytest.approx(right.shares[right.drawn], abs=5.1e-5)


@pytest.mark.parametrize("step", STEPS)
def test_what_top_p_removed(
    sampling: Any, answers: list[Answers], model: LlamaModel, step: int
) -> None:
    page, removed = sampling(step), answers[step].removed_by_top_p
    button = page.get_by_role("button", name=re.compile(r"^top-p removes"))
    assert len(removed) > 0
    assert f"removes {len(removed)}" in button.inner_text()
    assert "press one to list what it removed" in page.get_by_role("tabpanel").inner_text()
    button.click()
    listed = rows(page, "What top-p removed")
    assert [int(row["id"]) for row in listed] == removed
    pieces = [model.tokenizer.piece(token).replace("\n", "⏎") for token in removed]
    assert [row["token"] for row in listed] == pieces
    reason = re.compile(r"top-p: the \w+ before it (has|have) (0\.9|1\.0)\d+")
    assert all(reason.fullmatch(row["why"]) for row in listed)


def test_which_head_looks_at_the_previous_token(open_page: Any, model: LlamaModel) -> None:
    page = open_page("llama file").page
    count = page.get_by_role("group", name="Tokens").get_by_role("button").count()
    page.get_by_role("tab", name="Tokens").click()
    ids = [int(row["id"]) for row in rows(page, "The tokens in their order")]
    assert len(ids) == count
    seen: dict[str, Any] = {}
    model.forward(ids, tap=seen.__setitem__)
    weights = np.stack([seen[f"kq_soft_max-{i}"] for i in range(4)])  # [L, H, T, T]
    share = np.diagonal(weights, -1, 2, 3).mean(axis=2)  # [L, H]
    layer, head = np.unravel_index(share.argmax(), share.shape)
    page.get_by_role("tab", name="Attention").click()
    page.get_by_text("Looks most at the previous token").wait_for()
    text = page.get_by_role("tabpanel").inner_text()
    percent = f"{100 * share.max():.0f}"
    sentence = (
        f"Looks most at the previous token: layer {layer}, head {head} ({percent} % on average)"
    )
    assert sentence in text
