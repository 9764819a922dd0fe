"""A component's variables: `fermyon:spin/variables@2.0.0`, and the same as `wasi:config/store`.

Sources: Spin's wit/deps/spin@2.0.0/variables.wit; https://github.com/WebAssembly/wasi-config.
"""

from __future__ import annotations

from collections.abc import Mapping

from wasmtime.component import Variant

from refllm.wasm.wit import Interface

__all__ = ["ConfigStore", "Variables"]


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
