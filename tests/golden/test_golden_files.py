"""Every file of golden/ follows its schema, and the ids of its cases differ."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from refllm import NUMERICS_REVISION
from tests.conftest import PROJECT

FOLDER = PROJECT / "golden"
SCHEMAS = {
    "manifest.json": "manifest.schema.json",
    "bits/hashes.json": "bits/schema.json",
    "bits/revision-1.json": "bits/schema.json",
    "embeddings/all-minilm-l6-v2.json": "embeddings/schema.json",
    "embeddings/cases.json": "embeddings/suite.schema.json",
    "text/llama.cpp.json": "text/llama.cpp.schema.json",
    **{
        f"{group}/cases.json": f"{group}/schema.json"
        for group in ("api", "logits", "ops", "quant", "sampling", "text", "tokenizer")
    },
}
CASES = [path for path in SCHEMAS if path.endswith("cases.json")]


def content(path: str) -> Any:
    return json.loads((FOLDER / path).read_text("utf-8"))


def test_every_json_file_has_a_schema() -> None:
    found = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.json")}
    assert {path for path in found if not path.endswith("schema.json")} == SCHEMAS.keys()


@pytest.mark.parametrize("path", SCHEMAS)
def test_a_file_follows_its_schema(path: str) -> None:
    schema = content(SCHEMAS[path])
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(content(path))


@pytest.mark.parametrize(
    ("path", "revision"),
    [
        ("manifest.json", NUMERICS_REVISION),
        ("bits/hashes.json", NUMERICS_REVISION),
        ("bits/revision-1.json", 1),
    ],
)
def test_a_file_names_the_revision_that_its_numbers_were_computed_by(
    path: str, revision: int
) -> None:
    assert content(path)["numerics_revision"] == revision


def test_the_revisions_have_the_same_questions() -> None:
    asked = [
        [{key: each[key] for key in ("name", "weights_sha256", "token_ids")} for each in results]
        for results in (
            content(f"bits/{name}.json")["results"] for name in ("hashes", "revision-1")
        )
    ]
    assert asked[0] == asked[1]


def test_the_revisions_give_tiny_chat_other_logits() -> None:
    hashes, earlier = (
        {each["name"]: each["sha256"] for each in content(f"bits/{name}.json")["results"]}
        for name in ("hashes", "revision-1")
    )
    assert hashes["tiny-chat"] != earlier["tiny-chat"]


@pytest.mark.parametrize("group", ["api", "sampling"])
def test_every_clause_of_the_readme_has_a_case_and_every_case_a_clause(group: str) -> None:
    readme = (FOLDER / group / "README.md").read_text("utf-8")
    table = readme.split("| clause | rule |\n|---|---|\n")[1].split("\n\n")[0]
    clauses = {line.split("|")[1].strip() for line in table.splitlines()}
    assert clauses == {case["clause"] for case in content(f"{group}/cases.json")["cases"]}


@pytest.mark.parametrize("path", CASES)
def test_no_two_cases_of_a_file_have_the_same_id(path: str) -> None:
    ids = [case["id"] for case in content(path)["cases"]]
    assert len(set(ids)) == len(ids)
