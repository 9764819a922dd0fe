"""The view "Two runs": its numbers are those of `refllm diff`, and its draws those of both runs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from refllm.engine import LocalEngine
from refllm.errors import InvalidInput
from refllm.inspect import show
from refllm.inspect.beside import Beside, run_beside
from refllm.inspect.document import document_of
from refllm.inspect.run import Run, run_of
from refllm.inspect.stages import explained
from refllm.interface import InferencingParams
from refllm.models.find import default_roots, find_model
from refllm.trace import record
from tests.conftest import PROJECT
from tests.inspect.conftest import Addresses
from tests.support.commands import answer, refllm

PROMPT = "Once upon a time"
SEED = 71  # exact and int8 draw another token at the fourth step
N_TOKENS = 5
PARTED = 3
ARGUMENTS = {
    "llama": (
        *("tiny-chat", PROMPT, "--seed", str(SEED), "--max-tokens", str(N_TOKENS)),
        *("--beside", "tiny-chat@int8"),
    ),
    "bert": ("tiny-embed", "A cat sleeps.", "The cat naps.", "--beside", "tiny-embed@spin-local"),
    "same": ("tiny-chat", PROMPT, "--max-tokens", "2", "--beside", "tiny-chat@spin-local"),
}
SCHEMAS = {
    name: json.loads((PROJECT / "refllm" / path).read_text("utf-8"))
    for name, path in {
        "document": "inspect/document.schema.json",
        "comparison": "trace/comparison.schema.json",
    }.items()
}
# The live page has the same document; it is computed again, in its own process.
PLACES = pytest.mark.parametrize("place", ["file", pytest.param("live", marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """The pages with a second run, in place of those of the other tests."""
    with ExitStack() as stack:
        yield Addresses(ARGUMENTS, tmp_path_factory.mktemp("beside"), stack)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of the first run, by `refllm trace`."""
    file = tmp_path_factory.mktemp("trace") / "a.safetensors"
    answer(
        "trace", "tiny-chat", PROMPT, "--seed", str(SEED), "--steps", str(N_TOKENS), "--to", file
    )
    return file


@pytest.fixture(scope="module")
def printed(trace: Path) -> str:
    """What `refllm diff` prints of that trace and the model in int8."""
    return refllm("diff", trace, "tiny-chat@int8").stdout


@pytest.fixture(scope="module")
def differences(trace: Path) -> dict[str, Any]:
    """The same with --json."""
    found: dict[str, Any] = json.loads(refllm("diff", trace, "tiny-chat@int8", "--json").stdout)
    return found


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    """Both runs, computed without a comparison."""
    params = InferencingParams(max_tokens=N_TOKENS)
    return {
        numerics: run_of(
            LocalEngine(seed=SEED, numerics=numerics), "tiny-chat", [PROMPT], params, name="x"
        )
        for numerics in ("exact", "int8")
    }


def both(spec: str, *texts: str, **options: Any) -> tuple[Run, Beside]:
    """A run of tiny-chat and a second one, without a page."""
    params = InferencingParams(max_tokens=2)
    return run_beside(LocalEngine, "tiny-chat", texts, params, name="x", spec=spec, **options)


@PLACES
def test_the_differences_after_each_layer_are_those_that_refllm_diff_prints(
    open_page: Any, differences: dict[str, Any], place: str
) -> None:
    opened = open_page(f"llama {place}")
    opened.show("beside")
    growth = differences["growth"]
    assert {each["call"] for each in growth} == {0, 1, 2, 3}
    for call in range(4):
        opened.choose(2 if call == 0 else 4 + call)
        expected = [each for each in growth if each["call"] == call]
        rows = opened.rows("#view .split")
        assert [row[0] for row in rows] == [each["name"] for each in expected]
        for row, each in zip(rows, expected, strict=True):
            assert float(row[1]) == pytest.approx(each["share"], rel=5.1e-3)
        titles = opened.page.eval_on_selector_all(
            "#view .split circle title", "all => all.map(e => e.textContent)"
        )
        assert titles == [f"{row[0]}: {row[1]}" for row in rows]


def test_a_larger_difference_lies_higher_on_the_plot(
    open_page: Any, differences: dict[str, Any]
) -> None:
    opened = open_page("llama file")
    opened.show("beside")
    opened.choose(0)
    heights = opened.page.eval_on_selector_all(
        "#view .split circle", "all => all.map(e => -Number(e.getAttribute('cy')))"
    )
    shares = [each["share"] for each in differences["growth"] if each["call"] == 0]
    logarithms = np.log10(shares)
    slope = (max(heights) - min(heights)) / (logarithms.max() - logarithms.min())
    line = slope * (logarithms - logarithms.min()) + min(heights)
    assert heights == pytest.approx(line.tolist(), abs=0.11)  # coordinates have one decimal


@PLACES
def test_the_report_is_what_refllm_diff_prints_and_the_first_value_is_marked(
    open_page: Any, printed: str, differences: dict[str, Any], place: str
) -> None:
    opened = open_page(f"llama {place}")
    opened.show("beside")
    before_bars = printed.split("B − A as a part of A", maxsplit=1)[0]
    lines = [line.strip() for line in before_bars.splitlines()[2:] if line]
    shown = opened.page.locator("#view .report p").all_inner_texts()
    assert [line.strip() for line in shown] == lines
    first = differences["first"]
    assert f"First difference: {first['name']}, layer 0, the prompt" in lines
    opened.choose(1)
    assert opened.page.text_content("#view .plot text.first >> nth=0") == f"first: {first['name']}"
    assert opened.page.inner_text("#view tr.chosen td") == "l_out-0"
    opened.after(lambda: opened.page.click("[data-name=first]"))
    assert opened.page.get_attribute("#tab-block", "aria-selected") == "true"
    pressed = opened.page.get_attribute("#view .stages [aria-pressed=true]", "data-name")
    assert pressed == f"0/{first['name']}"
    chosen = opened.page.get_attribute("#strip [aria-pressed=true]", "title")
    assert chosen.startswith(f"{first['token']}: ")


@PLACES
def test_the_token_at_which_the_texts_part_is_marked(
    open_page: Any, runs: dict[str, Run], place: str
) -> None:
    opened = open_page(f"llama {place}")
    opened.show("beside")
    for label, run in zip("AB", runs.values(), strict=True):
        pieces = [run.model.tokenizer.piece(i) for i in run.token_ids[0]]
        shown = opened.page.locator(f"[data-run={label}] .piece").all_inner_texts()
        assert shown == pieces
        n_given = run.n_prompt[0]
        marked = opened.page.locator(f"[data-run={label}] mark").all_inner_texts()
        assert marked == pieces[n_given + PARTED :]
        assert opened.page.inner_text(f"[data-run={label}] .parted") == pieces[n_given + PARTED]
    assert "The first 8 tokens are the same; token 8 is the first" in opened.page.inner_text(
        "#view"
    )


@PLACES
def test_the_candidates_where_the_texts_part_are_those_of_both_draws(
    open_page: Any, runs: dict[str, Run], place: str
) -> None:
    opened = open_page(f"llama {place}")
    opened.show("beside")
    assert f"The candidates at step {PARTED}" in opened.page.inner_text("#view")
    rows = {row[1]: row for row in opened.rows("#view .pinned")}
    assert runs["exact"].draws[PARTED].step.token != runs["int8"].draws[PARTED].step.token
    seen: set[str] = set()
    for column, run in ((2, runs["exact"]), (6, runs["int8"])):
        step = explained(run.draws[PARTED], run.model.tokenizer, n_candidates=40)
        for candidate in step["candidates"]:
            row = rows[str(candidate["token"])]
            seen.add(row[1])
            assert row[column] == str(candidate["place"])
            assert float(row[column + 1]) == pytest.approx(candidate["logit"], abs=5.1e-5)
            softmax = candidate["values"][2]
            assert float(row[column + 2]) == pytest.approx(softmax, rel=5.1e-3, abs=5.1e-5)
            fate = candidate["removed_by"]
            assert row[column + 3] == (
                "drawn"
                if fate is None
                else "the draw"
                if fate == "draw"
                else fate.replace("_", "-")
            )
        drawn = f"{run.model.tokenizer.piece(step['token'])} (u·Σ = {step['threshold']:.6f}"
        assert drawn in opened.page.inner_text("#view")
    assert seen == rows.keys()


def test_a_drawn_token_below_the_list_has_its_place_among_all_tokens(
    open_page: Any, tmp_path: Path
) -> None:
    params = InferencingParams(max_tokens=1, temperature=8.0, top_k=0, top_p=1.0)
    run = run_of(LocalEngine(), "tiny-chat", [PROMPT], params, name="x")
    draw = run.draws[0]
    place = 1 + int((draw.logits > draw.logits[draw.step.token]).sum())  # it has no penalty
    assert place > 41  # as many are listed at most
    assert draw.step.token not in run.token_ids[0][: run.n_prompt[0]]
    opened = open_page("same file")
    file = tmp_path / "hot.html"
    shown = show("tiny-chat", PROMPT, params=params, beside="tiny-chat@int8")
    file.write_text(shown.page, "utf-8")
    opened.requests.clear()
    opened.address = file.as_uri()
    opened.page.goto(opened.address)
    opened.page.wait_for_selector("body[data-drawn]")
    opened.show("sampling")
    assert f"number {place} of 1536 in the order" in opened.page.inner_text("#view")
    token = str(draw.step.token)
    [row] = [row for row in opened.rows() if row[3] == token]
    assert row[0] == str(place)
    opened.show("beside")
    [row] = [row for row in opened.rows("#view .pinned") if row[1] == token]
    assert row[2] == str(place)


def test_a_token_after_the_texts_parted_has_no_difference_and_a_way_back(open_page: Any) -> None:
    opened = open_page("llama file")
    opened.show("beside")
    opened.choose(9)
    assert "the runs were computed alike up to token 7" in opened.page.inner_text("#view")
    opened.after(lambda: opened.page.click("[data-name=compared]"))
    assert opened.rows("#view .split")[0][0] == "l_out-0"


def test_each_text_of_an_encoder_has_its_differences(open_page: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    answer("trace", "tiny-embed", "A cat sleeps.", "The cat naps.", "--to", file)
    growth = json.loads(refllm("diff", file, "tiny-embed@spin-local", "--json").stdout)["growth"]
    opened = open_page("bert file")
    opened.show("beside")
    for text in (0, 1):
        if text:
            opened.after(lambda: opened.page.click("#texts button:nth-child(2)"))
        expected = [each for each in growth if each["call"] == text]
        assert len(expected) == 3
        for row, each in zip(opened.rows("#view .split"), expected, strict=True):
            assert row[0] == each["name"]
            assert float(row[1]) == pytest.approx(each["share"], rel=5.1e-3)


def test_equal_runs_are_called_equal(open_page: Any) -> None:
    opened = open_page("same file")
    opened.show("beside")
    text = opened.page.inner_text("#view")
    assert "No difference" in text
    assert "Both have the same 7 tokens." in text
    assert "the output of every layer is equal in every bit" in text
    assert opened.page.query_selector("#view .plot") is None


@pytest.mark.parametrize(
    ("n_drawn", "beside", "sentence"),
    [
        (0, "tiny-chat", "Both have the same token."),
        (1, "tiny-chat@int8", "The first token is the same; token 1 is the first that differs."),
    ],
)
def test_one_token_in_common_is_one_token(
    open_page: Any, tmp_path: Path, n_drawn: int, beside: str, sentence: str
) -> None:
    opened = open_page("same file")
    file = tmp_path / "empty.html"
    params = InferencingParams(max_tokens=n_drawn, temperature=8.0, top_k=0, top_p=1.0)
    file.write_text(show("tiny-chat", "", params=params, beside=beside).page, "utf-8")
    opened.requests.clear()
    opened.address = file.as_uri()
    opened.page.goto(opened.address)
    opened.page.wait_for_selector("body[data-drawn]")
    opened.show("beside")
    assert sentence in opened.page.inner_text("#view")


def test_a_page_without_a_second_run_has_no_tab_for_it(open_page: Any, tmp_path: Path) -> None:
    opened = open_page("same file")
    assert opened.page.locator("#tab-beside").count() == 1
    file = tmp_path / "alone.html"
    file.write_text(show("tiny-chat", "Once", max_tokens=1).page, "utf-8")
    opened.requests.clear()
    opened.address = file.as_uri()
    opened.page.goto(opened.address)
    opened.page.wait_for_selector("body[data-drawn]")
    assert opened.page.locator("#tab-tokens").count() == 1
    assert opened.page.locator("#tab-beside").count() == 0


# What is run


def test_a_trace_s_text_and_parameters_are_run(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    engine = LocalEngine(seed=5, profile="llama.cpp", numerics="int8")
    params = InferencingParams(max_tokens=3, top_k=7)
    record("tiny-chat", "A dog", to=file, params=params, engine=engine)
    run, second = both(str(file))
    assert run.texts == ("A dog",)
    assert (run.engine.seed, run.engine.profile, run.params) == (5, "llama.cpp", params)
    assert run.engine.numerics == "exact"
    assert [each.name for each in second.comparison.settings] == ["numerics"]
    assert second.comparison.first is not None
    assert second.comparison.first.name == "Qcur-0"
    run, _ = both(str(file), profile="contract")
    assert run.engine.profile == "contract"


def test_a_trace_without_text_is_run_by_its_token_ids(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    record("tiny-chat", [1, 1088, 1089], to=file, params=InferencingParams(max_tokens=1))
    run, second = both(str(file))
    assert run.token_ids[0][:3] == (1, 1088, 1089)
    assert not second.comparison.is_different


def test_a_trace_without_logits_has_no_candidates(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    engine = LocalEngine(profile="llama.cpp")
    record("tiny-chat", PROMPT, to=file, engine=engine, only=["l_out-*"])
    run, second = both(str(file), profile="contract")
    assert second.step == 0
    assert second.draw is None
    document = document_of(run, beside=second)
    assert document["beside"]["draws"]["b"] is None
    assert document["beside"]["draws"]["a"]["step"] == 0


@pytest.mark.parametrize("logits", ["not finite", "of few tokens", "without an axis", "as drawn"])
def test_logits_of_another_program_that_cannot_be_drawn_from_have_no_candidates(
    trace: Path, tmp_path: Path, logits: str
) -> None:
    arrays = load_file(trace)
    with safe_open(trace, "np") as file:
        metadata = json.loads(file.metadata()["refllm.trace"])
    metadata["params"]["min_p"] = 0.1  # the interface has no such parameter
    metadata["draws"] = []
    text = metadata["texts"][0]
    text["token_ids"][text["n_given"] + 1] = 7  # the texts part at the second draw
    for name in arrays:
        if name.endswith("result_output"):
            if logits == "not finite":
                arrays[name] = np.full_like(arrays[name], np.nan)
            elif logits == "of few tokens":
                arrays[name] = arrays[name][:, :100].copy()
            elif logits == "without an axis":
                arrays[name] = arrays[name].ravel()
    other = tmp_path / "other.safetensors"
    save_file(arrays, other, {"refllm.trace": json.dumps(metadata)})
    run, second = both(str(other))
    assert second.step == 1
    assert second.draw is None
    assert (second.comparison.first is None) == (logits == "as drawn")
    assert document_of(run, beside=second)["beside"]["draws"]["b"] is None


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ((PROMPT,), "leave out TEXT"),
        (("--seed", "3", "--top-p", "0.5"), "leave out --seed, --top-p"),
    ],
)
def test_what_a_trace_has_cannot_be_asked_for_beside_it(
    trace: Path, tmp_path: Path, options: tuple[str, ...], named: str
) -> None:
    html = tmp_path / "x.html"
    result = refllm("inspect", "tiny-chat", *options, "--beside", trace, "--html", html)
    assert result.exit_code == 2
    assert named in result.stderr
    assert not html.exists()
    with pytest.raises(InvalidInput, match="leave out TEXT"):
        both(str(trace), "Once")


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("tiny-chat@fast", "behind @ is one of"),
        ("nothing.safetensors", "no such file"),
        ("nowhere", "nowhere"),
        ("", "'' is not a model's name"),
        ("@int8", "'' is not a model's name"),
        ("tiny-embed", "tiny-chat is of a llama and tiny-embed of a bert"),
    ],
)
def test_an_unusable_second_run_is_refused_in_words(tmp_path: Path, spec: str, named: str) -> None:
    html = tmp_path / "x.html"
    result = refllm("inspect", "tiny-chat", "--beside", spec, "--html", html)
    assert result.exit_code in (1, 2)
    assert named in result.stderr
    assert "Traceback" not in result.stderr
    assert not html.exists()


def test_the_document_fits_both_schemas(differences: dict[str, Any]) -> None:
    params = InferencingParams(max_tokens=N_TOKENS)
    run, second = run_beside(
        LocalEngine,
        "tiny-chat",
        [PROMPT],
        params,
        name="tiny-chat",
        spec="tiny-chat@int8",
        seed=SEED,
    )
    document = json.loads(json.dumps(document_of(run, beside=second), allow_nan=False))
    jsonschema.validate(document, SCHEMAS["document"])
    comparison = document["beside"]["comparison"]
    jsonschema.validate(comparison, SCHEMAS["comparison"])
    assert {**comparison, "a": ""} == {**differences, "a": ""}
    report_roles = {line["role"] for line in document["beside"]["report"]}
    assert report_roles <= {"head", "bad", "good", "plain"}


# For everyone


def test_the_view_is_reached_and_read_by_keyboard(open_page: Any) -> None:
    opened = open_page("llama file")
    page = opened.page
    page.focus("#tab-tokens")
    opened.after(lambda: page.keyboard.press("End"))
    assert page.evaluate("document.activeElement.textContent") == "Two runs"
    seen = []
    for _ in range(8):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.textContent.slice(0, 40)"))
    assert any(text.startswith("See Qcur-0") for text in seen)
    assert any("candidates, in the order of A" in text for text in seen)
    before = opened.rows("#view .split")
    page.focus("#strip button[aria-pressed=true]")
    opened.after(lambda: page.keyboard.press("ArrowLeft"))
    assert opened.rows("#view .split") != before


@pytest.mark.parametrize("width", [390, 820, 1600])
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_the_view_is_not_wider_than_the_window(open_page: Any, kind: str, width: int) -> None:
    opened = open_page(f"{kind} file", width=width)
    opened.show("beside")
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    sizes = opened.page.eval_on_selector_all(
        "#view .plot text",
        "all => all.map(e => e.getBoundingClientRect()).map(r => [r.left, r.right, r.height])",
    )
    assert all(left >= 0 and right <= width and height >= 11 for left, right, height in sizes)


def test_the_long_path_of_a_model_is_not_wider_than_the_window(
    open_page: Any, tmp_path: Path
) -> None:
    folder = tmp_path / ("a-long-name-without-a-space-" * 4)
    folder.mkdir()
    path = shutil.copy(find_model("tiny-chat", default_roots()), folder / "tiny-chat.gguf")
    opened = open_page("same file", width=320)
    file = tmp_path / "long.html"
    file.write_text(show(path, "Once", max_tokens=1, beside=path).page, "utf-8")
    opened.requests.clear()
    opened.address = file.as_uri()
    opened.page.goto(opened.address)
    opened.page.wait_for_selector("body[data-drawn]")
    opened.show("beside")
    assert str(path) in opened.page.inner_text("h1")
    assert str(path) in opened.page.inner_text("#view")
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 320


@pytest.mark.network
@pytest.mark.parametrize("kind", ["llama live", "bert file", "same file"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_on_the_view(
    open_page: Any, axe: str, kind: str, scheme: str, width: int
) -> None:
    opened = open_page(kind, color_scheme=scheme, width=width)
    opened.show("beside")
    opened.page.evaluate(axe)
    found = opened.page.evaluate("axe.run()")["violations"]
    lines = [
        f"{each['id']}: {node['html']:.120} {node['failureSummary']:.300}"
        for each in found
        for node in each["nodes"][:2]
    ]
    assert lines == []


def test_modules_of_the_page_define_no_name_twice() -> None:
    names: list[str] = []
    for path in (PROJECT / "refllm" / "inspect" / "page").glob("*.js"):
        defined = r"^(?:export )?(?:async )?(?:function|const|let|class) (\w+)"
        names += re.findall(defined, path.read_text("utf-8"), re.MULTILINE)
    assert len(names) > 60
    assert sorted(names) == sorted(set(names))  # the file has them in one script
