"""The models that a server's clients can ask for."""

from __future__ import annotations

from collections.abc import Iterator

from refllm.engine import LocalEngine
from refllm.models.bundled import STAND_INS
from refllm.models.find import list_models

__all__ = ["model_names"]

OWNER = "refllm"


def model_names(engine: LocalEngine) -> Iterator[tuple[str, str]]:
    """Each name once, and who answers: refllm, and where it is a stand-in, which model."""
    found = {model.name: OWNER for model in list_models(engine.roots)}
    stand_ins = {
        name: f"{OWNER}: {engine.answering_model(name)} stands in"
        for name in STAND_INS
        if engine.answering_model(name) != name
    }
    for name, owner in (stand_ins | found).items():
        if engine.allows(name):
            yield name, owner
