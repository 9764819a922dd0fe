"""Engines that users have load every kind of export, and compute what refllm computes.

tests/support/peer_values/exports.json records a run of all of them, and of which exports it was
one. Where an engine is installed it is asked again.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from refllm.export import Layout
from tests.support.exported_models import BOUNDS, MODELS, said_by, sha256_of
from tests.support.peer_values import peer_values

EXPORTS = [(name, layout) for name, model in MODELS.items() for layout in model.layouts]
RECORDED: dict[str, dict[str, Any]] = peer_values("exports")
# The libraries that write tokenizers, and their versions in the recorded run.
WRITERS: dict[str, str] = RECORDED.pop("writers")


def check(message: dict[str, Any]) -> None:
    assert [key for key, value in message.items() if value is False] == []
    assert message["tokens_are_equal"]
    assert message["largest_difference"] < BOUNDS[message["engine"]]


@pytest.mark.parametrize(("name", "layout"), EXPORTS)
def test_an_engine_agreed_with_the_export(name: str, layout: Layout) -> None:
    check(RECORDED[f"{name}, {layout}"]["said"])


def test_every_kind_of_encoder_was_itself() -> None:
    classes = {
        name: RECORDED[f"{name}, hf"]["said"]["class"]
        for name in ("bert, cased, by cls", "roberta", "xlm-roberta", "camembert", "distilbert")
    }
    assert classes == {
        "bert, cased, by cls": "BertModel",
        "roberta": "RobertaModel",
        "xlm-roberta": "XLMRobertaModel",
        "camembert": "CamembertModel",
        "distilbert": "DistilBertModel",
    }


@pytest.mark.skipif(
    any(version(library) != made_by for library, made_by in WRITERS.items()),
    reason=f"other versions wrote the files of the recorded run: {WRITERS}",
)
@pytest.mark.parametrize(("name", "layout"), EXPORTS)
def test_an_export_is_the_one_of_the_recorded_run(
    name: str, layout: Layout, tmp_path: Path
) -> None:
    # Another one asks for another run: python -m tools.peer_values.exports
    _, made = MODELS[name].exported(tmp_path / "m", layout)
    assert sha256_of(made) == RECORDED[f"{name}, {layout}"]["sha256"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "layout"), EXPORTS)
def test_the_installed_engine_agrees_with_the_export(
    name: str, layout: Layout, tmp_path: Path
) -> None:
    engine = RECORDED[f"{name}, {layout}"]["said"]["engine"]
    module = {"llama-cpp-python": "llama_cpp"}.get(engine, engine.replace("-", "_"))
    pytest.importorskip(module, reason=f"{engine} is not installed")
    source, made = MODELS[name].exported(tmp_path / "m", layout)
    check(said_by(MODELS[name], source, made))
