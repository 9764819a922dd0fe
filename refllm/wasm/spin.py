"""Spin's own interfaces: `fermyon:spin/llm`, `fermyon:spin/variables`, and `wasi:config/store`.

Calls of `llm`, of version 2.0.0 and without a version, go to an engine. `wasi:config/store` has the
same variables as `fermyon:spin/variables`.

Sources: Spin's wit/deps/spin@2.0.0/llm.wit and variables.wit; SIP 015 for the unversioned `llm`;
https://github.com/WebAssembly/wasi-config.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import fields

from wasmtime.component import Record, Variant

from refllm.errors import LlmError, ModelNotSupported
from refllm.interface import Engine, InferencingParams
from refllm.wasm.guest import Guest, GuestFailed
from refllm.wasm.wit import Interface, record

__all__ = ["ConfigStore", "Llm", "Variables", "inferencing_params"]

logger = logging.getLogger(__name__)


class Llm(Interface):
    """`fermyon:spin/llm`; a result is a record, an error the interface's variant."""

    wit = "fermyon:spin/llm"

    def __init__(self, guest: Guest, engine: Engine) -> None:
        self._guest = guest
        self._engine = engine

    def infer(self, model: str, prompt: str, params: Record | None) -> Record | Variant:
        options = None if params is None else inferencing_params(params)

        def answer() -> Record:
            result = self._engine.infer(model, prompt, options)
            usage = record(
                prompt_token_count=result.usage.prompt_token_count,
                generated_token_count=result.usage.generated_token_count,
            )
            return record(text=result.text, usage=usage)

        return self._answer(answer)

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
                # A path may have lone surrogates, a component's string may not.
                message = str(error).encode("utf-8", "backslashreplace").decode()
                return Variant(error.kind, message)


class Variables(Interface):
    """`fermyon:spin/variables`."""

    wit = "fermyon:spin/variables"

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables

    def get(self, name: str) -> str | Variant:
        if name not in self._variables:
            message = f"the component has no variable {name!r:.80} in spin.toml"
            return Variant("undefined", message)
        return self._variables[name]


class ConfigStore(Interface):
    """`wasi:config/store`."""

    wit = "wasi:config/store"

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables

    def get(self, key: str) -> str | None:
        return self._variables.get(key)

    def get_all(self) -> list[tuple[str, str]]:
        return list(self._variables.items())


def inferencing_params(params: Record) -> InferencingParams:
    """Return WIT's record as Python's: `max-tokens` is `max_tokens`, and so on.

    Raises:
        GuestFailed: It is another record.
    """
    given = {name.replace("-", "_"): value for name, value in vars(params).items()}
    if set(given) != {parameter.name for parameter in fields(InferencingParams)}:
        raise GuestFailed(
            f"it called infer with a record of {', '.join(vars(params))}, which are not the fields "
            "of inferencing-params"
        )
    return InferencingParams(**given)
