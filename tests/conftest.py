"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("REFLLM_TEST_DATA", PROJECT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of public files that this project did not make."""
    if not DATA.is_dir():
        pytest.skip(f"no test data at {DATA}; set REFLLM_TEST_DATA")
    return DATA


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The vectors that this project publishes."""
    return PROJECT / "golden"
