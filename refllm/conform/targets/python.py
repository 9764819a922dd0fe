"""A target that is a Python object, asked in this process: `module:object`.

The object is one of

    a harness    run(group, input), perhaps start() and stop(): see `refllm.conform.targets.harness`
    an SDK       infer_with_options(model, prompt, options) and generate_embeddings(model, texts),
                 as the Spin Python SDK has them: a module `spin_sdk.llm`, or anything like it
    a function   of a group and an input, that gives the result

or a class of the first two, of which one object is made. What it prints is redirected to standard
error. A case that never returns cannot be ended here; run such a harness as a command.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from refllm.conform.case import Case
from refllm.conform.reply import HarnessError, Implementation, NotApplicable, Reply, TargetError
from refllm.conform.targets.harness import Skip, answer, hello, params_of
from refllm.conform.targets.protocol import ProtocolError, implementation_of, reply_of, unaskable
from refllm.conform.wire import to_wire
from refllm.interface import InferencingParams

__all__ = ["EntryPointTarget", "SdkHarness"]

SDK_FUNCTIONS = ("infer_with_options", "generate_embeddings")
SDK_GROUPS = ("text", "embeddings", "api")


class EntryPointTarget:
    """The object that an entry point names; the working directory's modules can be imported."""

    def __init__(self, entry_point: str) -> None:
        """Create a target; the module is imported in `start`.

        Args:
            entry_point: "module:object", or "module" where the module itself is the object.
        """
        self._entry_point = entry_point
        self._harness: Any = None

    def start(self) -> Implementation:
        """Import the object and start it.

        Raises:
            TargetError: Naming what cannot be imported or does not start.
        """
        try:
            with contextlib.redirect_stdout(sys.stderr):
                self._harness = _harness_of(_imported(self._entry_point), self._entry_point)
                return implementation_of(hello(self._harness, self._entry_point))
        except TargetError:
            raise
        except ProtocolError as error:
            raise TargetError(f"{self._entry_point}, start(): it {error}") from error
        except (Exception, SystemExit) as error:
            raise TargetError(
                f"{self._entry_point} does not start: {type(error).__name__}: {error}"
            ) from error

    def not_applicable(self, case: Case) -> NotApplicable | None:
        """Return why no object of this kind can be asked the case, None where one can."""
        if isinstance(self._harness, SdkHarness):
            return unaskable(case) or self._harness.not_applicable(case)
        return unaskable(case)

    def run(self, case: Case) -> Reply:
        """Return the object's reply; an exception that is not the interface's is `HarnessError`."""
        not_applicable = self.not_applicable(case)
        if not_applicable is not None:
            return not_applicable
        with contextlib.redirect_stdout(sys.stderr):
            reply = answer(self._harness.run, case.group, to_wire(case.input))
        try:
            return reply_of({"id": case.id, **reply}, case.id)
        except ProtocolError as error:
            return HarnessError(f"{self._entry_point} {error}")

    def stop(self) -> None:
        """Stop the object, if it has such a method."""
        with contextlib.suppress(Exception, SystemExit):
            getattr(self._harness, "stop", lambda: None)()


class SdkHarness:
    """Functions like those of the Spin Python SDK, as a harness."""

    def __init__(self, sdk: Any, name: str) -> None:
        self._sdk = sdk
        self._name = name

    def start(self) -> Mapping[str, Any]:
        """Return its name, and the groups that its functions can answer."""
        implementation = {"name": self._name, "language": "Python"}
        return {"implementation": implementation, "groups": list(SDK_GROUPS)}

    def not_applicable(self, case: Case) -> NotApplicable | None:
        """Return why functions like these cannot be asked the case, None where they can."""
        if case.group not in SDK_GROUPS:
            return NotApplicable(f"Spin's SDK carries no {case.group}; a harness can be asked it")
        if case.input.get("setup"):
            return NotApplicable("these functions' host cannot be set up from here")
        if case.group == "embeddings" and case.input.get("max_tokens") is not None:
            return NotApplicable("these functions take no max_tokens")
        return None

    def run(self, group: str, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the result.

        Raises:
            Skip: Where the function that answers the case is missing.
            Exception: Whatever the functions raise.
        """
        if group == "embeddings" or asked.get("operation") == "generate_embeddings":
            result = self._function("generate_embeddings")(asked["model"], asked["texts"])
            embedding_usage = {"prompt_token_count": result.usage.prompt_token_count}
            return {"embeddings": result.embeddings, "usage": embedding_usage}
        params = params_of(asked)
        make = getattr(self._sdk, "InferencingParams", InferencingParams)
        options = None if params is None else make(**params)
        function = self._function("infer_with_options")
        result = function(asked["model"], asked["prompt"], options)
        usage = {
            "prompt_token_count": result.usage.prompt_token_count,
            "generated_token_count": result.usage.generated_token_count,
        }
        return {"text": result.text, "usage": usage}

    def _function(self, name: str) -> Callable[..., Any]:
        function: Callable[..., Any] | None = getattr(self._sdk, name, None)
        if function is None:
            raise Skip(f"{self._name} has no {name}")
        return function


class _Function:
    """A function of a group and an input, as a harness."""

    def __init__(self, run: Callable[[str, Mapping[str, Any]], Mapping[str, Any]]) -> None:
        self.run = run


def _imported(entry_point: str) -> Any:
    """Return the object that the entry point names; raise `TargetError` where there is none."""
    module_name, _, path = entry_point.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    found: Any = _module(module_name)
    name = module_name
    for part in filter(None, path.split(".")):
        with contextlib.suppress(ImportError):  # spin_sdk:llm is a module not imported yet
            if not hasattr(found, part):
                importlib.import_module(f"{name}.{part}")
        if not hasattr(found, part):
            raise TargetError(f"{entry_point}: there is no {part} in {name}")
        found, name = getattr(found, part), f"{name}.{part}"
    return found


def _module(name: str) -> object:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise TargetError(
            f"cannot import {name!r}: {type(error).__name__}: {error}; install what is missing, or "
            "run refllm in the folder that it is in"
        ) from error


def _harness_of(found: Any, name: str) -> Any:
    """Return the object as a harness; raise `TargetError` where it is none."""
    made = found() if isinstance(found, type) else found
    if callable(getattr(made, "run", None)):
        return made
    if any(callable(getattr(made, function, None)) for function in SDK_FUNCTIONS):
        return SdkHarness(made, name)
    if callable(made):
        return _Function(made)
    raise TargetError(
        f"{name} is a {type(made).__name__}; it must have run(group, input), be such a function, "
        f"or have {' or '.join(SDK_FUNCTIONS)}"
    )
