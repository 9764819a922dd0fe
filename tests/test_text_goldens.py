"""The published texts of tiny-chat: one and two threads write them, and the oracle would."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

import jsonschema
import pytest

from refllm.api import InferencingParams
from refllm.embedded import SHA256
from refllm.engine import LocalEngine
from tests.conftest import PROJECT
from tools.make_text_goldens import drawn_by_oracle

Golden: TypeAlias = Mapping[str, Any]

FOLDER = PROJECT / "golden" / "texts"
DOCUMENT = json.loads((FOLDER / "tiny-chat.json").read_text("utf-8"))
TEXTS = DOCUMENT["texts"]


def test_the_file_keeps_to_its_schema() -> None:
    schema = json.loads((FOLDER / "schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(DOCUMENT)


def test_the_file_is_of_the_model_that_ships() -> None:
    assert DOCUMENT["model_sha256"] == SHA256[DOCUMENT["model"]]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("golden", TEXTS)
def test_a_prompt_and_a_seed_give_the_published_text(golden: Golden, threads: int) -> None:
    engine = LocalEngine(seed=int(golden["seed"]), threads=threads)
    result = engine.infer("tiny-chat", golden["prompt"], InferencingParams(**golden["params"]))
    assert result.text == golden["text"]
    assert result.usage.prompt_token_count == len(golden["prompt_token_ids"])
    assert result.usage.generated_token_count == len(golden["token_ids"])


@pytest.mark.parametrize("golden", TEXTS)
def test_the_oracle_would_have_drawn_the_published_tokens(golden: Golden) -> None:
    drawn = golden["token_ids"]
    params = InferencingParams(**golden["params"])
    assert drawn_by_oracle(golden["prompt_token_ids"], drawn, params, int(golden["seed"])) == drawn
