from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from refllm import InferencingParams, InvalidInput, LlmRuntimeError, LocalEngine, __version__
from refllm.batch import Embedder, Generator
from refllm.batch.local import Progress, Summary, run
from refllm.batch.rows import RowFunction
from refllm.batch.writer import LOCK, MANIFEST, METADATA_KEY, model_sha256
from refllm.interface import NUMERICS_REVISION
from refllm.models.bundled import ROOT
from tests.conftest import HUNG_SECONDS
from tests.support.interrupted import full_disk, needs_kill

WORDS = ["the", "a", "cat", "dog", "house", "tree", "river", "runs", "sleeps", "over", "quickly"]
EMBEDDER = Embedder("tiny-embed")
PART_ROWS = 16


def documents(n: int, seed: int = 1) -> list[str]:
    source = random.Random(seed)
    return [" ".join(source.choices(WORDS, k=source.randint(1, 40))) for _ in range(n)]


@pytest.fixture
def docs(tmp_path: Path) -> str:
    """A file of 100 rows."""
    pq.write_table(pa.table({"n": range(100), "text": documents(100)}), tmp_path / "docs.parquet")
    return str(tmp_path / "docs.parquet")


def run_into(folder: Path, docs: str, function: RowFunction = EMBEDDER, **options: Any) -> Summary:
    return run(function, [docs], folder, **{"part_rows": PART_ROWS, **options})


def parts_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.parquet"))}


def manifest_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
    return content


# --- Results -------------------------------------------------------------------------------------


def test_vectors_of_a_run_are_those_of_the_interface(tmp_path: Path, docs: str) -> None:
    summary = run_into(tmp_path / "out", docs, id_column="n")
    assert summary == Summary(n_rows=100, n_errors=0, n_parts=7, n_new_rows=100)
    table = pq.read_table(tmp_path / "out")
    assert table.column_names == ["id", "embedding", "token_count", "error"]
    assert table["id"].to_pylist() == list(range(100))
    engine = LocalEngine()
    for i, text in enumerate(documents(100)):
        result = engine.generate_embeddings("tiny-embed", [text])
        expected = np.array(result.embeddings[0], np.float32)
        assert np.array(table["embedding"][i].as_py(), np.float32).tobytes() == expected.tobytes()
        assert table["token_count"][i].as_py() == result.usage.prompt_token_count


def test_texts_of_a_run_are_those_of_the_interface(tmp_path: Path) -> None:
    names = ["Lily", "Tom", "The cat", "A dog", None, "Once upon a time", "Lily"]
    rows = pa.table({"name": names, "n": [3, 20, 9, 1, 5, None, 3], "seed": [0, 1, 2, 3, 4, 5, 0]})
    pq.write_table(rows, tmp_path / "prompts.parquet")
    generator = Generator(
        "tiny-chat",
        template="{{ name }} was",
        params=InferencingParams(max_tokens=7),
        row_parameters={"max_tokens": "n", "seed": "seed"},
        at_once=3,
    )
    run_into(tmp_path / "out", str(tmp_path / "prompts.parquet"), generator, part_rows=4)
    table = pq.read_table(tmp_path / "out").to_pylist()
    assert [row["id"].rpartition(":")[2] for row in table] == [str(i) for i in range(7)]
    for name, row, given in zip(names, table, rows.to_pylist(), strict=True):
        if name is None:
            assert row["error"] == "the column 'name' is null"
            assert row["generated_text"] is None
            continue
        params = InferencingParams(max_tokens=given["n"] or 7)
        result = LocalEngine(seed=given["seed"]).infer("tiny-chat", f"{name} was", params)
        assert row["error"] is None
        assert row["generated_text"] == result.text
        assert row["prompt_token_count"] == result.usage.prompt_token_count
        assert row["generated_token_count"] == result.usage.generated_token_count
        assert len(row["generated_token_ids"]) == result.usage.generated_token_count
        assert row["finish_reason"] in ("stop", "length")


def test_neither_parts_windows_threads_nor_the_file_format_change_a_row(
    tmp_path: Path, docs: str
) -> None:
    run_into(tmp_path / "a", docs)
    run_into(tmp_path / "b", docs, Embedder("tiny-embed", threads=1), part_rows=1000)
    rows = pq.read_table(docs).to_pylist()
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_into(tmp_path / "c", str(tmp_path / "docs.jsonl"), part_rows=7)
    first = pq.read_table(tmp_path / "a")
    for other in (tmp_path / "b", tmp_path / "c"):
        table = pq.read_table(other)
        for name in ("embedding", "token_count", "error"):
            assert table[name].combine_chunks().equals(first[name].combine_chunks())


def test_rows_with_errors_and_repeated_ids_stay_in_their_places(tmp_path: Path) -> None:
    table = pa.table({"key": ["a", "a", None, "b"], "text": ["x", None, "y " * 500, "x"]})
    pq.write_table(table, tmp_path / "docs.parquet")
    summary = run_into(tmp_path / "out", str(tmp_path / "docs.parquet"), id_column="key")
    assert (summary.n_rows, summary.n_errors) == (4, 2)
    found = pq.read_table(tmp_path / "out")
    assert found["id"].to_pylist() == ["a", "a", None, "b"]
    assert [error is None for error in found["error"].to_pylist()] == [True, False, False, True]
    assert [part["errors"] for part in manifest_of(tmp_path / "out")["parts"]] == [2]
    assert found["embedding"][0] == found["embedding"][3]


def test_empty_input_gives_a_part_without_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n")
    summary = run_into(tmp_path / "out", str(tmp_path / "a.csv"))
    assert summary == Summary(n_rows=0, n_errors=0, n_parts=1, n_new_rows=0)
    table = pq.read_table(tmp_path / "out")
    assert table.schema.field("embedding").type.list_size == 384
    assert len(table) == 0


def test_metadata_and_manifest_have_what_determines_a_row(tmp_path: Path, docs: str) -> None:
    run_into(tmp_path / "out", docs)
    manifest = manifest_of(tmp_path / "out")
    assert manifest["is_finished"] is True
    assert manifest["numerics_revision"] == NUMERICS_REVISION
    assert manifest["refllm"] == __version__
    assert manifest["model"]["sha256"] == model_sha256(ROOT / "bert" / "tiny-embed.gguf")
    assert manifest["options"]["on_long"] == "error"
    stored = pq.read_schema(tmp_path / "out" / "part-00003.parquet").metadata[METADATA_KEY]
    assert {**manifest, **json.loads(stored)} == manifest


def test_progress_is_reported_after_each_window(tmp_path: Path, docs: str) -> None:
    seen: list[Progress] = []
    run_into(tmp_path / "out", docs, progress=seen.append)
    assert [progress.n_rows for progress in seen] == [16, 32, 48, 64, 80, 96, 100]
    assert {progress.n_all for progress in seen} == {100}
    assert seen[-1].fraction == 1
    tokens = pq.read_table(tmp_path / "out")["token_count"].to_pylist()
    assert seen[-1].n_tokens == sum(tokens)


# --- Resuming ------------------------------------------------------------------------------------


def _run_until_killed(folder: Path, docs: str) -> None:
    run_into(folder, docs)


def _kill_again_and_again(folder: Path, docs: str, *, n_kills: int, seed: int) -> int:
    """Start the run, kill it at a random moment after each new part, and return the kills."""
    source = random.Random(seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["refllm.batch.local", "tests.batch.test_local"])
    finished: dict[str, int] = {}
    n_killed = 0
    for _ in range(n_kills):
        process = context.Process(target=_run_until_killed, args=(folder, docs))
        process.start()
        deadline = time.monotonic() + HUNG_SECONDS
        n_before = len(finished)
        n_more = source.randint(0, 2)
        while process.is_alive() and len(list(folder.glob("*.parquet"))) < n_before + n_more:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.join(source.random() * 0.1)
        if process.exitcode is None:
            process.kill()
            n_killed += 1
        process.join()
        now = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.parquet")}
        listed = manifest_of(folder)["parts"] if (folder / MANIFEST).exists() else []
        # What was finished stays as it was; a part appears before the manifest has it.
        assert {name: now[name] for name in finished} == finished
        assert len(now) - len(listed) in (0, 1)
        for file in folder.glob("*.parquet"):
            pq.read_table(file)
        finished = {part["file"]: now[part["file"]] for part in listed}
    return n_killed


@needs_kill
@pytest.mark.parametrize("n_kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_is_resumed_with_the_same_bytes(tmp_path: Path, n_kills: int) -> None:
    n_rows = 60 * PART_ROWS * n_kills // 10 + 5
    docs = str(tmp_path / "docs.parquet")
    pq.write_table(pa.table({"text": documents(n_rows)}), docs)
    run_into(tmp_path / "whole", docs)
    folder = tmp_path / "killed"
    assert _kill_again_and_again(folder, docs, n_kills=n_kills, seed=n_kills) >= n_kills // 2 + 1
    n_finished = sum(part["rows"] for part in manifest_of(folder)["parts"])
    summary = run_into(folder, docs)
    assert summary.n_rows == n_rows
    assert summary.n_new_rows == n_rows - n_finished
    assert parts_of(folder) == parts_of(tmp_path / "whole")
    assert manifest_of(folder) == manifest_of(tmp_path / "whole")
    assert sorted(file.name for file in folder.iterdir()) == [
        LOCK,
        MANIFEST,
        *parts_of(tmp_path / "whole"),
    ]


def test_an_interrupt_drops_the_part_in_work(tmp_path: Path, docs: str) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.n_rows == 48:
            raise KeyboardInterrupt

    run_into(tmp_path / "whole", docs)
    with pytest.raises(KeyboardInterrupt):
        run_into(tmp_path / "out", docs, progress=interrupt)
    assert len(parts_of(tmp_path / "out")) == 3
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        LOCK,
        MANIFEST,
        *parts_of(tmp_path / "out"),
    }
    assert run_into(tmp_path / "out", docs).n_new_rows == 52
    assert parts_of(tmp_path / "out") == parts_of(tmp_path / "whole")


def test_a_finished_run_computes_nothing_again(tmp_path: Path, docs: str) -> None:
    first = run_into(tmp_path / "out", docs)
    before = parts_of(tmp_path / "out")
    again = run_into(tmp_path / "out", docs)
    assert (again.n_rows, again.n_parts, again.n_new_rows) == (first.n_rows, first.n_parts, 0)
    assert parts_of(tmp_path / "out") == before


def test_a_part_that_was_deleted_or_cut_is_computed_again(tmp_path: Path, docs: str) -> None:
    run_into(tmp_path / "out", docs)
    before = parts_of(tmp_path / "out")
    (tmp_path / "out" / "part-00002.parquet").unlink()
    os.truncate(tmp_path / "out" / "part-00005.parquet", 100)
    assert run_into(tmp_path / "out", docs).n_new_rows == 32
    assert parts_of(tmp_path / "out") == before


def test_input_that_is_changed_during_a_run_ends_it(tmp_path: Path) -> None:
    file = tmp_path / "docs.txt"
    file.write_text("".join(f"{text}\n" for text in documents(300)))

    def append(_progress: Progress) -> None:
        with file.open("a") as stream:
            stream.write("one more\n")

    with pytest.raises(LlmRuntimeError, match=r"docs\.txt was changed while it was read"):
        run_into(tmp_path / "out", str(file), part_rows=50, progress=append)
    assert not manifest_of(tmp_path / "out")["is_finished"]
    with pytest.raises(InvalidInput, match=r"the input .*docs\.txt has changed"):
        run_into(tmp_path / "out", str(file), part_rows=50)


def test_input_may_be_copied_and_a_model_moved(tmp_path: Path, docs: str) -> None:
    run_into(tmp_path / "out", docs)
    shutil.copy(docs, tmp_path / "copy")
    (tmp_path / "copy").replace(docs)
    shutil.copy(ROOT / "bert" / "tiny-embed.gguf", tmp_path / "moved.gguf")
    moved = Embedder(tmp_path / "moved.gguf")
    assert run_into(tmp_path / "out", docs, moved).n_new_rows == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"on_long": "truncate"}, 'options: on_long was "error" and is "truncate"'),
        ({"max_tokens": 64}, "options: max_tokens was null and is 64"),
        ({"numerics": "int8"}, 'numerics was "exact" and is "int8"'),
    ],
)
def test_a_run_with_other_options_is_refused(
    tmp_path: Path, docs: str, change: dict[str, Any], named: str
) -> None:
    run_into(tmp_path / "out", docs)
    before = parts_of(tmp_path / "out")
    with pytest.raises(InvalidInput, match=r"has another run: .*\n.*--force") as caught:
        run_into(tmp_path / "out", docs, Embedder("tiny-embed", **change))
    assert named in str(caught.value)
    with pytest.raises(InvalidInput, match="options: part_rows was 16 and is 8"):
        run_into(tmp_path / "out", docs, part_rows=8)
    with pytest.raises(InvalidInput, match='options: id_column was null and is "n"'):
        run_into(tmp_path / "out", docs, id_column="n")
    assert parts_of(tmp_path / "out") == before


def test_changed_input_and_another_model_are_refused_and_forced(tmp_path: Path, docs: str) -> None:
    run_into(tmp_path / "out", docs)
    model = Generator("tiny-chat", params=InferencingParams(max_tokens=1))
    with pytest.raises(InvalidInput, match='has another run: command was "embed" and is "infer"'):
        run_into(tmp_path / "out", docs, model)
    texts = documents(100)
    texts[50] = texts[50].upper()
    pq.write_table(pa.table({"n": range(100), "text": texts}), docs)
    with pytest.raises(InvalidInput, match=r"the input .*docs.parquet has changed"):
        run_into(tmp_path / "out", docs)
    pq.write_table(pa.table({"n": range(10), "text": texts[:10]}), docs)
    summary = run_into(tmp_path / "out", docs, force=True)
    assert (summary.n_rows, summary.n_new_rows) == (10, 10)
    assert list(parts_of(tmp_path / "out")) == ["part-00000.parquet"]


def test_a_folder_with_other_files_is_refused(tmp_path: Path, docs: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(InvalidInput, match=r"is not empty .*: 'thesis.tex' is there"):
        run_into(tmp_path / "out", docs)
    run_into(tmp_path / "out", docs, force=True)
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_parts_of_another_program_are_kept_and_deleting_ours_is_announced(
    tmp_path: Path, docs: str
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    spark = folder / "part-00000-9f0c2b61-c000.snappy.parquet"
    spark.write_text("kept")
    with pytest.raises(InvalidInput, match="or write beside these files with --force"):
        run_into(folder, docs)
    run_into(folder, docs, force=True)
    assert spark.read_text() == "kept"
    (folder / MANIFEST).unlink()
    (folder / "part-00099.parquet").touch()
    with pytest.raises(InvalidInput, match=r"or delete part-00000\.parquet and all parts with"):
        run_into(folder, docs)
    run_into(folder, docs, force=True)
    assert not (folder / "part-00099.parquet").exists()


def test_a_damaged_manifest_is_named(tmp_path: Path, docs: str) -> None:
    run_into(tmp_path / "out", docs)
    (tmp_path / "out" / MANIFEST).write_text('{"parts"')
    with pytest.raises(InvalidInput, match=f"{MANIFEST} is damaged"):
        run_into(tmp_path / "out", docs)


def test_a_second_run_into_the_folder_is_refused(tmp_path: Path, docs: str) -> None:
    (tmp_path / "out").mkdir()
    with (
        FileLock(tmp_path / "out" / LOCK),
        pytest.raises(InvalidInput, match=r"another run writes into .*out; end it first"),
    ):
        run_into(tmp_path / "out", docs)
    assert run_into(tmp_path / "out", docs).n_rows == 100


# --- Disks ---------------------------------------------------------------------------------------


def test_a_disk_that_is_full_is_named_and_the_run_is_resumed(tmp_path: Path, docs: str) -> None:
    run_into(tmp_path / "whole", docs)
    with ExitStack() as disk:

        def fill(progress: Progress) -> None:
            if progress.n_rows == 32:
                disk.enter_context(full_disk(10_000))

        with pytest.raises(LlmRuntimeError) as caught:
            run_into(tmp_path / "out", docs, progress=fill)
    first, second = str(caught.value).split("\n")
    assert first == f"{tmp_path}/out/part-00002.parquet: cannot be written: File too large"
    assert second.startswith(f"32 rows in 2 parts are finished and stay in {tmp_path}/out; once")
    assert len(parts_of(tmp_path / "out")) == 2
    assert run_into(tmp_path / "out", docs).n_new_rows == 68
    assert parts_of(tmp_path / "out") == parts_of(tmp_path / "whole")


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_computed(
    tmp_path: Path, docs: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LlmRuntimeError, match="file/out: cannot be written: "):
        run_into(tmp_path / "file" / "out", docs)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write into every folder")
def test_a_read_only_folder_is_named_before_anything_is_computed(tmp_path: Path, docs: str) -> None:
    (tmp_path / "out").mkdir(mode=0o555)
    with pytest.raises(LlmRuntimeError, match="out: cannot be written: Permission denied"):
        run_into(tmp_path / "out", docs)
