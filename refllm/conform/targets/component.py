"""A target that is a WebAssembly component, with refllm as its host: what `refllm run` does.

The component answers HTTP requests (`wasi:http/incoming-handler`) in the protocol that Spin calls
`remote_http`, and calls its import `fermyon:spin/llm` for the result:

    POST /infer  {"model", "prompt", "options": {"maxTokens", "repeatPenalty",
                  "repeatPenaltyLastNTokenCount", "temperature", "topK", "topP"}}
             →   {"text", "usage": {"promptTokenCount", "generatedTokenCount"}}
    POST /embed  {"model", "input": ["…"]}
             →   {"embeddings": [[…]], "usage": {"promptTokenCount"}}

An error of the interface has a status of 400 or more, and as body a JSON string of its kind and
message: "invalid-input: …", or "model-not-supported", which has no message in a component.
`tests/guests/remote` is such a component.

So the way through WebAssembly is tested: records, numbers and errors into a guest and out again.
Each case gets its own host settings: its seed, its models, its ai_models.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refllm import __version__
from refllm.conform.case import Case, Group
from refllm.conform.reply import (
    Answer,
    HarnessError,
    Implementation,
    NotApplicable,
    Reply,
    Skipped,
    TargetError,
)
from refllm.conform.targets.harness import Skip
from refllm.conform.targets.itself import SuiteModels, engine_of, generation_params
from refllm.conform.targets.protocol import shown, unaskable
from refllm.conform.wire import to_wire
from refllm.engine import LocalEngine
from refllm.errors import LlmRuntimeError, how_to_install
from refllm.interface import U32_MAX, InferencingParams, as_f32
from refllm.models.bundled import ROOT
from refllm.spin.dialects import API_TYPES, as_json, parse_json
from refllm.spin.http_client import parse_error_body

if TYPE_CHECKING:
    from refllm.wasm.host import Host, Program

__all__ = ["ComponentTarget"]

GROUPS: frozenset[Group] = frozenset({"text", "embeddings", "api"})
DIALECT = API_TYPES["default"]
FIRST_ERROR = 400  # of HTTP's statuses

Asked = Mapping[str, Any]


class ComponentTarget:
    """A component in a file; a new instance of it answers each case."""

    def __init__(
        self, path: str | Path, *, models: SuiteModels | None = None, seconds: float = 60.0
    ) -> None:
        """Create a target; the component is compiled in `start`.

        Args:
            path: The component's file.
            models: The suite's models, which the host has.
            seconds: How long the component may compute one answer.
        """
        self._path = Path(path)
        self._seconds = seconds
        self._models = models or SuiteModels()
        self._engines: dict[Path, LocalEngine] = {}
        self._running = ExitStack()
        self._loaded: tuple[Host, Program] | None = None

    def start(self) -> Implementation:
        """Compile the component.

        Raises:
            TargetError: Where the file is no component that can be asked.
        """
        if not self._path.is_file():
            raise TargetError(f"there is no component at {self._path}; build it first")
        try:
            from refllm.wasm.guest import Limits
            from refllm.wasm.host import Host
        except ModuleNotFoundError as error:
            raise TargetError(
                f"a component needs the package {str(error.name).partition('.')[0]}; "
                f"{how_to_install('wasm')}"
            ) from error
        # The host logs the message of an error whose type has none in a component. Without a
        # handler, Python would print it.
        logging.getLogger("refllm.wasm").addHandler(logging.NullHandler())
        host = self._running.enter_context(Host(Limits(seconds=self._seconds)))
        try:
            self._loaded = (host, host.load_handler(self._path))
        except LlmRuntimeError as error:
            raise TargetError(str(error)) from error
        return Implementation(
            name=self._path.name,
            language="WebAssembly",
            groups=GROUPS,
            draws_as_refllm=True,
            details={"host": f"refllm {__version__}", "wasmtime": version("wasmtime")},
        )

    def not_applicable(self, case: Case) -> NotApplicable | None:
        """Return why no component can be asked the case, None where one can."""
        if case.group not in GROUPS:
            return NotApplicable(
                f"Spin's interface carries no {case.group}; a harness can be asked it"
            )
        if case.group == "embeddings" and case.input.get("max_tokens") is not None:
            return NotApplicable("the interface has no max_tokens for embeddings")
        return unaskable(case) or _of_another_type(case)

    def run(self, case: Case) -> Reply:
        """Return the component's answer; `HarnessError` where it traps or gives none."""
        not_applicable = self.not_applicable(case)
        if not_applicable is not None:
            return not_applicable
        try:
            return Answer(self._result(case.group, to_wire(case.input)))
        except Skip as skip:
            return Skipped(str(skip))
        except Exception as error:  # noqa: BLE001 - the report has it, whatever it is
            return HarnessError(f"the component gave no answer: {error}", is_lost=True)

    def stop(self) -> None:
        """End the host."""
        self._running.close()
        self._models.close()

    def _result(self, group: str, asked: Asked) -> Asked:
        """Return the result; raise `Skip`, or an error that says what the component did instead."""
        model = asked["model"]
        with self._engine(group, asked) as engine:
            if group == "embeddings" or asked.get("operation") == "generate_embeddings":
                body = DIALECT.embed_request(model, asked["texts"])
                value, error = self._responded(engine, DIALECT.embed_path, body)
                return error or asdict(DIALECT.embed_result(value, len(asked["texts"])))
            params = generation_params(asked) or InferencingParams()
            body = DIALECT.infer_request(model, asked["prompt"], params)
            value, error = self._responded(engine, DIALECT.infer_path, body)
            return error or asdict(DIALECT.infer_result(value))

    @contextmanager
    def _engine(self, group: str, asked: Asked) -> Iterator[LocalEngine]:
        """Yield the engine of a host with the settings of the case."""
        if asked.get("setup"):
            with engine_of(asked["setup"]) as engine:
                yield engine
            return
        root = ROOT if group == "api" else self._models.path(asked["model"]).parent
        engine = self._engines.setdefault(root, LocalEngine(roots=[root], stand_ins=False))
        engine.seed = int(asked.get("seed", "0"))
        yield engine

    def _responded(self, engine: LocalEngine, path: str, body: object) -> tuple[object, Asked]:
        """Return the JSON of the component's response, or a result that is the interface's error.

        Where it is neither, raise `ValueError` with what the component printed.
        """
        from refllm.wasm.guest import GuestFailed, Output
        from refllm.wasm.host import Services
        from refllm.wasm.wasi.http import Request

        assert self._loaded is not None
        host, program = self._loaded
        headers = (("content-type", b"application/json"),)
        request, output = Request("POST", path, headers, as_json(body)), Output()
        try:
            response = host.respond(program, request, Services(engine), output)
            if response.status < FIRST_ERROR:
                return parse_json(response.body), {}
        except (GuestFailed, ValueError) as error:
            raise ValueError(f"{error}\n{output.text()}".rstrip()) from error
        refusal = parse_error_body(response.body)
        if refusal.form != "string" or refusal.kind is None:
            problem = f"it responded {response.status} and {shown(response.body)}"
            raise ValueError(f"{problem}\n{output.text()}".rstrip())
        return None, {"error": {"kind": refusal.kind, "message": refusal.message}}


def _of_another_type(case: Case) -> NotApplicable | None:
    """Return why a number does not fit the interface's types, u32 and f32; None where all do."""
    for parameter in fields(InferencingParams):
        value = (case.input.get("params") or {}).get(parameter.name, parameter.default)
        is_u32 = isinstance(value, int) and 0 <= value <= U32_MAX
        is_f32 = parameter.type == "float" and abs(as_f32(value)) < float("inf")
        if not (is_u32 or is_f32):
            return NotApplicable(f"a component cannot be given {value!r} as {parameter.name}")
    return None
