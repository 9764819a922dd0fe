"""`refllm.inspect.show`: the page in a real notebook, built by MyST-NB, in the browser."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from refllm.engine import LocalEngine
from refllm.errors import InvalidInput
from refllm.inspect import show
from refllm.inspect.files import single_file
from refllm.inspect.notebook import VIEWS
from refllm.inspect.run import run_of
from refllm.interface import InferencingParams
from refllm.trace import record
from tests.conftest import PROJECT

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PROMPT = "Once upon a time"
NOTEBOOK = f"""---
file_format: mystnb
kernelspec: {{name: python3}}
---

# A run

```{{code-cell}} ipython3
import refllm.inspect

refllm.inspect.show("tiny-chat", "{PROMPT}", view="block", token=3, layer=1, value="Vcur-1",
                    max_tokens=2)
```
"""
CONFIGURATION = """
extensions = ["myst_nb"]
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_output_stderr = "remove"
"""


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of a site: a notebook that was executed when the site was built."""
    pytest.importorskip("myst_nb", reason="pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "conf.py").write_text(CONFIGURATION, "utf-8")
    (folder / "index.md").write_text(NOTEBOOK, "utf-8")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", str(folder), str(folder / "site")]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "site" / "index.html"


@pytest.mark.slow
def test_a_notebook_shows_the_page_below_the_cell(browser: Browser, notebook: Path) -> None:
    page = browser.new_page()
    problems: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(notebook.as_uri())
    page.on("request", lambda request: requests.append(request.url))
    page.wait_for_load_state("networkidle")
    requests.clear()
    frame = page.frame_locator(".cell_output iframe")
    page.locator(".cell_output iframe").scroll_into_view_if_needed()
    frame.locator("body[data-drawn]").wait_for()
    assert frame.get_by_role("tab", selected=True).inner_text() == "Inside a block"
    assert frame.locator("#strip [aria-pressed=true]").get_attribute("title") == "3: token 261"
    texts = frame.locator("#view .values span").all_inner_texts()
    run = run_of(LocalEngine(), "tiny-chat", [PROMPT], InferencingParams(max_tokens=2), name="x")
    shown = np.array([text.partition(": ")[2] for text in texts], np.float32)
    assert np.array_equal(shown, run.array("0/Vcur-1")[3].ravel())
    for view in ("sampling", "attention", "lens", "quantization", "tokens"):
        frame.locator(f"#tab-{view}").click()
        frame.locator(f"#tab-{view}[aria-selected=true]").wait_for()
        assert frame.locator("#view [role=alert]").count() == 0
    frame.locator("#tab-tokens").press("ArrowRight")
    frame.locator("#tab-sampling[aria-selected=true]").wait_for()
    assert problems == []
    assert [url for url in requests if not url.startswith(("data:", "about:"))] == []
    page.close()


@pytest.mark.slow
def test_the_page_in_a_notebook_can_not_reach_the_notebook(
    browser: Browser, notebook: Path
) -> None:
    page = browser.new_page()
    page.goto(notebook.as_uri())
    page.locator(".cell_output iframe").scroll_into_view_if_needed()
    page.frame_locator(".cell_output iframe").locator("body[data-drawn]").wait_for()
    frame = page.frames[1]
    assert frame.evaluate("self.origin") == "null"
    reach = "() => { try { return parent.document.title } catch (e) { return e.name } }"
    assert frame.evaluate(reach) == "SecurityError"
    page.close()


@pytest.mark.slow
def test_numbers_of_a_page_in_a_notebook_can_be_downloaded(
    browser: Browser, notebook: Path, tmp_path: Path
) -> None:
    page = browser.new_page()
    page.goto(notebook.as_uri())
    page.locator(".cell_output iframe").scroll_into_view_if_needed()
    frame = page.frame_locator(".cell_output iframe")
    frame.locator("body[data-drawn]").wait_for()
    with page.expect_download() as download:
        frame.locator("[data-name=download]").click()
    download.value.save_as(tmp_path / "value.npy")
    run = run_of(LocalEngine(), "tiny-chat", [PROMPT], InferencingParams(max_tokens=2), name="x")
    assert np.array_equal(np.load(tmp_path / "value.npy"), run.array("0/Vcur-1"))
    page.close()


@pytest.mark.network
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_the_page_in_a_notebook(
    browser: Browser, notebook: Path, axe: str, scheme: str
) -> None:
    context = browser.new_context(color_scheme="dark" if scheme == "dark" else "light")
    page = context.new_page()
    page.goto(notebook.as_uri())
    page.locator(".cell_output iframe").scroll_into_view_if_needed()
    page.frame_locator(".cell_output iframe").locator("body[data-drawn]").wait_for()
    frame = page.frames[1]
    frame.evaluate(axe)
    assert [each["id"] for each in frame.evaluate("axe.run()")["violations"]] == []
    assert page.locator(".cell_output iframe").get_attribute("title")
    context.close()


def test_the_frame_has_the_page_in_ascii_and_nothing_else() -> None:
    shown = show("tiny-chat", 'a "quoted" </iframe> é', max_tokens=1, height=300)
    frame = shown._repr_html_()
    assert frame.isascii()
    found = re.fullmatch(r'<iframe srcdoc="([^"<>]*)" ([^<>]*)></iframe>', frame)
    assert found is not None
    assert html.unescape(found[1]) == shown.page
    attributes = dict(re.findall(r'([\w-]+)="([^"]*)"', found[2]))
    assert attributes["sandbox"] == "allow-scripts allow-downloads"
    assert attributes["height"] == "300"
    assert attributes["title"] == "Tokens of tiny-chat, by refllm inspect"


def test_the_page_in_a_notebook_needs_no_extra() -> None:
    missing = ("starlette", "uvicorn", "jinja2", "fastapi", "IPython", "matplotlib")
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({missing!r}))\n"
        "import refllm.inspect\n"
        "shown = refllm.inspect.show('tiny-chat', 'Once', max_tokens=1, beside='tiny-chat@int8')\n"
        "print(len(shown.page))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100_000


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"view": "nothing"}, "unknown view 'nothing'; use one of tokens, sampling"),
        ({"view": "beside"}, "needs a second run"),
        ({"view": "embeddings"}, "tiny-chat has no view 'embeddings'"),
        ({"token": 9}, "token must be from 0 to 2, got 9"),
        ({"token": -1}, "token must be from 0 to 2, got -1"),
        ({"layer": 4}, "layer must be from 0 to 3, got 4"),
        ({"head": 8}, "head must be from 0 to 7, got 8"),
        ({"view": "block", "value": "Qcur-9"}, "has no value 'Qcur-9'"),
        ({"profile": "x"}, "profile"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_words(options: dict[str, object], problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        show("tiny-chat", "Once", **{"max_tokens": 1, **options})  # type: ignore[arg-type]


def test_texts_in_a_list_are_refused_in_words() -> None:
    with pytest.raises(InvalidInput, match="a text must be str, got list; give each as"):
        show("tiny-embed", ["A cat.", "A dog."])  # type: ignore[arg-type]


def test_what_a_trace_has_cannot_be_asked_for_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    record("tiny-chat", "Once", to=file, engine=LocalEngine(seed=3, profile="llama.cpp"))
    for options in ({"seed": 1}, {"max_tokens": 3}, {"params": InferencingParams()}):
        named = next(iter(options))
        with pytest.raises(InvalidInput, match=f"is a trace, which has its own {named}"):
            show("tiny-chat", beside=str(file), **options)
    for trace in (file, str(file)):
        shown = show("tiny-chat", beside=trace, view="beside")
        assert shown.title == "Two runs of tiny-chat, by refllm inspect"


def test_each_view_that_can_be_asked_for_is_one_of_the_page() -> None:
    program = (PROJECT / "refllm" / "inspect" / "page" / "main.js").read_text("utf-8")
    titles = re.findall(r'^  \["(\w+)", "([\w ]+)", ', program, re.MULTILINE)
    assert dict(titles) == dict(VIEWS)


def test_a_place_cannot_end_the_element_that_has_it() -> None:
    document: dict[str, dict[str, str]] = {"arrays": {}}
    page = single_file(document, at={"value": '"><script>'})
    assert '<body data-value="&quot;&gt;&lt;script&gt;">' in page
