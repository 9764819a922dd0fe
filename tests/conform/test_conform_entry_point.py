"""A target that is a Python object: a harness, a function, or an SDK."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refllm.conform.case import GROUPS, Case, Group
from refllm.conform.reply import Answer, HarnessError, NotApplicable, Reply, Skipped, TargetError
from refllm.conform.targets.harness import answer
from refllm.conform.targets.python import EntryPointTarget

NUMBERS = itertools.count()

Write = Callable[..., EntryPointTarget]


def case(group: Group = "quant", **asked: object) -> Case:
    return Case(id=f"{group}/a", group=group, proves="-", clause="-", input=asked, expected={})


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """An entry point's target, whose module has these lines and lies in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(lines: str, name: str = ":it") -> EntryPointTarget:
        module = f"module_{next(NUMBERS)}"  # Python imports a module once, whatever is in it
        (tmp_path / f"{module}.py").write_text(lines, "utf-8")
        return EntryPointTarget(f"{module}{name}")

    return write


def reply(target: EntryPointTarget, asked: Case | None = None) -> Reply:
    target.start()
    return target.run(asked or case())


# --- Harnesses and functions ---------------------------------------------------------------------

HARNESS = """
from refllm.conform.targets.harness import Skip
class it:
    def start(self):
        self.ready = True
        return {"implementation": {"name": "mine", "version": "2"}, "groups": ["quant"]}
    def run(self, group, asked):
        if asked.get("skip"):
            raise Skip(asked["skip"])
        return {"group": group, "asked": asked, "ready": self.ready}
    def stop(self):
        open("stopped", "x").close()
"""


def test_an_object_of_a_class_is_created_and_started(target: Write) -> None:
    implementation = target(HARNESS).start()
    assert (implementation.name, implementation.version) == ("mine", "2")
    assert implementation.groups == {"quant"}
    assert not implementation.draws_as_refllm


def test_a_case_s_input_arrives_as_it_does_at_a_command(target: Write) -> None:
    assert reply(target(HARNESS), case(values=[0.5, float("nan")])) == Answer(
        {"group": "quant", "asked": {"values": [0.5, "nan"]}, "ready": True}
    )


def test_a_raised_skip_is_a_skip_with_its_reason(target: Write) -> None:
    assert reply(target(HARNESS), case(skip="too big")) == Skipped("too big")


def test_the_object_is_stopped(target: Write, tmp_path: Path) -> None:
    harness = target(HARNESS)
    harness.start()
    harness.stop()
    assert (tmp_path / "stopped").exists()


def test_a_function_is_asked_every_group(target: Write) -> None:
    function = target("def it(group, asked): return {'asked': [group, asked['n']]}")
    assert function.start().groups == set(GROUPS)
    assert function.run(case("logits", n=1)) == Answer({"asked": ["logits", 1]})


def test_an_object_inside_another_can_be_named(target: Write) -> None:
    lines = "class outer:\n    def it(group, asked): return {}"
    assert reply(target(lines, ":outer.it")) == Answer({})


def test_arrays_become_lists() -> None:
    result = {"values": np.array([0.5, 1], np.float32), "n": np.int64(3), "shape": (2, np.int64(1))}
    outcome = answer(lambda _group, _asked: result, "quant", {})
    assert outcome == {"result": {"values": [0.5, 1.0], "n": 3, "shape": [2, 1]}}


def test_the_output_of_a_harness_is_on_standard_error(
    target: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    reply(target("print('loading')\ndef it(group, asked):\n    print('thinking')\n    return {}"))
    assert capsys.readouterr() == ("", "loading\nthinking\n")


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("raise ValueError('no')", r"ValueError: no \(module_\d+\.py, line 2\)"),
        ("raise SystemExit(3)", r"SystemExit: 3 \("),
        ("return [1]", "run gave list, not a dictionary"),
        ("return None", "run gave NoneType, not a dictionary"),
        ("it.value = it.__dict__\n    return it.__dict__", "RecursionError: "),
    ],
)
def test_an_exception_of_a_function_is_named(lines: str, problem: str, target: Write) -> None:
    broken = reply(target(f"def it(group, asked):\n    {lines}"))
    assert isinstance(broken, HarnessError)
    assert re.search(problem, broken.message)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("import no_such_library", "No module named 'no_such_library'; install what is missing"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("other = 1", "there is no it in module_"),
        ("it = 1", "is a int; it must have run"),
        ("class it:\n    def __init__(self): raise OSError('no GPU')", "does not start: OSError"),
        ("class it:\n    def start(self): return {}\n    def run(self): ...", "implementation"),
        (
            "class it:\n    def start(self): return 3\n    def run(self): ...",
            "must give a dictionary",
        ),
    ],
)
def test_an_entry_point_that_cannot_be_used_is_refused(
    lines: str, problem: str, target: Write
) -> None:
    with pytest.raises(TargetError) as caught:
        target(lines).start()
    assert problem in str(caught.value)


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(TargetError, match="cannot import 'no_such_module'"):
        EntryPointTarget("no_such_module:it").start()


# --- The interface's errors ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        "from refllm import InvalidInput\ndef it(group, asked): raise InvalidInput('too long')",
        "class Bad(Exception): kind = 'invalid-input'\ndef it(group, asked): raise Bad('too long')",
        # As componentize-py makes them.
        "class Error_InvalidInput:\n    value = 'too long'\n"
        "class Err(Exception): value = Error_InvalidInput()\n"
        "def it(group, asked): raise Err",
    ],
    ids=["refllm's", "one with a kind", "the SDK's"],
)
def test_an_error_of_the_interface_is_a_result(lines: str, target: Write) -> None:
    refused = Answer({"error": {"kind": "invalid-input", "message": "too long"}})
    assert reply(target(lines), case("api")) == refused


# --- SDKs ----------------------------------------------------------------------------------------

SDK = """
from types import SimpleNamespace as Record
class InferencingParams(Record): pass
def infer_with_options(model, prompt, options):
    text = f"{model} {prompt} {vars(options) if options else options}"
    return Record(text=text, usage=Record(prompt_token_count=1, generated_token_count=2))
def generate_embeddings(model, texts):
    vectors = [[float(len(text))] for text in texts]
    return Record(embeddings=vectors, usage=Record(prompt_token_count=3))
"""
GREEDY = {"model": "m", "prompt": "p", "params": {"temperature": 0.0}, "seed": "0"}


def test_an_sdk_answers_three_groups(target: Write) -> None:
    assert target(SDK, "").start().groups == {"text", "embeddings", "api"}


def test_an_sdk_is_asked_for_a_text_with_its_own_parameters(target: Write) -> None:
    usage = {"prompt_token_count": 1, "generated_token_count": 2}
    result = {"text": "m p {'temperature': 0.0}", "usage": usage}
    assert reply(target(SDK, ""), case("text", **GREEDY)) == Answer(result)


@pytest.mark.parametrize(
    ("asked", "key", "expected"),
    [
        ({"operation": "infer", "model": "m", "prompt": "p"}, "text", "m p None"),
        (
            {"operation": "infer", "model": "m", "prompt": "p", "params": {"top_p": float("nan")}},
            "text",
            "m p {'top_p': nan}",
        ),
        (
            {"operation": "generate_embeddings", "model": "m", "texts": ["a", "bc"]},
            "embeddings",
            [[1.0], [2.0]],
        ),
    ],
)
def test_an_sdk_is_asked_as_an_application_does(
    asked: dict[str, Any], key: str, expected: object, target: Write
) -> None:
    answered = reply(target(SDK, ""), case("api", **asked))
    assert isinstance(answered, Answer)
    assert answered.result[key] == expected


@pytest.mark.parametrize(
    ("group", "asked", "reason"),
    [
        ("embeddings", {"model": "m", "texts": [], "max_tokens": 8}, "take no max_tokens"),
        ("api", {"model": "m", "prompt": "p", "setup": {"enabled": False}}, "cannot be set up"),
    ],
)
def test_cases_that_no_sdk_can_answer_are_not_applicable(
    group: Group, asked: dict[str, Any], reason: str, target: Write
) -> None:
    not_asked = reply(target(SDK, ""), case(group, **asked))
    assert isinstance(not_asked, NotApplicable)
    assert reason in not_asked.reason


def test_an_sdk_cannot_be_asked_about_parts_and_a_harness_can(target: Write) -> None:
    asked = case("ops", op="softmax")
    sdk, harness = target(SDK, ""), target(HARNESS)
    sdk.start()
    harness.start()
    assert isinstance(sdk.not_applicable(asked), NotApplicable)
    assert harness.not_applicable(asked) is None


def test_half_an_sdk_skips_the_other_half(target: Write) -> None:
    half = target("class it:\n    def infer_with_options(self, model, prompt, options): ...")
    skipped = reply(half, case("embeddings", model="m", texts=[]))
    assert isinstance(skipped, Skipped)
    assert "no generate_embeddings" in skipped.reason
