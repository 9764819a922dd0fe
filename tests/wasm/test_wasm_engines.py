"""The components of one application share models, and nothing that is only one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from refllm.api import InvalidInput
from refllm.wasm.http.application import engines_of, open_application
from tests.support.model_files import tiny_llama_gguf

MANIFEST = """
spin_manifest_version = 2
[[trigger.http]]
route = "/one"
component = { source = "a.wasm", ai_models = ["tiny", "other"] }
[[trigger.http]]
route = "/two"
component = { source = "b.wasm", ai_models = ["tiny"] }
[[trigger.http]]
route = "/none"
component = { source = "c.wasm" }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    models = tmp_path / ".spin" / "ai-models"
    models.mkdir(parents=True)
    for name in ("tiny", "other"):
        tiny_llama_gguf(models / f"{name}.gguf")
    (tmp_path / "spin.toml").write_text(MANIFEST)
    return tmp_path


def test_a_model_of_two_components_is_loaded_once(folder: Path) -> None:
    one, two, _ = engines_of(open_application(folder, {})).values()
    assert one.load("tiny") is two.load("tiny")


def test_each_component_may_use_its_own_models_alone(folder: Path) -> None:
    engines = engines_of(open_application(folder, {})).values()
    allowed = [{name for name in ("tiny", "other") if engine.allows(name)} for engine in engines]
    assert allowed == [{"tiny", "other"}, {"tiny"}, set()]


def test_a_model_loaded_by_one_component_is_still_refused_to_another(folder: Path) -> None:
    one, two, none = engines_of(open_application(folder, {})).values()
    one.infer("other", "a")
    for engine in (two, none):
        with pytest.raises(InvalidInput, match="does not have access to use 'other'"):
            engine.infer("other", "a")


def test_all_have_the_options(folder: Path) -> None:
    engines = engines_of(open_application(folder, {}), seed=7, profile="llama.cpp").values()
    assert {(engine.seed, engine.profile) for engine in engines} == {(7, "llama.cpp")}


def test_a_component_alone_may_use_every_model(tmp_path: Path) -> None:
    path = tmp_path / "app.wasm"
    path.touch()
    (engine,) = engines_of(open_application(path, {})).values()
    assert engine.allows("whatever")
