"""Write the tables of keys into docs/serving.md: `python -m tools.serving_keys`."""

from __future__ import annotations

import re
from pathlib import Path

from refllm.server.pages import keys_in_markdown

PAGE = Path(__file__).parent.parent / "docs" / "serving.md"
TABLES = re.compile(r"(<!-- keys -->\n).*(<!-- end of keys -->\n)", re.DOTALL)


def main() -> None:
    """Put the tables between the page's two marks."""
    page = PAGE.read_text("utf-8")
    written, n = TABLES.subn(lambda marks: f"{marks[1]}\n{keys_in_markdown()}\n{marks[2]}", page)
    assert n == 1, "the page's two marks are missing"
    PAGE.write_text(written, "utf-8")


if __name__ == "__main__":
    main()
