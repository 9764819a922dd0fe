"""The modules of the Spin Python SDK that handlers use, made anew for each engine.

    spin_sdk.llm                     infer, infer_with_options, generate_embeddings
    spin_sdk.http                    Request, Response, IncomingHandler (3), Handler (4 and 5)
    spin_sdk.wit.types               Err (3); 4 and 5 have it in componentize_py_types
    spin_sdk.wit.imports.llm         the interface (3); fermyon_spin_llm_2_0_0 in 4 and 5

and placeholders for what else the SDK has. Names, order of arguments and defaults are those of
spin-sdk 3.4.1, and where they differ those of 5.0.0 beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import NoReturn

from refllm.interface import Engine
from refllm.spin.shim import wit
from refllm.spin.shim.wit import EmbeddingsResult, Err, InferencingParams, InferencingResult, Llm

__all__ = [
    "TOP_LEVEL",
    "Err",
    "Handler",
    "IncomingHandler",
    "LlmModule",
    "NotInShim",
    "Request",
    "Response",
    "absence",
    "modules_of",
]

TOP_LEVEL = ("spin_sdk", "componentize_py_types")

OTHER_MODULES = (
    *("spin_sdk.key_value", "spin_sdk.mqtt", "spin_sdk.mysql", "spin_sdk.postgres"),
    *("spin_sdk.redis", "spin_sdk.sqlite", "spin_sdk.variables", "spin_sdk.util"),
    *("spin_sdk.http.poll_loop",),
)
OTHER_HTTP = ("send", "send_async", "strip_forbidden_headers")


# --- spin_sdk.http -------------------------------------------------------------------------------


@dataclass
class Request:
    """An HTTP request; `uri` is its path and query."""

    method: str
    uri: str
    headers: MutableMapping[str, str]
    body: bytes | None


@dataclass
class Response:
    """An HTTP response."""

    status: int
    headers: MutableMapping[str, str]
    body: bytes | None


class IncomingHandler:
    """What an application's `IncomingHandler` derives from with spin-sdk 3."""

    def handle_request(self, request: Request) -> Response:
        """The response to `request`."""
        raise NotImplementedError


class Handler:
    """What an application's `HttpHandler` derives from with spin-sdk 4 and 5."""

    async def handle_request(self, request: Request) -> Response:
        """The response to `request`."""
        raise NotImplementedError


# --- spin_sdk.llm --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LlmModule:
    """The functions of `spin_sdk.llm`, on top of the interface."""

    interface: Llm

    def infer(self, model: str, prompt: str) -> InferencingResult:
        """The continuation of `prompt`, with default parameters. Errors: `Err`."""
        return self.infer_with_options(model, prompt, None)

    # As in the SDK, `options` has no default: a handler that leaves it out fails in Spin, too.
    def infer_with_options(
        self, model: str, prompt: str, options: InferencingParams | None
    ) -> InferencingResult:
        """The continuation of `prompt`; None stands for default parameters. Errors: `Err`."""
        return self.interface.infer(model, prompt, options or InferencingParams())

    def generate_embeddings(self, model: str, text: Sequence[str]) -> EmbeddingsResult:
        """One vector for each text. Errors: `Err`."""
        return self.interface.generate_embeddings(model, text)


# --- What is not here ----------------------------------------------------------------------------


class NotInShim(NotImplementedError):
    """A handler used a part of the SDK that the shim does not have."""


def absence(name: str) -> str:
    """What there is to say about a part of the SDK that the shim does not have."""
    return (
        f"{name}: refllm's shim has no such part of the Spin SDK; it has spin_sdk.llm and the "
        "handlers of spin_sdk.http"
    )


class _Absent:
    """Something that can be imported and not be used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *_arguments: object, **_options: object) -> NoReturn:
        raise NotInShim(absence(self._name))

    __mro_entries__ = __call__  # a class that derives from it

    def __getattr__(self, attribute: str) -> NoReturn:
        if _is_pythons_own(attribute):
            raise AttributeError(attribute)
        raise NotInShim(absence(self._name))


def _absent_module(name: str) -> ModuleType:
    """A module in which every name can be imported, and none be used."""

    def __getattr__(attribute: str) -> _Absent:  # noqa: N807 - PEP 562
        if _is_pythons_own(attribute):
            raise AttributeError(attribute)
        return _Absent(f"{name}.{attribute}")

    return _module(name, {"__getattr__": __getattr__})


def _is_pythons_own(attribute: str) -> bool:
    """Whether import, inspect and others look for it everywhere, and take no for an answer."""
    return attribute.startswith("__") and attribute.endswith("__")


# --- The modules ---------------------------------------------------------------------------------


def modules_of(engine: Engine) -> dict[str, ModuleType]:
    """Every module of the stand-in by its full name, answering from `engine`.

    Each has its submodules as attributes, as if they had been imported.
    """
    interface = Llm(engine)
    sdk_llm = LlmModule(interface)
    types = {name: getattr(wit, name) for name in ("Some", "Ok", "Err", "Result")}
    llm = {name: getattr(wit, name) for name in wit.__all__ if name != "Llm"} | {
        "infer": interface.infer,
        "generate_embeddings": interface.generate_embeddings,
    }
    http = {"Request": Request, "Response": Response, "Ok": wit.Ok, "Err": Err} | {
        "IncomingHandler": IncomingHandler,
        "Handler": Handler,
    }
    modules = [
        _module("componentize_py_types", types),
        _module("spin_sdk", {}),
        _module("spin_sdk.wit", {}),
        _module("spin_sdk.wit.types", types),
        _module("spin_sdk.wit.imports", {}),
        _module("spin_sdk.wit.imports.llm", llm),
        _module("spin_sdk.wit.imports.fermyon_spin_llm_2_0_0", llm),
        _module("spin_sdk.wit.imports.fermyon_spin_llm", llm),
        _module("spin_sdk.http", http | {n: _Absent(f"spin_sdk.http.{n}") for n in OTHER_HTTP}),
        _module(
            "spin_sdk.llm",
            {
                "InferencingParams": InferencingParams,
                "infer": sdk_llm.infer,
                "infer_with_options": sdk_llm.infer_with_options,
                "generate_embeddings": sdk_llm.generate_embeddings,
            },
        ),
        *map(_absent_module, OTHER_MODULES),
    ]
    by_name = {module.__name__: module for module in modules}
    for name, module in by_name.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(by_name[parent], child, module)
    interfaces = by_name["spin_sdk.wit.imports"]
    by_name["spin_sdk.llm"].__dict__["spin_llm"] = interfaces.llm
    return by_name


def _module(name: str, members: Mapping[str, object]) -> ModuleType:
    module = ModuleType(name, f"refllm's stand-in for {name} of the Spin Python SDK.")
    module.__dict__.update(members)
    module.__path__ = []  # a package whose submodules are all there are
    return module
