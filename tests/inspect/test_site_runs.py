"""Pages of runs on the site: the build makes them, and a browser opens them in their frame."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import PROJECT

pytest.importorskip("sphinx", reason="pip install -e '.[docs]'")
pytest.importorskip("myst_parser", reason="pip install -e '.[docs]'")

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CONFIGURATION = f"""
import sys
sys.path.insert(0, {str(PROJECT / "docs" / "_ext")!r})
extensions = ["myst_parser", "runs"]
"""
PAGE = """# A page

```{run} two-numerics
:model: tiny-chat
:view: attention
:head: 3
:max-tokens: 1
:height: 500

Once upon
```
"""


def build(folder: Path, page: str, *, builder: str = "html") -> subprocess.CompletedProcess[str]:
    """Build a site of one page, in a folder one level down."""
    (folder / "inner").mkdir(parents=True)
    (folder / "conf.py").write_text(CONFIGURATION, "utf-8")
    (folder / "index.md").write_text("# Site\n\n```{toctree}\ninner/page\n```\n", "utf-8")
    (folder / "inner" / "page.md").write_text(page, "utf-8")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", builder, str(folder)]
    return subprocess.run(
        [*command, str(folder / "site")], cwd=PROJECT, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_the_build_makes_the_page_and_shows_it_in_a_frame(browser: Browser, tmp_path: Path) -> None:
    done = build(tmp_path, PAGE)
    assert done.returncode == 0, done.stderr
    made = tmp_path / "site" / "runs" / "two-numerics.html"
    assert 100_000 < made.stat().st_size <= 3_000_000
    page = browser.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto((tmp_path / "site" / "inner" / "page.html").as_uri())
    page.locator("iframe").scroll_into_view_if_needed()
    frame = page.frame_locator("iframe")
    frame.get_by_role("tab", name="Attention", selected=True).wait_for()
    frame.get_by_role("heading", name="Layer 0, head 3").wait_for()
    assert page.locator("iframe").get_attribute("height") == "500"
    link = page.get_by_role("link", name="Attention of tiny-chat, by refllm inspect")
    link.click()
    page.wait_for_selector("body[data-drawn]")
    assert page.url.startswith(made.as_uri())
    assert problems == []
    page.close()


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (":model: tiny-chat", ":model: nowhere", "nowhere"),
        (":view: attention", ":view: nothing", "unknown view 'nothing'"),
        (":max-tokens: 1", ":max-tokens: 300", "of at most 3000000"),
    ],
)
@pytest.mark.slow
def test_a_page_that_cannot_be_made_fails_the_build_in_words(
    tmp_path: Path, old: str, new: str, problem: str
) -> None:
    done = build(tmp_path, PAGE.replace(old, new))
    assert done.returncode != 0
    assert problem in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_builder_without_html_leaves_the_page_out(tmp_path: Path) -> None:
    done = build(tmp_path, PAGE, builder="text")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "site" / "runs").exists()
    assert (tmp_path / "site" / "inner" / "page.txt").read_text("utf-8").startswith("A page")
