from __future__ import annotations

import gzip
import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from refllm import InvalidInput, LlmRuntimeError
from refllm.batch import Embedder
from refllm.batch.columns import NotText
from refllm.batch.local import open_input
from refllm.batch.reader import (
    Window,
    columns_in,
    default_column,
    find_files,
    fingerprint,
)

TEXTS = ["one", None, 'a "quoted", text\nof two lines', "", "é", "six"]
NUMBERS = [3, 1, 3, 7, 9, 11]


def windows(
    *inputs: Path | str,
    column: str = "text",
    id_column: str | None = None,
    part_rows: int = 100,
    done: set[int] | None = None,
) -> list[Window]:
    files = find_files([str(each) for each in inputs])
    rows = open_input(
        Embedder("tiny-embed", column=column), files, id_column=id_column, part_rows=part_rows
    )
    return list(rows.windows((done or set()).__contains__))


def texts(*inputs: Path | str, **options: Any) -> list[object]:
    return [text for window in windows(*inputs, **options) for text in window.columns["text"]]


def ids(*inputs: Path | str, **options: Any) -> list[object]:
    return [each for window in windows(*inputs, **options) for each in window.ids]


def table() -> pa.Table:
    return pa.table({"n": NUMBERS, "text": TEXTS, "other": [[1.5] * 1000] * 6})


def write_parquet(file: Path) -> None:
    pq.write_table(table(), file, row_group_size=2)


def write_arrow_file(file: Path) -> None:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table().schema) as writer:
        writer.write_table(table(), max_chunksize=4)


def write_arrow_stream(file: Path) -> None:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table().schema) as writer:
        writer.write_table(table(), max_chunksize=4)


def write_feather(file: Path) -> None:
    pyarrow.feather.write_feather(table(), str(file))


def write_json(file: Path) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in table().to_pylist()), "utf-8")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.parquet", write_parquet),
        ("a.arrow", write_arrow_file),
        ("a.arrows", write_arrow_stream),
        ("a.feather", write_feather),
        ("a.jsonl", write_json),
    ],
)
def test_each_format_gives_its_rows_in_order(
    tmp_path: Path, name: str, write: Callable[[Path], None]
) -> None:
    write(tmp_path / name)
    assert texts(tmp_path / name) == TEXTS
    assert ids(tmp_path / name) == [f"{(tmp_path / name).as_posix()}:{i}" for i in range(6)]
    assert ids(tmp_path / name, id_column="n") == NUMBERS


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_of_text_has_texts_only_and_empty_ones_for_nulls(
    tmp_path: Path, separator: str
) -> None:
    file = tmp_path / ("a.tsv" if separator == "\t" else "a.csv")
    quoted = [(text or "").replace('"', '""') for text in TEXTS]
    lines = [f'{n}{separator}"{text}"\r\n' for n, text in zip(NUMBERS, quoted, strict=True)]
    file.write_text(f"\ufeffn{separator}text\r\n" + "".join(lines), "utf-8", newline="")
    assert texts(file) == [text or "" for text in TEXTS]
    assert ids(file, id_column="n") == ["3", "1", "3", "7", "9", "11"]


def test_plain_text_has_a_row_on_each_line(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("one\r\n\nthree\u2028still\ffour".encode())
    assert texts(file) == ["one", "", "three\u2028still\ffour"]


@pytest.mark.parametrize("compression", ["gz", "zst", "bz2"])
@pytest.mark.parametrize("ending", ["jsonl", "csv", "txt"])
def test_files_of_text_may_be_compressed(tmp_path: Path, compression: str, ending: str) -> None:
    content = {"jsonl": '{"text": "one"}\n', "csv": "text\none\n", "txt": "one\n"}[ending]
    file = tmp_path / f"a.{ending}.{compression}"
    with pa.output_stream(str(file), compression="detect") as stream:
        stream.write(content.encode())
    assert texts(file) == ["one"]


def test_a_file_of_several_gzip_members_is_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.txt.gz"
    file.write_bytes(gzip.compress(b"one\n") + gzip.compress(b"two\n"))
    assert texts(file) == ["one", "two"]


def test_only_needed_columns_of_parquet_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(table(), file, compression="none")
    before = texts(file)
    data = bytearray(file.read_bytes())
    other = pq.read_metadata(file).row_group(0).column(2)
    start = other.dictionary_page_offset or other.data_page_offset
    data[start : start + other.total_compressed_size] = bytes(other.total_compressed_size)
    file.write_bytes(data)
    with pytest.raises(OSError, match=r"."):
        pq.read_table(file)
    assert texts(file) == before


# --- Windows and parts ---------------------------------------------------------------------------


def test_windows_never_cross_parts_and_parts_that_are_done_are_left_out(tmp_path: Path) -> None:
    for name, rows in (("a.parquet", range(7)), ("b.parquet", range(7, 12))):
        column = [f"text {i}" for i in rows]
        pq.write_table(pa.table({"text": column}), tmp_path / name, row_group_size=3)
    (tmp_path / "c.txt").write_text("".join(f"text {i}\n" for i in range(12, 17)))
    found = windows(tmp_path, part_rows=5)
    assert [(w.part, len(w.ids), w.is_last) for w in found] == [
        *((part, 5, True) for part in range(3)),
        (3, 2, True),
    ]
    rest = windows(tmp_path, part_rows=5, done={0, 2})
    assert [w.part for w in rest] == [1, 3]
    assert [rest[0].ids, rest[1].ids] == [found[1].ids, found[3].ids]
    assert [rest[0].columns, rest[1].columns] == [found[1].columns, found[3].columns]


def test_long_texts_make_short_windows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["x" * 2**20] * 40}), tmp_path / "a.parquet")
    assert [len(window.ids) for window in windows(tmp_path)] == [8] * 5


def test_many_rows_make_windows_of_2048(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x\n" * 5000)
    sizes = [len(window.ids) for window in windows(tmp_path, part_rows=10_000)]
    assert sizes == [2048, 2048, 904]


# --- Rows that cannot be read --------------------------------------------------------------------


def test_a_line_that_cannot_be_read_is_one_row(tmp_path: Path) -> None:
    lines = [b'{"text": "one"}', b'{"text": ', b"[1]", b'{"id": 4}', b'{"text": "\xff"}', b"", b"2"]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    found = texts(tmp_path)
    assert found[0] == "one"
    assert found[3] is None
    reasons = [text.reason for text in found if isinstance(text, NotText)]
    assert [reason[:24] for reason in reasons] == [
        "in a line that is not JSON: "[:24],
        "in a line that is no JSON object"[:24],
        "in a line that is not JSON: "[:24],
        "in a line that is no JSON object"[:24],
    ]
    assert len(found) == 6


def test_a_row_with_too_many_fields_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("n,text\n1,one\n2,two,too\n3,three\n")
    one, two, three = texts(tmp_path)
    assert (one, three) == ("one", "three")
    assert isinstance(two, NotText)
    assert two.reason == "in a row of 3 fields, and the header has 2"
    assert ids(tmp_path, id_column="n") == ["1", None, "3"]


def test_bytes_that_are_not_utf8_cost_their_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("n,text\n1,é\n2,é\xff\n".encode("latin-1"))
    for found in texts(tmp_path):
        assert isinstance(found, NotText)
    (tmp_path / "a.txt").write_bytes(b"\xc3\xa9x\xff\none\n")
    first, second = texts(tmp_path / "a.txt")
    assert isinstance(first, NotText)
    assert first.reason == "not UTF-8: byte 0xFF at index 3"
    assert second == "one"


# --- Input that is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("*.parquet", "no file matches .*parquet"),
        ("absent", "there is no file, folder or match at .*absent"),
        ("empty", "empty has no file of rows\nnames of such files end in .parquet"),
        ("a.bin", "a.bin: the format of this file is unknown .* by --format"),
    ],
)
def test_input_without_rows_is_named(tmp_path: Path, given: str, named: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.bin").touch()
    with pytest.raises(InvalidInput, match=named):
        find_files([str(tmp_path / given)])


def test_folders_patterns_and_repeated_files_give_each_file_once(tmp_path: Path) -> None:
    for name in ("b.txt", "a.csv", "sub/c.jsonl.gz", ".hidden.txt", "_x.txt", "out/p.parquet"):
        file = tmp_path / "in" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    folder = tmp_path / "in"
    found = find_files([str(folder), str(folder / "*.txt")], outside=folder / "out")
    names = [Path(file.name).relative_to(folder).as_posix() for file in found]
    # The pattern matches _x.txt, which a folder leaves out.
    assert names == ["a.csv", "b.txt", "sub/c.jsonl.gz", "_x.txt"]
    assert [file.format for file in found] == ["csv", "text", "jsonl", "text"]
    assert find_files([str(folder / "b.txt")], kind="csv")[0].format == "csv"


def test_a_relative_and_an_absolute_path_give_a_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").touch()
    monkeypatch.chdir(tmp_path)
    assert [file.name for file in find_files(["a.txt", str(tmp_path / "a.txt"), "."])] == ["a.txt"]


@pytest.mark.skipif(os.name == "nt", reason="names on Windows have no colon")
def test_a_name_may_have_a_colon_spaces_and_percent_signs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "at:10%20 h.parquet"
    write_parquet(Path("plain.parquet"))
    Path("plain.parquet").rename(name)
    assert ids(name) == [f"{name}:{i}" for i in range(6)]


@pytest.mark.parametrize("given", ["", "*.parquet"])
def test_input_that_is_only_in_the_folder_to_write_is_named(tmp_path: Path, given: str) -> None:
    (tmp_path / "a.parquet").touch()
    with pytest.raises(InvalidInput, match=r"are in .*, the folder to write; name another by --to"):
        find_files([str(tmp_path / given)], outside=tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_instead_of_read_twice(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(InvalidInput, match=r"a\.txt is a pipe or a device"):
        find_files([str(tmp_path / "a.txt")])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_the_name_of_a_file_need_not_be_utf8(tmp_path: Path) -> None:
    file = Path(os.fsdecode(os.fsencode(tmp_path / "a") + b"\xff.txt"))
    file.write_text("one\n")
    assert ids(file) == [f"{tmp_path.as_posix()}/a\\xff.txt:0"]


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet")
    with pytest.raises(
        InvalidInput, match=r"a.parquet has no column 'body'; its columns are 'n', 'text', 'other'"
    ):
        windows(tmp_path, column="body")
    with pytest.raises(InvalidInput, match=r"has no column 'key'"):
        windows(tmp_path, id_column="key")


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [("a.jsonl", '{"n": 1, "text": "x"}\n', "int64"), ("a.parquet", None, "int64")],
)
def test_a_column_of_the_wrong_type_is_named(
    tmp_path: Path, name: str, content: str | None, kind: str
) -> None:
    if content is None:
        write_parquet(tmp_path / name)
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(InvalidInput, match=f"{name}: the column 'n' has the type {kind}, and must"):
        windows(tmp_path, column="n")


def test_one_file_of_several_that_lacks_the_column_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("body\nx\n")
    with pytest.raises(InvalidInput, match=r"b.csv has no column 'text'; its columns are 'body'"):
        windows(tmp_path)


def test_files_of_different_schemas_are_read_together_if_they_have_the_columns(
    tmp_path: Path,
) -> None:
    large = pa.array(["large"], pa.large_string())
    pq.write_table(pa.table({"text": large, "n": pa.array([1], pa.int8())}), tmp_path / "a.parquet")
    coded = pa.array(["coded", "coded"]).dictionary_encode()
    pq.write_table(pa.table({"n": [2, 3], "x": [0, 0], "text": coded}), tmp_path / "b.parquet")
    (tmp_path / "c.jsonl").write_text('{"n": 4, "text": "json"}\n')
    assert texts(tmp_path) == ["large", "coded", "coded", "json"]
    assert ids(tmp_path, id_column="n") == [1, 2, 3, 4]


def test_ids_of_different_types_are_refused_with_both_files(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("n,text\n1,x\n")
    with pytest.raises(InvalidInput, match=r"int64 in .*a.parquet, string in .*b.csv"):
        windows(tmp_path, id_column="n")
    pq.write_table(pa.table({"n": [1.5], "text": ["x"]}), tmp_path / "c.parquet")
    with pytest.raises(InvalidInput, match="ids must be whole numbers, texts or bytes"):
        windows(tmp_path / "c.parquet", id_column="n")


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(2)], ids=str
)
def test_bytes_of_each_type_can_be_ids(tmp_path: Path, kind: pa.DataType) -> None:
    rows = pa.table({"id": pa.array([b"ab", None, b"ab"], kind), "text": ["a", "b", "c"]})
    pyarrow.feather.write_feather(rows, str(tmp_path / "a.arrow"))
    assert ids(tmp_path / "a.arrow", id_column="id") == [b"ab", None, b"ab"]


def test_an_id_of_json_of_another_type_is_named_with_its_row(tmp_path: Path) -> None:
    rows = [json.dumps({"n": i, "text": "x"}) + "\n" for i in range(100)]
    (tmp_path / "a.jsonl").write_text("".join(rows) + '{"n": "b", "text": "x"}\n')
    with pytest.raises(InvalidInput, match=r"a.jsonl:100: the id is 'b', .* of the type int64"):
        windows(tmp_path, id_column="n")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.txt.gz", "a.feather"])
def test_a_truncated_file_is_named(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    if name == "a.txt.gz":
        noise = random.Random(1).randbytes(100_000).hex()
        file.write_bytes(gzip.compress(noise.encode()))
    elif name == "a.parquet":
        write_parquet(file)
    else:
        write_arrow_file(file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(LlmRuntimeError, match=f"{name}: cannot be read"):
        windows(file)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_an_empty_file_has_no_rows(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert windows(tmp_path) == []


@pytest.mark.parametrize(
    "content", ['[{"text": "a"}]', '[\n {\n  "text": "a"\n }\n]\n', "no\n" * 200]
)
def test_json_without_an_object_on_a_line_is_named_with_the_way_to_lines(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(
        InvalidInput, match=r"a\.json: none of the first \d+ lines is a JSON object"
    ):
        windows(tmp_path / "a.json")


def test_empty_lines_before_the_first_object_hide_no_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n" * 200 + '{"text": "one"}\n')
    assert texts(tmp_path / "a.jsonl") == ["one"]


def test_the_default_column_is_text_or_the_only_one_of_texts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("n,text\n")
    (tmp_path / "b.parquet").touch()
    pq.write_table(pa.table({"n": [1], "body": ["x"]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"title": ["y"], "body": ["x"]}), tmp_path / "c.parquet")
    named = {}
    for file in find_files([str(tmp_path)])[:2]:
        there = columns_in(file)
        assert there is not None
        named[file.path.name] = default_column(there, file)
    assert named == {"a.csv": "text", "b.parquet": "body"}
    last = find_files([str(tmp_path)])[2]
    there = columns_in(last)
    assert there is not None
    with pytest.raises(InvalidInput, match="choose one of its columns by --column\ncolumns of"):
        default_column(there, last)


# --- Fingerprints --------------------------------------------------------------------------------


def test_a_fingerprint_depends_on_the_needed_columns_alone(tmp_path: Path) -> None:
    def of(**columns: list[object]) -> object:
        pq.write_table(pa.table(columns), tmp_path / "a.parquet", write_statistics=False)
        (file,) = find_files([str(tmp_path / "a.parquet")])
        return fingerprint(file, ["text"])

    first = of(text=["abc", "abd", "abe"], n=[1, 2, 3])
    assert of(text=["abc", "abd", "abe"], n=[1, 2, 3]) == first
    # The same sizes, and no statistics: only the column's bytes differ.
    assert of(text=["abc", "abx", "abe"], n=[1, 2, 3]) != first


def test_the_fingerprint_of_a_file_of_text_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    (file,) = find_files([str(tmp_path / "a.txt")])
    # FIPS 180-2, appendix B.1.
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert fingerprint(file, ["text"]) == {"name": file.name, "bytes": 3, "sha256": sha256}
