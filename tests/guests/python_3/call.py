"""One call of the interface, as JSON asks for, with spin-sdk 3 or 5.

{"function": "infer", "arguments": ["tiny-chat", "Once"]}  ->  {"text": ..., "usage": ...}
an error of the interface                                  ->  {"error": ..., "message": ...}
"""

import dataclasses
import json

from spin_sdk import llm

try:
    from componentize_py_types import Err
except ImportError:  # spin-sdk 3
    from spin_sdk.wit.types import Err


def answer(body: bytes) -> bytes:
    asked = json.loads(body)
    try:
        result = FUNCTIONS[asked["function"]](*asked["arguments"])
    except Err as error:
        kind = KINDS[type(error.value).__name__]
        answer = {"error": kind, "message": getattr(error.value, "value", None)}
        return json.dumps(answer).encode()
    return json.dumps(dataclasses.asdict(result)).encode()


def infer_with_options(model: str, prompt: str, options: dict[str, int | float | str]) -> object:
    """Infer; a value may be the name of a number that JSON lacks, such as "NaN"."""
    values = {
        name: float(value) if isinstance(value, str) else value for name, value in options.items()
    }
    return llm.infer_with_options(model, prompt, llm.InferencingParams(**values))


FUNCTIONS = {
    "infer": llm.infer,
    "infer_with_options": infer_with_options,
    "generate_embeddings": llm.generate_embeddings,
}
KINDS = {
    "Error_InvalidInput": "invalid-input",
    "Error_ModelNotSupported": "model-not-supported",
    "Error_RuntimeError": "runtime-error",
}
