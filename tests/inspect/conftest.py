"""The browser of the tests of the page, and the pages that it opens."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from refllm.engine import LocalEngine
from refllm.inspect.run import Run, run_of
from refllm.interface import InferencingParams
from tests.support.commands import answer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PROMPT = "Once upon a time"
TEXTS = ("A cat sleeps.", "The cat naps.", "Stocks fell on Monday.")
N_TOKENS = 55
SEED = 7
ARGUMENTS = {
    "llama": ("tiny-chat", PROMPT, "--max-tokens", str(N_TOKENS), "--seed", str(SEED)),
    "bert": ("tiny-embed", *TEXTS),
}
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
AXE = "axe-core@4.14.1"


class Opened:
    """A page in the browser; `problems` has what its console and its errors printed."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.address = address
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._listeners: dict[Any, Any] = {
            "console": lambda message: self.problems.append(message.text),
            "pageerror": lambda error: self.problems.append(str(error)),
            "request": lambda request: self.requests.append(request.url),
        }
        for event, listener in self._listeners.items():
            page.on(event, listener)
        page.goto(address)
        page.wait_for_selector("body[data-drawn]")

    def leave(self) -> None:
        """Leave the page, so that another one can be opened in its place."""
        for event, listener in self._listeners.items():
            self.page.remove_listener(event, listener)
        self.page.unroute_all()
        self.page.goto("about:blank")
        self.page.mouse.move(0, 0)

    def after(self, act: Any) -> None:
        """Act, and wait until the page is drawn again."""
        before = self.page.evaluate("document.body.dataset.drawn")
        act()
        self.page.wait_for_function("before => document.body.dataset.drawn !== before", arg=before)

    def show(self, view: str) -> None:
        """Open a view by its tab."""
        self.after(lambda: self.page.click(f"#tab-{view}"))

    def choose(self, token: int) -> None:
        """Choose a token on the strip."""
        self.after(lambda: self.page.click(f"#strip button:nth-child({token + 1})"))

    def rows(self, within: str = "#view") -> list[list[str]]:
        """The cells of the first table within an element."""
        found: list[list[str]] = self.page.eval_on_selector(
            f"{within} table",
            "t => [...t.tBodies[0].rows].map(r => [...r.cells].map(c => c.textContent))",
        )
        return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; a test is skipped where it or the package playwright is missing.

    For one file of tests: until it is closed, an event loop runs in this thread.
    """
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        pytest.skip("chromium is not installed")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield found
        found.close()


class Addresses(dict[str, str]):
    """The addresses of pages by their keys; a page is made when it is first asked for.

    Args:
        arguments: Of `refllm inspect`, by the first word of a key. The second is "live" or "file".
        folder: Where files are written.
        stack: Ends the servers of live pages.
    """

    def __init__(
        self, arguments: Mapping[str, Sequence[str]], folder: Path, stack: ExitStack
    ) -> None:
        super().__init__()
        self._arguments = arguments
        self._folder = folder
        self._stack = stack

    def __missing__(self, key: str) -> str:
        kind, place = key.split()
        if place == "live":
            self[key] = self._stack.enter_context(serving(*self._arguments[kind]))
        else:
            file = self._folder / f"{kind}.html"
            answer("inspect", *self._arguments[kind], "--html", file)
            self[key] = file.as_uri()
        return self[key]


@contextmanager
def serving(*arguments: str) -> Iterator[str]:
    """`refllm inspect` on a free port; yields the address that it prints."""
    command = [sys.executable, "-m", "refllm", "inspect", *arguments, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.fixture(scope="session")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """The addresses of the pages: live ones and files, of a llama and of an encoder."""
    with ExitStack() as stack:
        yield Addresses(ARGUMENTS, tmp_path_factory.mktemp("pages"), stack)


@pytest.fixture(scope="module")
def unused_pages(browser: Browser) -> list[Page]:
    """Pages that no test has at the moment: a new one takes three times the processor time."""
    return []


@pytest.fixture
def open_page(browser: Browser, addresses: Addresses, unused_pages: list[Page]) -> Iterator[Any]:
    """A function that opens a page by its key in `addresses`; nothing may go wrong on it."""
    opened: list[Opened] = []
    with ExitStack() as stack:

        def open_it(key: str, *, width: int = 1280, **options: Any) -> Opened:
            if options:
                context = stack.enter_context(browser.new_context(**options))
                page = context.new_page()
            else:
                page = unused_pages.pop() if unused_pages else browser.new_page()
                stack.callback(unused_pages.append, page)
            page.set_viewport_size({"width": width, "height": 900})
            opened.append(Opened(page, addresses[key]))
            return opened[-1]

        yield open_it
        for each in opened:
            each.leave()
    problems = [problem for each in opened for problem in each.problems]
    outside = [
        url
        for each in opened
        for url in each.requests
        if not url.startswith((each.address, "data:", "blob:"))
    ]
    assert problems == []
    assert outside == []


@pytest.fixture(scope="session")
def told() -> Run:
    """The run that the pages of the llama show."""
    params = InferencingParams(max_tokens=N_TOKENS)
    return run_of(LocalEngine(seed=SEED), "tiny-chat", [PROMPT], params, name="tiny-chat")


@pytest.fixture(scope="session")
def embedded() -> Run:
    """The run that the pages of the encoder show."""
    return run_of(LocalEngine(), "tiny-embed", TEXTS, InferencingParams(), name="tiny-embed")


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program of axe-core, which finds what keeps people from using a page."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("axe")
    subprocess.run(
        ["npm", "pack", "--silent", AXE], cwd=folder, check=True, stdout=subprocess.DEVNULL
    )
    (archive,) = folder.glob("*.tgz")
    shutil.unpack_archive(archive, folder, filter="data")
    return Path(folder, "package", "axe.min.js").read_text("utf-8")
