"""Loading: its progress, its refusals, and the memory it needs."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from refllm.api import InvalidInput
from refllm.checkpoints.mapped_file import map_file, release
from refllm.models.load import load, load_path
from tests.support.model_files import tiny_bert_folder, tiny_llama_folder, tiny_llama_gguf


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("folders")
    return {
        "GGUF": tiny,
        "tied": tiny_llama_gguf(folder / "tied.gguf", tied=True),
        "safetensors": tiny_llama_folder(folder / "llama"),
        "BERT": tiny_bert_folder(folder / "bert"),
    }


@pytest.mark.parametrize("kind", ["GGUF", "tied", "safetensors", "BERT"])
def test_progress_counts_bytes_up_to_all_of_them(kind: str, models: dict[str, Path]) -> None:
    seen: list[tuple[int, int]] = []
    load_path(models[kind], progress=lambda done, total: seen.append((done, total)))
    totals = {total for _, total in seen}
    assert len(totals) == 1
    assert seen[-1] == (max(totals), max(totals))
    assert all(before <= after for (before, _), (after, _) in pairwise(seen))
    assert len(seen) > 2


def test_unknown_numerics_are_refused(tiny: Path) -> None:
    for loads in (load, load_path):
        with pytest.raises(InvalidInput, match="numerics must be one of exact, int8; got 'fast'"):
            loads(tiny, numerics="fast")


# Its peak before and after a model is loaded, in a process of its own; the tiny model before it
# brings in whatever every model needs.
PEAK = """
import json, resource, sys
from pathlib import Path
from refllm.models.load import load_path
load_path(Path(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = load_path(Path(sys.argv[2]))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps((after - before) * (1 if sys.platform == "darwin" else 1024)))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell the peak this way")
@pytest.mark.parametrize("tied", [False, True])
def test_loading_needs_the_memory_of_the_file(tiny: Path, tmp_path: Path, tied: bool) -> None:
    shape = {"n_layers": 3, "n_embd": 1024, "n_ff": 4096}
    heads = {"n_heads": 16, "n_kv_heads": 16, "head_dim": 64}
    path = tiny_llama_gguf(tmp_path / "large.gguf", tied=tied, **shape, **heads)  # type: ignore[arg-type]
    n_bytes = path.stat().st_size
    assert n_bytes > 200e6
    output = subprocess.check_output([sys.executable, "-c", PEAK, tiny, path])
    assert json.loads(output) < 1.15 * n_bytes


class TestRelease:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "numbers"
        np.arange(10_000, dtype=np.int64).tofile(path)
        return path

    def test_released_bytes_are_read_again(self, file: Path) -> None:
        numbers = map_file(file).view(np.int64)
        release(numbers[1000:9000])
        assert np.array_equal(numbers, np.arange(10_000))

    def test_changes_that_are_in_memory_only_are_kept(self, file: Path) -> None:
        numbers = np.memmap(file, np.int64, mode="c")
        numbers[:] = 7
        release(numbers[1000:9000])
        assert np.array_equal(numbers, np.full(10_000, 7))

    def test_ordinary_arrays_are_left_alone(self) -> None:
        numbers = np.full(10_000, 7)
        release(numbers[1000:9000])
        assert np.array_equal(numbers, np.full(10_000, 7))
