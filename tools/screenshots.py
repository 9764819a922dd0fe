"""Take the screenshots of the page of `refllm inspect` that docs/inspect.md shows.

    python -m tools.screenshots            all of them, into docs/screenshots/
    python -m tools.screenshots attention  those of a view

Needs Chromium, and the extras `dev` and `inspect`. Each picture is of the live page, and has at
most 60 KB.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from refllm.inspect.notebook import VIEWS

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FOLDER = Path(__file__).parents[1] / "docs" / "screenshots"
MAX_BYTES = 60_000
SIZES = {1280: 900, 390: 844}
HEIGHTS = {"beside": 1500}
"""The views that need a higher window, at 1280 pixels."""
DARK = ("attention", "lens", "block", "beside")
"""The views whose colors are other ones in the dark."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# With this seed the texts part at the fifth draw.
LLAMA = (
    *("tiny-chat", "Once upon a time", "--seed", "12", "--max-tokens", "30"),
    *("--beside", "tiny-chat@int8"),
)
BERT = ("tiny-embed", "A cat sleeps on the sofa.", "The kitten naps.", "Stocks fell on Monday.")
TOKEN = 8


def main(views: list[str]) -> None:
    """Take the screenshots of the views, of all without one."""
    from playwright.sync_api import sync_playwright

    wanted = views or list(VIEWS)
    if unknown := [view for view in wanted if view not in VIEWS]:
        sys.exit(f"unknown view {unknown[0]}; the views are {', '.join(VIEWS)}")
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        sys.exit("chromium is not installed")
    FOLDER.mkdir(exist_ok=True)
    with sync_playwright() as playwright, served(*LLAMA) as llama, served(*BERT) as bert:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        for view in wanted:
            address = bert if view == "embeddings" else llama
            wide = (1280, HEIGHTS.get(view, SIZES[1280]))
            shots = {"1280": (wide, "light"), "390": ((390, SIZES[390]), "light")}
            if view in DARK:
                shots["1280-dark"] = (wide, "dark")
            for name, (size, scheme) in shots.items():
                take(browser, f"{address}#{view}", FOLDER / f"{view}-{name}.webp", size, scheme)
        browser.close()


@contextmanager
def served(*arguments: str) -> Iterator[str]:
    """Serve a page on a free port; yield its address."""
    command = [sys.executable, "-m", "refllm", "inspect", *arguments, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def take(browser: Browser, address: str, path: Path, size: tuple[int, int], scheme: str) -> None:
    """Open the page in a window of a width and a height, and write what is seen."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("body[data-drawn]")
    tokens = page.locator("#strip button")
    if tokens.count() > 2 * TOKEN:  # of the llama's text
        drawn = page.evaluate("document.body.dataset.drawn")
        tokens.nth(TOKEN).click()
        page.wait_for_function("drawn => document.body.dataset.drawn !== drawn", arg=drawn)
        page.mouse.move(0, 0)
    path.write_bytes(compressed(page.screenshot()))
    context.close()
    print(f"{path.name}: {path.stat().st_size} bytes")


def compressed(png: bytes) -> bytes:
    """Return a picture as lossless WebP, of as many colors as fit into `MAX_BYTES`.

    Text of few colors is sharp, and smaller than lossy WebP of a quality at which it can be read.
    """
    from PIL import Image  # matplotlib, of the extra dev, needs it

    picture = Image.open(io.BytesIO(png)).convert("RGB")
    for n_colors in (None, 256, 128, 64, 32, 16):
        few = picture
        if n_colors is not None:
            few = picture.quantize(n_colors, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        data = io.BytesIO()
        few.convert("RGB").save(data, "WEBP", lossless=True, quality=100, method=6)
        if data.tell() <= MAX_BYTES:
            return data.getvalue()
    raise SystemExit(f"a picture cannot be compressed to {MAX_BYTES} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
