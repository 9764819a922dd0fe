"""Hostile inputs of every kind, and the page that says how many there were."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import HUNG_SECONDS, PROJECT
from tools.attack.page import PAGE, page_with_table


@pytest.mark.slow
def test_twenty_thousand_hostile_inputs_end_as_they_may() -> None:
    command = [sys.executable, "-m", "tools.attack", "--inputs", "20000", "--jobs", "2"]
    process = subprocess.run(
        command, cwd=PROJECT, capture_output=True, text=True, timeout=HUNG_SECONDS, check=False
    )
    assert process.returncode == 0, process.stdout + process.stderr


def test_the_page_has_the_table_of_the_recorded_counts() -> None:
    page = PAGE.read_text("utf-8")
    assert page_with_table(page) == page
