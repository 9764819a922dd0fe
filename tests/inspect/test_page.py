"""The page in a browser: its numbers are the run's, and it is used by mouse and by keyboard."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refllm.checkpoints.open import open_weights
from refllm.inspect.run import Run
from refllm.inspect.stages import explained
from refllm.models.load import LlamaModel
from tests.conftest import PROJECT

LLAMA_VIEWS = ("tokens", "sampling", "attention", "lens", "block", "quantization")
BERT_VIEWS = ("tokens", "attention", "lens", "block", "quantization", "embeddings")
VIEWS = {"llama": LLAMA_VIEWS, "bert": BERT_VIEWS}
BOTH = pytest.mark.parametrize("place", ["live", "file"])
KINDS = pytest.mark.parametrize("kind", VIEWS)


def shown(x: float) -> str:
    """A number as a table writes it."""
    if x == 0:
        return "0"
    if 1e-3 <= abs(x) < 1e5:
        return f"{x:.4f}"
    digits, _, exponent = f"{x:.2e}".partition("e")
    return f"{digits}e{int(exponent):+d}"


def near(text: str, x: float) -> bool:
    """Whether a number's text is that of `x`, but for a tie that JavaScript rounds otherwise."""
    return text == shown(x) or math.isclose(float(text), x, rel_tol=1e-2, abs_tol=5.1e-5)


@KINDS
@BOTH
def test_every_view_opens_without_an_error_and_without_a_request_to_elsewhere(
    open_page: Any, kind: str, place: str
) -> None:
    opened = open_page(f"{kind} {place}")
    for view in VIEWS[kind]:
        opened.show(view)
        assert opened.page.get_attribute(f"#tab-{view}", "aria-selected") == "true"
        assert len(opened.page.inner_text("#view")) > 100
        assert opened.page.query_selector("#view .problem") is None
    if place == "file":
        assert opened.requests == [opened.address]


@BOTH
def test_the_tokens_are_the_tokenizer_s(open_page: Any, told: Run, place: str) -> None:
    opened = open_page(f"llama {place}")
    tokenizer = told.model.tokenizer
    rows = opened.rows()
    assert len(rows) == len(told.token_ids[0]) == 60
    for i, (row, token_id) in enumerate(zip(rows, told.token_ids[0], strict=True)):
        data = tokenizer.token_bytes(token_id)
        assert row[:2] == [str(i), str(token_id)]
        assert row[2] == tokenizer.piece(token_id).replace("\n", "⏎")
        assert bytes.fromhex(row[4]) == data
        assert (row[5] == "special") == (data == b"")
        assert row[6] == ("given" if i < 5 else "drawn")


@BOTH
def test_a_token_that_is_chosen_stays_chosen_in_every_view(open_page: Any, place: str) -> None:
    opened = open_page(f"llama {place}")
    opened.choose(8)
    assert opened.page.inner_text("#view tr.chosen td") == "8"
    opened.show("sampling")
    assert "step 3 (of 0 to 54)" in opened.page.inner_text("#view")
    opened.show("attention")
    assert opened.page.inner_text("#head .readout").startswith("query 8 ")
    opened.show("lens")
    assert "After 8 " in opened.page.inner_text("#view caption")
    opened.show("block")
    assert opened.page.inner_text("#view .readout").startswith("token 8 ")


# The X-ray of a draw


@BOTH
def test_the_candidates_of_step_3_have_the_numbers_of_the_draw(
    open_page: Any, told: Run, place: str
) -> None:
    opened = open_page(f"llama {place}")
    opened.choose(8)
    opened.show("sampling")
    step = explained(told.draws[3], told.model.tokenizer, n_candidates=40)
    rows = opened.rows("#draw")
    assert len(rows) == len(step["candidates"])
    for row, candidate in zip(rows, step["candidates"], strict=True):
        assert row[1] == candidate["piece"].replace("\n", "⏎")
        fate = {None: "drawn", "draw": "the draw"}.get(
            candidate["removed_by"], str(candidate["removed_by"]).replace("_", "-")
        )
        assert row[2] == fate
        assert near(row[4], candidate["logit"])
        for text, value in zip(row[5:10], candidate["values"], strict=True):
            assert (text == "") == (value is None)
            assert value is None or near(text, value)
        assert row[10] == candidate["why"]
    arrow = opened.page.eval_on_selector("#draw .arrow", "e => parseFloat(e.style.left)")
    assert arrow == pytest.approx(100 * step["u"], abs=1e-3)
    drawn = opened.page.eval_on_selector(
        "#draw .part.drawn", "e => [parseFloat(e.style.left), parseFloat(e.style.width)]"
    )
    assert drawn[0] <= arrow <= drawn[0] + drawn[1]


@pytest.mark.parametrize(
    ("slider", "value"),
    [
        ("temperature", 0.3),
        ("temperature", 0),
        ("top_k", 2),
        ("top_p", 0.25),
        ("repeat_penalty", 1.8),
        ("repeat_penalty_last_n_token_count", 0),
    ],
)
def test_a_slider_draws_the_step_again(
    open_page: Any, told: Run, slider: str, value: float
) -> None:
    opened = open_page("llama live")
    opened.choose(9)
    opened.show("sampling")
    with opened.page.expect_response("**/step"):
        opened.page.fill(f"[data-name={slider}]", str(value))
    opened.page.wait_for_selector("#draw .problem")
    draw = told.draws[4]
    changes: dict[str, Any] = {slider: value}
    params = replace(draw.params, **changes)
    step = explained(
        draw.again(params, seed=7, profile="contract"), told.model.tokenizer, n_candidates=40
    )
    assert opened.page.inner_text("#draw [data-name=drawn]") == step["piece"]
    for row, candidate in zip(opened.rows("#draw"), step["candidates"], strict=True):
        values = row[5 : 5 + len(step["stages"])]
        assert row[3] == str(candidate["token"])
        for text, number in zip(values, candidate["values"], strict=True):
            assert (text == "") == (number is None)
            assert number is None or near(text, number)


@pytest.mark.parametrize("profile", ["contract", "llama.cpp"])
def test_the_stages_of_a_profile_are_in_the_golden_suite_s_order(
    open_page: Any, profile: str
) -> None:
    cases = json.loads((PROJECT / "golden" / "sampling" / "cases.json").read_text("utf-8"))["cases"]
    expected = next(
        [entry["stage"] for entry in case["stages"]]
        for case in cases
        if case["profile"] == profile and len(case.get("stages", ())) > 2
    )
    opened = open_page("llama live")
    opened.show("sampling")
    with opened.page.expect_response("**/step"):
        opened.page.fill("[data-name=seed]", "8")
        opened.page.select_option("[data-name=profile]", profile)
    opened.page.wait_for_function(
        "n => document.querySelectorAll('#draw .stages b').length === n", arg=len(expected)
    )
    names = opened.page.eval_on_selector_all(
        "#draw .stages b", "all => all.map(e => e.textContent)"
    )
    assert [name.replace("-", "_") for name in names] == expected


def test_another_seed_moves_u_and_an_unusable_one_is_refused_in_words(
    open_page: Any, told: Run
) -> None:
    opened = open_page("llama live")
    opened.choose(8)
    opened.show("sampling")
    opened.page.fill("[data-name=seed]", "123")
    again = told.draws[3].again(told.draws[3].params, seed=123, profile="contract")
    opened.page.wait_for_selector(f"#draw .note:text-is('u = {again.step.u:.6f}')")
    opened.page.fill("[data-name=seed]", "x")
    refusal = opened.page.wait_for_selector("#draw [role=alert]").inner_text()
    assert refusal == "seed must be a whole number, got 'x'"
    opened.problems[:] = [each for each in opened.problems if "status of 400" not in each]
    opened.after(lambda: opened.page.click("text=As it was drawn"))
    original = told.draws[3].step
    assert f"u = {original.u:.6f}" in opened.page.inner_text("#draw")


def test_a_limit_of_tokens_before_the_step_is_told(open_page: Any) -> None:
    opened = open_page("llama live")
    opened.choose(9)
    opened.show("sampling")
    opened.page.fill("[data-name=max_tokens]", "4")
    told = opened.page.wait_for_selector("text=With max tokens 4 the text ends before this step.")
    assert told.is_visible()


# Attention and layers


@KINDS
@BOTH
def test_the_head_that_looks_at_the_previous_token_is_named_and_its_weights_are_the_tap_s(
    open_page: Any, request: pytest.FixtureRequest, kind: str, place: str
) -> None:
    run: Run = request.getfixturevalue({"llama": "told", "bert": "embedded"}[kind])
    n_layers = run.model.config.n_layers
    weights = np.stack([run.array(f"0/kq_soft_max-{i}") for i in range(n_layers)])  # [L, H, T, T]
    previous = np.diagonal(weights, -1, 2, 3).mean(axis=2)  # [L, H]
    layer, head = (int(i) for i in np.unravel_index(previous.argmax(), previous.shape))
    opened = open_page(f"{kind} {place}")
    opened.show("attention")
    button = opened.page.locator("[data-name=most-previous]")
    assert button.inner_text() == f"layer {layer}, head {head}"
    opened.after(button.click)
    canvas = opened.page.locator("#head canvas")
    n = weights.shape[2]
    box = canvas.bounding_box()
    for query, key in ((3, 2), (5, 1), (n - 1, n - 1)):
        x, y = box["width"] * (key + 0.5) / n, box["height"] * (query + 0.5) / n
        canvas.hover(position={"x": x, "y": y})
        text = opened.page.inner_text("#head .readout")
        assert text.startswith(f"query {query} ")
        assert f"→ key {key} " in text
        exact = float(weights[layer, head, query, key])
        rounding = 2**-11 * exact + 2**-25 if (kind, place) == ("llama", "file") else 5e-9 * exact
        assert abs(float(text.rpartition(": ")[2]) - exact) <= rounding


def test_the_arrow_keys_move_over_a_head(open_page: Any) -> None:
    opened = open_page("llama live")
    opened.show("attention")
    opened.page.focus("#head canvas")
    before = opened.page.inner_text("#head .readout")
    assert before.startswith("query 5 ")
    opened.page.keyboard.press("ArrowDown")
    opened.page.keyboard.press("Home")
    text = opened.page.inner_text("#head .readout")
    assert text.startswith("query 6 ")
    assert "→ key 0 “<s>”" in text
    assert "query 6 " in opened.page.inner_text("#head caption")


@BOTH
def test_the_last_layer_of_the_lens_is_the_network_s_softmax(
    open_page: Any, told: Run, place: str
) -> None:
    assert isinstance(told.model, LlamaModel)
    logits = told.model.forward(told.token_ids[0])[8].astype(np.float64)
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    opened = open_page(f"llama {place}")
    opened.choose(8)
    opened.show("lens")
    rows = opened.rows()
    assert [row[0] for row in rows] == ["embedding", *(f"layer {i}" for i in range(4))]
    best = np.argsort(-shares, kind="stable")[:5]
    for text, token_id in zip(rows[-1][1:6], best.tolist(), strict=True):
        piece, _, probability = text.rpartition(" ")
        assert piece == told.model.tokenizer.piece(token_id)
        assert abs(float(probability) - shares[token_id]) <= 0.00051
    following = told.token_ids[0][9]
    assert rows[-1][6] == f"number {1 + int((shares > shares[following]).sum())}"
    assert near(rows[-1][7], float(shares[following]))


# Inside a block


@pytest.mark.parametrize(
    "name", ["0/attn_norm-2", "0/Qcur-2", "0/Qcur-2#2", "0/ffn_swiglu-2", "0/l_out-2"]
)
def test_a_value_s_numbers_on_the_live_page_are_the_network_s_to_the_last_bit(
    open_page: Any, told: Run, name: str, tmp_path: Path
) -> None:
    opened = open_page("llama live")
    opened.choose(8)
    opened.show("block")
    opened.after(lambda: opened.page.select_option("[data-name=layer]", "2"))
    opened.after(lambda: opened.page.click(f"[data-name='{name}']"))
    texts = opened.page.eval_on_selector_all(
        "#view .values span", "all => all.map(e => e.textContent)"
    )
    expected = told.array(name)
    shown_row = np.array([text.partition(": ")[2] for text in texts], np.float32)
    assert np.array_equal(shown_row, expected[8].ravel())
    with opened.page.expect_download() as download:
        opened.page.click("[data-name=download]")
    download.value.save_as(tmp_path / "value.npy")
    assert np.array_equal(np.load(tmp_path / "value.npy"), expected)


def test_the_numbers_can_be_copied(open_page: Any, told: Run) -> None:
    opened = open_page("llama live", permissions=["clipboard-read", "clipboard-write"])
    opened.show("block")
    opened.after(lambda: opened.page.click("[data-name='0/Kcur-0']"))
    opened.page.click("[data-name=copy]")
    opened.page.wait_for_selector("text=copied")
    copied = opened.page.evaluate("navigator.clipboard.readText()")
    lines = [line.split("\t") for line in copied.split("\n")]
    numbers = np.array(lines, np.float32).reshape(60, 2, 32)
    assert np.array_equal(numbers, told.array("0/Kcur-0"))


def test_the_file_says_that_its_numbers_are_rounded(open_page: Any, told: Run) -> None:
    opened = open_page("llama file")
    opened.choose(8)
    opened.show("block")
    opened.after(lambda: opened.page.click("[data-name='0/l_out-0']"))
    assert "rounded to float16 in this file" in opened.page.inner_text("#view")
    texts = opened.page.eval_on_selector_all(
        "#view .values span", "all => all.map(e => e.textContent)"
    )
    shown_row = np.array([text.partition(": ")[2] for text in texts], np.float32)
    rounded = told.array("0/l_out-0")[8].astype(np.float16).astype(np.float32)
    assert np.array_equal(shown_row, rounded)


def test_a_value_stays_chosen_in_another_layer_and_in_another_text(open_page: Any) -> None:
    pressed = "#view .stages button[aria-pressed=true]"
    opened = open_page("llama live")
    opened.show("block")
    opened.after(lambda: opened.page.click("[data-name='0/Qcur-0#2']"))
    opened.after(lambda: opened.page.select_option("[data-name=layer]", "2"))
    assert opened.page.get_attribute(pressed, "data-name") == "0/Qcur-2#2"
    opened = open_page("bert live")
    opened.show("block")
    opened.after(lambda: opened.page.click("[data-name='0/ffn_gelu-0']"))
    opened.after(lambda: opened.page.click("#texts button:nth-child(2)"))
    assert opened.page.get_attribute(pressed, "data-name") == "1/ffn_gelu-0"


def test_a_value_whose_request_failed_is_asked_for_again(open_page: Any) -> None:
    opened = open_page("llama live")
    opened.show("block")
    opened.page.route("**/array?*", lambda route: route.abort())
    opened.after(lambda: opened.page.click("[data-name='0/ffn_out-0']"))
    assert "This cannot be shown" in opened.page.inner_text("#view [role=alert]")
    opened.page.unroute("**/array?*")
    opened.problems[:] = [each for each in opened.problems if "ERR_FAILED" not in each]
    opened.show("block")
    assert opened.page.query_selector("#view [role=alert]") is None
    assert opened.page.query_selector("#view .values span") is not None


# Quantization and embeddings


def test_after_a_failed_request_the_document_s_own_place_is_shown(open_page: Any) -> None:
    opened = open_page("llama live")
    opened.show("quantization")
    opened.page.route("**/quantization?*", lambda route: route.abort())
    opened.page.fill("[data-name=row]", "9")
    opened.after(lambda: opened.page.keyboard.press("Enter"))
    assert "This cannot be shown" in opened.page.inner_text("#view [role=alert]")
    opened.problems[:] = [each for each in opened.problems if "ERR_FAILED" not in each]
    opened.show("quantization")
    assert "this is row 0 from column 0 on" in opened.page.inner_text("#view")


def test_the_error_names_the_rows_that_it_is_of_and_the_types_that_are_left_out(
    open_page: Any,
) -> None:
    opened = open_page("llama live")
    opened.show("quantization")

    def few_rows(route: Any) -> None:
        answer = route.fetch()
        left_out = [{"type": "F16", "reason": "it ends at 65504"}]
        changed = {**answer.json(), "n_measured_rows": 1, "left_out": left_out, "types": []}
        route.fulfill(response=answer, json=changed)

    assert "over 64 rows of the matrix" in opened.page.inner_text("#view")
    opened.page.route("**/quantization?*", few_rows)
    opened.page.fill("[data-name=row]", "9")
    opened.after(lambda: opened.page.keyboard.press("Enter"))
    text = opened.page.inner_text("#view")
    assert "over 1 row of the matrix" in text
    assert "F16 is left out: it ends at 65504." in text


def test_the_bytes_of_any_place_are_the_file_s(open_page: Any, told: Run) -> None:
    tensor = open_weights(told.model.path).tensors["blk.1.ffn_down.weight"]
    opened = open_page("llama live")
    opened.show("quantization")
    for name, value in (("row", "9"), ("column", "40")):
        if name == "row":
            opened.after(
                lambda: opened.page.select_option("[data-name=matrix]", "blk.1.ffn_down.weight")
            )
        opened.page.fill(f"[data-name={name}]", value)
        opened.after(lambda: opened.page.keyboard.press("Enter"))
    texts = opened.page.eval_on_selector_all("[data-byte]", "all => all.map(e => e.textContent)")
    assert bytes.fromhex("".join(texts)) == tensor.data[9, 34:68].tobytes()
    numbers = opened.page.eval_on_selector_all("[data-value]", "all => all.map(e => e.textContent)")
    values = np.array([text.partition(": ")[2] for text in numbers], np.float32)
    assert np.array_equal(values, tensor.array()[9, 32:64])
    opened.page.focus("[data-byte='2']")
    assert opened.page.inner_text("#view .readout").endswith("of qs: its bits change number 0")
    opened.page.focus("[data-value='5']")
    assert "from byte " in opened.page.inner_text("#view .readout")
    assert opened.page.inner_text("#view .readout").endswith(" 7")


@BOTH
def test_the_cosines_are_those_of_the_engine_s_vectors(
    open_page: Any, embedded: Run, place: str
) -> None:
    texts = list(embedded.texts)
    vectors = np.array(embedded.engine.generate_embeddings("tiny-embed", texts).embeddings)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    opened = open_page(f"bert {place}")
    opened.show("embeddings")
    rows = opened.rows()
    for row, expected in zip(rows, vectors @ vectors.T, strict=True):
        assert [float(cell) for cell in row[1:]] == pytest.approx(expected.tolist(), abs=6e-5)
    opened.after(lambda: opened.page.click("#texts button:nth-child(3)"))
    n = len(embedded.token_ids[2])
    weights = opened.page.eval_on_selector_all(
        "#view table >> nth=1 >> tbody td:nth-child(2)", "all => all.map(e => e.textContent)"
    )
    assert len(weights) == n
    assert all(near(weight, 1 / n) for weight in weights)


# For everyone


def test_the_views_and_the_tokens_are_reached_by_keyboard(open_page: Any) -> None:
    opened = open_page("llama live")
    focused = "document.activeElement.textContent"
    opened.page.focus("#tab-tokens")
    seen = ["Tokens"]
    for _ in LLAMA_VIEWS[1:]:
        opened.after(lambda: opened.page.keyboard.press("ArrowRight"))
        seen.append(opened.page.evaluate(focused))
    assert seen == ["Tokens", "Sampling", "Attention", "Layers", "Inside a block", "Quantization"]
    opened.after(lambda: opened.page.keyboard.press("Home"))
    assert opened.page.evaluate(focused) == "Tokens"
    opened.page.focus("#strip button[aria-pressed=true]")
    opened.after(lambda: opened.page.keyboard.press("ArrowRight"))
    assert opened.page.inner_text("#view tr.chosen td") == "6"
    opened.after(lambda: opened.page.keyboard.press("End"))
    assert opened.page.inner_text("#view tr.chosen td") == "59"


@KINDS
@pytest.mark.parametrize("width", [390, 820, 1600])
def test_no_view_is_wider_than_the_window(open_page: Any, kind: str, width: int) -> None:
    opened = open_page(f"{kind} live", width=width)
    for view in VIEWS[kind]:
        opened.show(view)
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width, view


@pytest.mark.network
@KINDS
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_that_keeps_people_from_using_a_view(
    open_page: Any, axe: str, kind: str, scheme: str, width: int
) -> None:
    opened = open_page(f"{kind} live", color_scheme=scheme, width=width)
    for view in VIEWS[kind]:
        opened.show(view)
        opened.page.evaluate(axe)
        found = opened.page.evaluate("axe.run()")["violations"]
        lines = [
            f"{view}: {each['id']}: {node['html']:.120} {node['failureSummary']:.300}"
            for each in found
            for node in each["nodes"][:2]
        ]
        assert lines == []
