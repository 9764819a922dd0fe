"""The stand-in for spin_sdk comes into sys.modules, alone, and goes without a trace."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

from refllm.api import (
    EmbeddingsResult,
    EmbeddingsUsage,
    InferencingParams,
    InferencingResult,
    InferencingUsage,
)
from refllm.spin.shim.install import spin_sdk_backed_by
from refllm.spin.shim.sdk import NotInShim


@dataclass(frozen=True)
class Saying:
    """An engine that always says the same."""

    text: str

    def infer(
        self, _model: str, _prompt: str, _params: InferencingParams | None = None
    ) -> InferencingResult:
        return InferencingResult(self.text, InferencingUsage(1, 1))

    def generate_embeddings(self, _model: str, _texts: Sequence[str]) -> EmbeddingsResult:
        return EmbeddingsResult([], EmbeddingsUsage(0))


@pytest.fixture
def in_place() -> Iterator[None]:
    with spin_sdk_backed_by(Saying("yes")):
        yield


@pytest.fixture
def application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of an application, which can be imported from; its modules are gone after."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "speaker.py").write_text("from spin_sdk.llm import infer")
    (tmp_path / "speakers_user.py").write_text("from speaker import infer as ask")
    (tmp_path / "bystander.py").write_text("import json")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "speaker.py").write_text("from spin_sdk import llm")
    try:
        yield tmp_path
    finally:
        for name in sys.modules.keys() - before:
            del sys.modules[name]


def real_sdk(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A spin_sdk that was there before, with a function."""
    package, llm = types.ModuleType("spin_sdk"), types.ModuleType("spin_sdk.llm")
    exec("def infer(model, prompt): raise NotImplementedError", vars(llm))
    package.__dict__.update(llm=llm, __path__=[])
    monkeypatch.setitem(sys.modules, "spin_sdk", package)
    monkeypatch.setitem(sys.modules, "spin_sdk.llm", llm)
    return package


def test_afterwards_there_is_no_spin_sdk() -> None:
    with spin_sdk_backed_by(Saying("yes")):
        assert "spin_sdk.llm" in sys.modules
    assert [name for name in sys.modules if name.startswith(("spin_sdk", "componentize"))] == []
    with pytest.raises(ModuleNotFoundError, match="No module named 'spin_sdk'"):
        import_module("spin_sdk")


def test_after_an_error_there_is_no_spin_sdk_either() -> None:
    with pytest.raises(ZeroDivisionError), spin_sdk_backed_by(Saying("yes")):
        raise ZeroDivisionError
    assert "spin_sdk" not in sys.modules


def test_a_real_sdk_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    real = real_sdk(monkeypatch)
    with spin_sdk_backed_by(Saying("yes")):
        assert import_module("spin_sdk") is not real
    assert import_module("spin_sdk") is real
    assert import_module("spin_sdk.llm") is real.llm


@pytest.mark.usefixtures("application")
def test_a_module_that_holds_a_real_sdk_is_read_anew_and_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real_sdk(monkeypatch)
    before = import_module("speaker")
    with spin_sdk_backed_by(Saying("yes")):
        assert import_module("speaker").infer("tiny", "the cat").text == "yes"
    assert import_module("speaker") is before


@pytest.mark.usefixtures("application")
@pytest.mark.parametrize("module", ["speaker", "speakers_user", "package.speaker"])
def test_a_module_that_holds_the_stand_in_is_forgotten(module: str) -> None:
    with spin_sdk_backed_by(Saying("yes")):
        first = import_module(module)
    with spin_sdk_backed_by(Saying("no")):
        assert import_module(module) is not first


@pytest.mark.usefixtures("application")
def test_a_forgotten_module_is_gone_from_its_package() -> None:
    with spin_sdk_backed_by(Saying("yes")):
        import_module("package.speaker")
    assert not hasattr(import_module("package"), "speaker")


@pytest.mark.usefixtures("application")
def test_a_module_without_the_stand_in_stays() -> None:
    with spin_sdk_backed_by(Saying("yes")):
        bystander = import_module("bystander")
    assert import_module("bystander") is bystander


@pytest.mark.usefixtures("application")
def test_a_stand_in_inside_another_answers_from_its_own_engine() -> None:
    def answer() -> str:
        return str(import_module("speaker").infer("tiny", "the cat").text)

    with spin_sdk_backed_by(Saying("outer")):
        before = answer()
        with spin_sdk_backed_by(Saying("inner")):
            inside = answer()
        after = answer()
    assert (before, inside, after) == ("outer", "inner", "outer")


# --- What is not here ----------------------------------------------------------------------------


@pytest.mark.usefixtures("in_place")
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("spin_sdk.key_value", "open_default"),
        ("spin_sdk.sqlite", "open"),
        ("spin_sdk.variables", "get"),
        ("spin_sdk.http", "send"),
        ("spin_sdk.http.poll_loop", "PollLoop"),
    ],
)
def test_another_part_of_the_sdk_imports_and_raises_on_use(module: str, name: str) -> None:
    absent = getattr(import_module(module), name)
    with pytest.raises(NotInShim, match=f"{module}.{name}: refllm's shim has no such part"):
        absent("default")


@pytest.mark.usefixtures("in_place")
def test_a_name_of_another_part_raises_on_use() -> None:
    store = import_module("spin_sdk.key_value").Store
    with pytest.raises(NotInShim, match=r"spin_sdk.key_value.Store: "):
        store.open("default")


@pytest.mark.usefixtures("in_place")
def test_a_class_cannot_derive_from_another_part() -> None:
    absent = import_module("spin_sdk.redis").Listener
    with pytest.raises(NotInShim, match=r"spin_sdk.redis.Listener: "):
        types.new_class("Listener", (absent,))


@pytest.mark.usefixtures("in_place")
def test_an_unknown_module_of_the_sdk_is_not_found_with_the_reason() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"spin_sdk.wit.exports: refllm's shim has no"):
        import_module("spin_sdk.wit.exports")
