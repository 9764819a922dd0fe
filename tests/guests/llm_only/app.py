"""A guest for spin-sdk 5 that makes one call of the interface, as JSON asks for.

    {"function": "infer", "arguments": ["tiny-chat", "Once"]}  ->  {"text": ..., "usage": ...}
    an error of the interface                                  ->  {"error": "InvalidInput", ...}

"raw_infer" is the import itself, which alone can be called without parameters.
"""

import dataclasses
import json
from collections.abc import Sequence

import wit_world
from componentize_py_types import Err
from spin_sdk import llm
from spin_sdk.wit.imports import fermyon_spin_llm_2_0_0 as raw


class WitWorld(wit_world.WitWorld):
    def run(self, call: str) -> str:
        asked = json.loads(call)
        try:
            result = FUNCTIONS[asked["function"]](*asked["arguments"])
        except Err as error:
            kind = type(error.value).__name__.removeprefix("Error_")
            return json.dumps({"error": kind, "message": getattr(error.value, "value", None)})
        return json.dumps(dataclasses.asdict(result))


def infer_with_options(model: str, prompt: str, options: dict[str, float]) -> raw.InferencingResult:
    return llm.infer_with_options(model, prompt, llm.InferencingParams(**options))


def raw_infer(
    model: str, prompt: str, params: Sequence[float] | None = None
) -> raw.InferencingResult:
    return raw.infer(model, prompt, None if params is None else raw.InferencingParams(*params))


FUNCTIONS = {
    "infer": llm.infer,
    "infer_with_options": infer_with_options,
    "generate_embeddings": llm.generate_embeddings,
    "raw_infer": raw_infer,
}
