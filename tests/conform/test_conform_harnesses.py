"""The example harnesses answer as the page says, and the helper for Python speaks the protocol."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from refllm.conform.case import GROUPS, Case, Group
from refllm.conform.reply import Answer, HarnessError, Reply, Skipped
from refllm.conform.targets.command import CommandTarget
from refllm.conform.targets.harness import Skip, serve
from tests.conftest import PROJECT
from tests.support.conform_protocol import follows

HARNESSES = PROJECT / "docs" / "harnesses"
GREEDY = {
    "repeat_penalty": 2.0,
    "repeat_penalty_last_n_token_count": 64,
    "temperature": 0.0,
    "top_k": 40,
    "top_p": 1.0,
}


def command(harness: str) -> list[str]:
    program = sys.executable if harness.endswith(".py") else shutil.which("node")
    if program is None:
        pytest.skip("node is not installed; it runs the harness in JavaScript")
    return [program, str(HARNESSES / harness)]


def replies(harness: str, group: Group, *asked: Mapping[str, Any]) -> list[Reply]:
    target = CommandTarget(command(harness))
    target.start()
    try:
        return [target.run(case(group, each)) for each in asked]
    finally:
        target.stop()


def case(group: Group, asked: Mapping[str, Any]) -> Case:
    return Case(id=f"{group}/a", group=group, proves="-", clause="-", input=asked, expected={})


def greedy(logits: list[float], previous: list[int], **params: float) -> dict[str, Any]:
    return {"logits": logits, "params": {**GREEDY, **params}, "previous_tokens": previous, "u": 0.0}


@pytest.mark.parametrize("harness", ["harness.py", "harness.js"])
def test_an_example_takes_the_most_likely_token(harness: str) -> None:
    # Token 0 is 1.5 once its logit of 3 is halved, and -2 once its logit of -1 is doubled.
    questions = [
        greedy([3.0, 2.0, 2.0], []),
        greedy([3.0, 2.0, 2.0], [0]),
        greedy([-1.0, -1.5, -3.0], [0, 0]),
        greedy([3.0, 2.0, 2.0], [0, 2], repeat_penalty_last_n_token_count=1),
        greedy([3.0, 2.0, 2.0], [0], repeat_penalty_last_n_token_count=0, repeat_penalty=-1.0),
    ]
    tokens = [Answer({"token": token}) for token in (0, 1, 1, 0, 0)]
    assert replies(harness, "sampling", *questions) == tokens


@pytest.mark.parametrize("harness", ["harness.py", "harness.js"])
def test_an_example_refuses_with_the_interface_s_error(harness: str) -> None:
    [refused] = replies(harness, "sampling", greedy([1.0], [], repeat_penalty=0.0))
    assert isinstance(refused, Answer)
    assert refused.result["error"]["kind"] == "invalid-input"
    assert "repeat_penalty" in refused.result["error"]["message"]


@pytest.mark.parametrize("harness", ["harness.py", "harness.js"])
def test_an_example_decodes_q8_0(harness: str) -> None:
    levels = bytes(range(3)) + bytes([255, 128]) + bytes(27)  # 0, 1, 2, -1, -128, 0 …
    halves = [b"\x00\x38", b"\x01\x80", b"\x00\x7c"]  # 0.5, -2^-24 and infinity
    asked = {"format": "Q8_0", "bytes": b"".join(h + levels for h in halves).hex(), "n": 96}
    [decoded] = replies(harness, "quant", asked)
    assert isinstance(decoded, Answer)
    values = decoded.result["values"]
    assert values[:6] == [0.0, 0.5, 1.0, -0.5, -64.0, 0.0]
    assert values[32:38] == [0.0, -(2**-24), -(2**-23), 2**-24, 2**-17, 0.0]
    assert values[64:70] == ["nan", "inf", "inf", "-inf", "-inf", "nan"]
    assert len(values) == 96


@pytest.mark.parametrize("harness", ["harness.py", "harness.js"])
def test_an_example_skips_the_rest_with_a_reason(harness: str) -> None:
    questions = [greedy([1.0], [], temperature=0.8), greedy([float("nan")], [])]
    skipped = [
        *replies(harness, "sampling", *questions),
        *replies(harness, "quant", {"format": "Q4_0", "bytes": "", "n": 0}),
    ]
    assert [type(reply) for reply in skipped] == [Skipped] * 3


@pytest.mark.parametrize("harness", ["harness.py", "harness.js"])
def test_an_example_is_short_enough_to_read(harness: str) -> None:
    assert len((HARNESSES / harness).read_text("utf-8").splitlines()) < 60


# --- serve ---------------------------------------------------------------------------------------


class Chatty:
    """Prints while it works, and has three answers."""

    def __init__(self) -> None:
        self.is_stopped = False

    def start(self) -> Mapping[str, Any]:
        print("loading")
        return {"implementation": {"name": "chatty"}, "groups": ["quant"]}

    def run(self, _group: str, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        print("thinking")
        if asked["n"] == 1:
            raise Skip("one is too few")
        return {"values": [1 / asked["n"], float("inf")]}

    def stop(self) -> None:
        self.is_stopped = True


def served(harness: object, *messages: Mapping[str, Any]) -> list[Any]:
    sink = io.BytesIO()
    serve(harness, io.BytesIO("\n".join(map(json.dumps, messages)).encode()), sink)
    return [json.loads(line) for line in sink.getvalue().splitlines()]


def test_serve_answers_each_line_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    harness = Chatty()
    replies = served(
        harness,
        {"cmd": "start", "version": 1},
        *({"cmd": "run", "id": str(n), "group": "quant", "input": {"n": n}} for n in (2, 1, 0)),
        {"cmd": "stop"},
        {"cmd": "run", "id": "late", "group": "quant", "input": {"n": 2}},
    )
    assert replies[:3] == [
        {"version": 1, "implementation": {"name": "chatty"}, "groups": ["quant"]},
        {"id": "2", "result": {"values": [0.5, "inf"]}},
        {"id": "1", "skip": "one is too few"},
    ]
    assert replies[3]["error"].startswith("ZeroDivisionError: division by zero (")
    assert len(replies) == 4
    assert all(follows("from_harness", message) for message in replies)
    assert harness.is_stopped
    assert capsys.readouterr() == ("", "loading\nthinking\nthinking\nthinking\n")


def test_a_harness_without_a_description_is_asked_every_group() -> None:
    class Silent:
        def run(self, _group: str, _asked: Mapping[str, Any]) -> Mapping[str, Any]:
            return {}

    [reply] = served(Silent(), {"cmd": "start", "version": 1})
    assert reply == {"version": 1, "implementation": {"name": "Silent"}, "groups": list(GROUPS)}


def test_serve_ends_with_its_input() -> None:
    harness = Chatty()
    assert served(harness) == []
    assert harness.is_stopped


def test_a_harness_that_serves_is_a_command(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(
        "from refllm.conform.targets.harness import serve\n"
        "class Mine:\n"
        "    def start(self): return {'implementation': {'name': 'mine'}, 'groups': ['quant']}\n"
        "    def run(self, group, asked): raise OSError(asked['why'])\n"
        "serve(Mine())\n",
        "utf-8",
    )
    target = CommandTarget([sys.executable, str(script)])
    try:
        assert target.start().name == "mine"
        broken = target.run(case("quant", {"why": "no GPU"}))
        assert broken == HarnessError("OSError: no GPU (mine.py, line 4)")
    finally:
        target.stop()
