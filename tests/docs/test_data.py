"""The public files that tests compare with: what a skipped test names, and what the page lists."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from tests.conftest import PROJECT, PUBLIC_FILES, handed_cases, public_data

PAGE = (PROJECT / "tests" / "DATA.md").read_text("utf-8")
SHA256 = dict(re.findall(r"^\| `(\S+)` \|.*\| `([0-9a-f]{64})` \|$", PAGE, re.M))


def test_the_page_lists_every_file() -> None:
    assert tuple(SHA256) == PUBLIC_FILES


@pytest.mark.parametrize("path", PUBLIC_FILES)
def test_a_file_is_the_one_that_the_page_lists(path: str, data_dir: Path) -> None:
    assert hashlib.sha256((data_dir / path).read_bytes()).hexdigest() == SHA256[path]


def test_without_the_files_a_skip_names_them_and_the_page(tmp_path: Path) -> None:
    with pytest.raises(pytest.skip.Exception) as skip:
        public_data(tmp_path)
    assert f"{len(PUBLIC_FILES)} public files such as {PUBLIC_FILES[0]}" in str(skip.value)
    assert "tests/DATA.md" in str(skip.value)
    assert str(tmp_path) not in str(skip.value)


def test_cases_that_are_not_published_are_skipped_without_a_folder_to_look_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.conftest.DATA", tmp_path)
    with pytest.raises(pytest.skip.Exception) as skip:
        handed_cases("tokens")
    assert str(skip.value) == (
        "the cases of tokens.json were handed to this project and are not published"
    )
