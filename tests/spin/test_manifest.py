"""spin.toml, in both versions: the models of each component, and errors of a wrong file."""

from __future__ import annotations

from pathlib import Path

import pytest

from refllm.api import InferencingParams, InvalidInput, LlmRuntimeError
from refllm.models.find import default_roots
from refllm.spin.component import engine_for
from refllm.spin.manifest import Component, read_manifest
from tests.support.model_files import tiny_llama_gguf

VERSION_2 = """
spin_manifest_version = 2

[application]
name = "jokes"
version = "0.1.0"

[[trigger.http]]
route = "/..."
component = "teller"

[component.teller]
source = "app.wasm"
ai_models = ["llama2-chat", "all-minilm-l6-v2"]

[component.silent]
source = "silent.wasm"
"""
VERSION_1 = """
spin_version = "1"
name = "jokes"
trigger = { type = "http", base = "/" }
version = "0.1.0"

[[component]]
id = "teller"
source = "app.wasm"
ai_models = ["llama2-chat"]
[component.trigger]
route = "/..."

[[component]]
id = "silent"
source = "silent.wasm"
"""
INLINE = """
spin_manifest_version = 2
application = { name = "jokes" }

[[trigger.http]]
id = "front"
route = "/"
component = { source = "a.wasm", ai_models = ["llama2-chat"] }

[[trigger.http]]
route = "/b"
component = { source = "b.wasm" }
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "spin.toml"
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "models"),
    [
        (VERSION_2, {"teller": ("llama2-chat", "all-minilm-l6-v2"), "silent": ()}),
        (VERSION_1, {"teller": ("llama2-chat",), "silent": ()}),
        (INLINE, {"front-component": ("llama2-chat",), "inline-component0": ()}),
        ("spin_manifest_version = 2", {}),
    ],
    ids=["version 2", "version 1", "components inside triggers", "no component"],
)
def test_each_component_has_the_models_that_it_names(
    text: str, models: dict[str, tuple[str, ...]], tmp_path: Path
) -> None:
    components = read_manifest(written(tmp_path, text)).components
    assert components == {id_: Component(id_, names) for id_, names in models.items()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[component", "not valid TOML"),
        ("component = 3", "component must be a table"),
        ("[component]\nteller = 3", "component 'teller' must be a table"),
        ("[component.teller]\nai_models = 'all'", "ai_models of component 'teller'"),
        ("[component.teller]\nai_models = [1]", "ai_models of component 'teller'"),
        ("[[component]]\nsource = 'a.wasm'", "component number 1 needs an id"),
        ("[[component]]\nid = 'a'\n[[component]]\nid = 'a'", "two components called 'a'"),
        ("[trigger.http]\nroute = '/'", "[[trigger.http]]"),
        ("trigger = 'http'", "trigger must be a table"),
    ],
)
def test_a_manifest_that_is_wrong_is_named_with_what_is_wrong(
    text: str, message: str, tmp_path: Path
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(LlmRuntimeError) as caught:
        read_manifest(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_a_manifest_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LlmRuntimeError, match=r"spin\.toml: cannot be read: No such file"):
        read_manifest(tmp_path / "spin.toml")


def test_a_manifest_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "spin.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(LlmRuntimeError, match="not valid TOML"):
        read_manifest(path)


# A component's engine


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """An application whose component `teller` may use llama2-chat, which lies in its folder."""
    written(tmp_path, VERSION_2)
    models = tmp_path / ".spin" / "ai-models" / "llama"
    models.mkdir(parents=True)
    tiny_llama_gguf(models / "llama2-chat.gguf")
    return tmp_path


@pytest.mark.parametrize("named", [".", "spin.toml"])
def test_a_component_gets_the_models_of_its_application(app: Path, named: str) -> None:
    engine = engine_for(app / named, "teller", seed=7)
    assert engine.seed == 7
    assert engine.roots == (app / ".spin" / "ai-models", *default_roots())
    result = engine.infer("llama2-chat", "the", InferencingParams(max_tokens=1))
    assert result.usage.generated_token_count == 1


def test_a_component_may_use_no_model_that_it_does_not_name(app: Path) -> None:
    with pytest.raises(InvalidInput, match="does not have access to use 'llama2-chat'"):
        engine_for(app, "silent").infer("llama2-chat", "the")


def test_an_unknown_component_is_invalid_input_that_names_the_known_ones(app: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        engine_for(app, "writer")
    message = f"{app / 'spin.toml'}: has no component called 'writer'; it has teller, silent"
    assert str(caught.value) == message


def test_an_application_without_components_is_refused(tmp_path: Path) -> None:
    written(tmp_path, "spin_manifest_version = 2")
    with pytest.raises(InvalidInput, match="it has no component at all"):
        engine_for(tmp_path, "writer")


def test_an_application_in_this_folder_has_its_models_looked_for_once(
    app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(app)
    assert engine_for(Path(), "teller").roots == default_roots()


def test_a_folder_without_a_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(LlmRuntimeError, match=r"spin\.toml: cannot be read: No such file"):
        engine_for(tmp_path, "teller")
