"""The memory of a run does not depend on the size of its input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

MIB = 2**20
PROGRAM = """
import json, re, sys
from pathlib import Path
from refllm.batch.local import run
from refllm.batch.rows import Embedder

def resident(name):
    return int(re.search(rf"{name}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

embedder = Embedder("tiny-embed", on_long=sys.argv[3])
embedder({"text": ["x"] * 100})
before = resident("VmRSS")
summary = run(embedder, [sys.argv[1]], Path(sys.argv[2]))
print(json.dumps([summary.n_rows, resident("VmHWM") - before]))
"""
# What a process holds beside its windows may differ by this much from one run to another.
NOISE = 64 * MIB

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads the peak of memory as Linux has it"
)


def peak_of(docs: Path, *, on_long: str = "error") -> tuple[int, int]:
    """Return the number of rows of a run, and its peak of memory beyond the loaded model."""
    arguments = [str(docs), str(docs.with_suffix("")), on_long]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    n_rows, peak = json.loads(done.stdout)
    return n_rows, peak


def write_rows(
    file: Path,
    n_rows: int,
    text: str,
    *,
    n_groups: int = 1,
    others: int = 0,
    page_rows: int = 1024,
) -> Path:
    """Write rows of one text, different in its first characters, so that no page repeats one."""
    rows_of_group = n_rows // n_groups
    schema = pa.schema([("text", pa.string()), *((f"c{i}", pa.float64()) for i in range(others))])
    # A page is decompressed as a whole, and pyarrow puts `write_batch_size` rows into one.
    with pq.ParquetWriter(file, schema, use_dictionary=False, write_batch_size=page_rows) as writer:
        for group in range(n_groups):
            texts = [f"{group} {i} {text}" for i in range(rows_of_group)]
            columns = [pa.array([0.5] * rows_of_group)] * others
            table = pa.Table.from_arrays([pa.array(texts), *columns], schema=schema)
            writer.write_table(table)
    return file


@needs_proc
@pytest.mark.slow
def test_ten_times_the_rows_take_no_more_memory(tmp_path: Path) -> None:
    # Windows are full in both, so that nothing but the number of rows differs.
    fewer = peak_of(write_rows(tmp_path / "fewer.parquet", 6144, "a cat"))
    more = peak_of(write_rows(tmp_path / "more.parquet", 61440, "a cat", n_groups=10))
    assert (fewer[0], more[0]) == (6144, 61440)
    assert more[1] < fewer[1] + NOISE


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("on_long", ["error", "truncate"])
def test_a_row_group_of_long_texts_is_not_read_whole(tmp_path: Path, on_long: str) -> None:
    text = "a cat sat on the mat " * 25_000  # half a megabyte
    docs = write_rows(tmp_path / "docs.parquet", 1200, text, page_rows=8)
    assert pq.read_metadata(docs).num_row_groups == 1
    n_rows, peak = peak_of(docs, on_long=on_long)
    assert n_rows == 1200
    assert peak < 300 * MIB  # of 600 MiB


@needs_proc
@pytest.mark.slow
def test_columns_that_are_not_needed_take_no_memory(tmp_path: Path) -> None:
    docs = write_rows(tmp_path / "docs.parquet", 20_000, "cat", others=1000)  # 160 MB
    n_rows, peak = peak_of(docs)
    assert n_rows == 20_000
    assert peak < 250 * MIB
