"""`refllm embed --file` on files as data pipelines have them."""

from __future__ import annotations

import contextlib
import csv
import gzip
from pathlib import Path

import pytest

from refllm.api import InvalidInput
from refllm.cli.common import read_text
from refllm.cli.text_files import texts_of

TEXTS = ["A cat, sat.", 'He said "no".', "Two\nlines", ""]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("docs.csv", 'id,text\n1,"A cat, sat."\n2,"He said ""no""."\n\n3,"Two\nlines"\n4,\n'),
        ("DOCS.CSV", '\ufefftext,id\r\n"A cat, sat.",1\r\nHe said "no".,2\r\n"Two\nlines",3\r\n,4'),
        ("docs.csv", 'id;text\n1;A cat, sat.\n2;He said "no".\n3;"Two\nlines"\n4;\n'),
        ("docs.tsv", 'id\ttext\n1\tA cat, sat.\n2\tHe said "no".\n3\t"Two\nlines"\n4\t\n'),
        (
            "docs.json",
            '\ufeff [\r\n {"text": "A cat, sat."}, {"text": "He said \\"no\\"."},\n'
            ' {"text": "Two\\nlines"}, {"id": 4, "text": ""}]\n',
        ),
        (
            "no suffix",
            '{"text": "A cat, sat."}\n\n{"text": "He said \\"no\\"."}\r\n'
            '{"text": "Two\\nlines"}\n{"text": ""}\n\n',
        ),
    ],
)
def test_a_field_s_texts_are_read_from_each_kind_of_file(name: str, content: str) -> None:
    assert texts_of(content, "text", name) == TEXTS


@pytest.mark.parametrize(
    ("name", "content", "problem", "advice"),
    [
        ("docs.csv", "id,text\n1,a\n", "docs.csv is a table, .* --field NAME", "'id', 'text'"),
        ("docs.TSV", "id\ttext\n", "docs.TSV is a table", "'id', 'text'"),
        ("docs.csv", "", "docs.csv is a table", "has nothing"),
        ("docs.csv", "id\rtext\n1,a\n", "docs.csv is a table", r"the first line has 'id\\rtext'"),
        pytest.param(
            *("docs.csv", "a" * 200_000, "docs.csv is a table", "the first line has 'aaa"),
            id="a field beyond the csv module's limit",
        ),
        ("docs", '{"text": "a"}\n{"text": "b"}\nbroken\n', "has JSON lines; --field", "'text'"),
        ("docs", '[\n{"text": "a"}\n]\n', "is one JSON array; --field", "'text'"),
        ("docs", '["a", "b"]', "is one JSON array", r"jq -r '\.\[\]'"),
        ("docs", "[1, 2]", "is one JSON array", "jq -c"),
        ("docs", '[1, "a"]\n[2, "b"]\n', "is JSON lines of arrays", "jq -c"),
        ("docs", '{\n"texts": ["a"]\n}', "is one JSON object", "jq -c"),
    ],
)
def test_a_file_that_is_no_plain_text_is_refused_with_the_way_to_read_it(
    name: str, content: str, problem: str, advice: str
) -> None:
    with pytest.raises(InvalidInput, match=f"{problem}.*\n.*{advice}"):
        texts_of(content, None, name)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("docs.csv", "id,body\n1,a\n", "docs.csv: has no column 'text', but 'id', 'body'"),
        ("docs.csv", "id,text\n1,a,b\n", "docs.csv, line 2: has 3 columns, and the first line 2"),
        ("docs.csv", 'id,text\n1,"a', "docs.csv, line 2: unexpected end of data"),
        ("docs.json", '[{"text": "a"}, {"body": "b"}]', "item 2: has no key 'text', but 'body'"),
        ("docs.json", '[{"text": 1}]', "item 1: 'text' is not a text but a JSON number"),
        ("docs.txt", "a cat\n", "line 1: not JSON: .*\nwith --field a file has JSON lines"),
        ("docs.json", '{\n"text": "a"\n}', "line 1: not JSON"),
    ],
)
def test_a_line_without_a_text_in_the_field_is_named(name: str, content: str, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        texts_of(content, "text", name)


def test_empty_lines_are_texts_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert texts_of("\ufeffa cat\r\n\r\na dog\n \n", None, "docs.txt") == [
        "a cat",
        "",
        "a dog",
        " ",
    ]
    assert "2 of 4 lines of docs.txt are empty" in capsys.readouterr().err
    assert texts_of("a\n\nb", None, "docs.txt") == ["a", "", "b"]
    assert "1 of 3 lines of docs.txt is empty" in capsys.readouterr().err


def test_a_file_without_empty_lines_is_read_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    assert texts_of("a cat\na dog\n", None, "docs.txt") == ["a cat", "a dog"]
    assert capsys.readouterr().err == ""


def test_a_long_text_in_a_table_is_read() -> None:
    assert texts_of(f"text\n{'a' * 1_000_000}\n", "text", "docs.csv") == ["a" * 1_000_000]


@pytest.mark.parametrize("content", ["text\na\n", "id,text\n1,a,b\n", "id\n1\n"])
def test_a_table_leaves_the_processs_limit_of_a_field_as_it_was(content: str) -> None:
    before = csv.field_size_limit()
    with contextlib.suppress(InvalidInput):
        texts_of(content, "text", "docs.csv")
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("data", "advice"),
    [
        ("A cat.".encode("utf-16"), "iconv -f UTF-16 -t UTF-8"),
        (gzip.compress(b"A cat.", mtime=0), "gunzip -c"),
        (b"PK\x03\x04\xff", "ZIP archive"),
        (b"PAR1\xff", "Parquet"),
        ("café".encode("latin-1"), "iconv -f ISO-8859-1 -t UTF-8"),
    ],
)
def test_a_file_that_is_not_utf_8_comes_with_the_way_to_make_it_so(
    data: bytes, advice: str, tmp_path: Path
) -> None:
    (tmp_path / "docs.txt").write_bytes(data)
    with pytest.raises(InvalidInput, match=f"is not UTF-8: .*\n.*{advice}"):
        read_text(str(tmp_path / "docs.txt"))
