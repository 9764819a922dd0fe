"""docs/project/determinism.md has what `tools.rounding_errors` prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tools import rounding_errors

PAGE = (PROJECT / "docs" / "project" / "determinism.md").read_text("utf-8")


@pytest.mark.parametrize("name", ["llama-Q4_1", "bert", "tiny-embed", "tiny-chat-Q4_0"])
def test_the_page_has_the_errors_that_the_tool_measures(name: str, tmp_path: Path) -> None:
    [row] = rounding_errors.rows(tmp_path, None, None, [name])
    assert str(row) in PAGE.splitlines()


def test_the_page_has_the_tool_s_table() -> None:
    assert rounding_errors.HEAD in PAGE
