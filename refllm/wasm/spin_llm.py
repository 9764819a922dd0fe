"""`fermyon:spin/llm`, of version 2.0.0 and without one: the guest's calls go to an engine.

Source: Spin's wit/deps/spin@2.0.0/llm.wit and, for the unversioned one, SIP 015.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import fields

from wasmtime.component import Record, Variant

from refllm.errors import LlmError, ModelNotSupported
from refllm.interface import Engine, InferencingParams, InferencingResult
from refllm.wasm.guest import Guest, GuestFailed
from refllm.wasm.wit import Interface, record

__all__ = ["Llm"]

logger = logging.getLogger(__name__)


class Llm(Interface):
    """`fermyon:spin/llm`; a result is a record, an error the interface's variant."""

    wit = "fermyon:spin/llm"

    def __init__(self, guest: Guest, engine: Engine) -> None:
        self._guest = guest
        self._engine = engine

    def infer(self, model: str, prompt: str, params: Record | None) -> Record | Variant:
        options = None if params is None else inferencing_params(params)
        return self._answer(lambda: _inferencing(self._engine.infer(model, prompt, options)))

    def generate_embeddings(self, model: str, text: list[str]) -> Record | Variant:
        def answer() -> Record:
            result = self._engine.generate_embeddings(model, text)
            usage = record(prompt_token_count=result.usage.prompt_token_count)
            return record(embeddings=result.embeddings, usage=usage)

        return self._answer(answer)

    def _answer(self, answer: Callable[[], Record]) -> Record | Variant:
        with self._guest.turn.paused():
            try:
                return answer()
            except ModelNotSupported as error:  # the one error that carries no text to the guest
                logger.warning("refllm: %s: %s", error.kind, error)
                return Variant(error.kind)
            except LlmError as error:
                return Variant(error.kind, _transferable(str(error)))


def inferencing_params(params: Record) -> InferencingParams:
    """WIT's record as Python's: `max-tokens` is `max_tokens`, and so on.

    Errors: `GuestFailed` if it is another record.
    """
    given = {name.replace("-", "_"): value for name, value in vars(params).items()}
    if set(given) != {parameter.name for parameter in fields(InferencingParams)}:
        raise GuestFailed(
            f"it called infer with a record of {', '.join(vars(params))}, which are not the fields "
            "of inferencing-params"
        )
    return InferencingParams(**given)


def _inferencing(result: InferencingResult) -> Record:
    usage = record(
        prompt_token_count=result.usage.prompt_token_count,
        generated_token_count=result.usage.generated_token_count,
    )
    return record(text=result.text, usage=usage)


def _transferable(text: str) -> str:
    """The text without lone surrogates, which a path may have and a component's string may not."""
    return text.encode("utf-8", "backslashreplace").decode()
