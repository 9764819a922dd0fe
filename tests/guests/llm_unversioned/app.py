"""A guest without an SDK that imports the interface as Spin 1 had it, without a version."""

import dataclasses
import json

import wit_world
from componentize_py_types import Err
from wit_world.imports import llm


class WitWorld(wit_world.WitWorld):
    def run(self, call: str) -> str:
        asked = json.loads(call)
        try:
            result = FUNCTIONS[asked["function"]](*asked["arguments"])
        except Err as error:
            kind = type(error.value).__name__.removeprefix("Error_")
            return json.dumps({"error": kind, "message": getattr(error.value, "value", None)})
        return json.dumps(dataclasses.asdict(result))


def infer(model: str, prompt: str, params: dict[str, float] | None) -> llm.InferencingResult:
    return llm.infer(model, prompt, None if params is None else llm.InferencingParams(**params))


FUNCTIONS = {"infer": infer, "generate_embeddings": llm.generate_embeddings}
