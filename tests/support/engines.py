"""What the tests of the engine ask for; `tiny_engine` of tests/conftest.py answers."""

from __future__ import annotations

from refllm.api import InferencingParams
from refllm.engine import LocalEngine

__all__ = ["GREEDY", "TEXTS", "vectors"]

GREEDY = InferencingParams(temperature=0.0, repeat_penalty=1.0, max_tokens=20)
TEXTS = ["a", "the cat sat on the mat", "one two three", "the"]


def vectors(engine: LocalEngine, texts: list[str] = TEXTS) -> list[list[float]]:
    return engine.generate_embeddings("embedder", texts).embeddings
