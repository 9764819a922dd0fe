"""A target that is a command: each fault of a harness is an error; no call blocks forever."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from refllm.conform.case import Case, Json
from refllm.conform.reply import Answer, HarnessError, Implementation, Skipped, TargetError
from refllm.conform.targets.command import CommandTarget
from tests.conftest import HUNG_SECONDS
from tests.support.conform_protocol import follows

# What every harness here begins with; HELLO can be changed before it is printed.
HEAD = """
import json, os, signal, subprocess, sys, threading
from pathlib import Path
HERE = Path(__file__).parent
HELLO = {"version": 1, "implementation": {"name": "test"}, "groups": ["quant"]}
def ask():
    return json.loads(sys.stdin.readline() or '{"cmd": "stop"}')
def say(**message):
    print(json.dumps(message), flush=True)
def forever():
    threading.Event().wait()
"""
STARTED = "ask(); say(**HELLO); asked = ask()\n"
ANSWERS = """
while (asked := ask())["cmd"] != "stop":
    say(**(HELLO if asked["cmd"] == "start" else {"id": asked["id"], "result": asked["input"]}))
"""

StartOf = Callable[..., CommandTarget]


def case(name: str = "a", asked: Json | None = None) -> Case:
    return Case(
        id=f"quant/{name}", group="quant", proves="-", clause="-", input=asked or {}, expected={}
    )


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[StartOf]:
    """A target whose harness is HEAD and these lines; stopped after the test."""
    targets: list[CommandTarget] = []

    def target(lines: str, *, run_seconds: float = HUNG_SECONDS) -> CommandTarget:
        script = tmp_path / "harness.py"
        script.write_text(HEAD + lines, "utf-8")
        command = [sys.executable, str(script)]
        # One that ends by itself gets the time that it takes, however busy the machine is.
        end_seconds = 0.5 if "forever()" in lines else HUNG_SECONDS
        targets.append(CommandTarget(command, run_seconds=run_seconds, end_seconds=end_seconds))
        return targets[-1]

    yield target
    for each in targets:
        each.stop()


def broken_message(target: CommandTarget, asked: Case | None = None) -> str:
    reply = target.run(asked or case())
    assert isinstance(reply, HarnessError)
    return reply.message


# --- What goes well ------------------------------------------------------------------------------


def test_a_harness_describes_itself(harness: StartOf) -> None:
    hello = """
HELLO["implementation"] = {
    "name": "mine", "version": "2", "language": "Zig", "details": {"libc": "musl"}
}
HELLO["draws_as_refllm"] = True
"""
    assert harness(hello + ANSWERS).start() == Implementation(
        name="mine",
        version="2",
        language="Zig",
        groups=frozenset({"quant"}),
        draws_as_refllm=True,
        details={"libc": "musl"},
    )


def test_a_case_s_input_arrives_with_json_s_numbers(harness: StartOf) -> None:
    target = harness(ANSWERS)
    target.start()
    asked = {"values": [0.1, float("nan"), float("-inf")], "text": "ü\ud800\n"}
    arrived = {"values": [0.1, "nan", "-inf"], "text": "ü\ud800\n"}
    assert target.run(case(asked=asked)) == Answer(arrived)


def test_a_skip_and_an_error_have_the_harness_s_text(harness: StartOf) -> None:
    target = harness(
        STARTED + "say(id=asked['id'], skip='too big'); say(id=ask()['id'], error='!')"
    )
    target.start()
    assert target.run(case()) == Skipped("too big")
    assert target.run(case()) == HarnessError("!")


def test_every_message_to_a_harness_follows_the_schema(harness: StartOf, tmp_path: Path) -> None:
    target = harness(
        "heard = open(HERE / 'heard', 'w')\n"
        "inner = ask\n"
        "def ask():\n"
        "    message = inner()\n"
        "    print(json.dumps(message), file=heard, flush=True)\n"
        "    return message\n" + ANSWERS
    )
    target.start()
    target.run(case(asked={"n": 1}))
    target.stop()
    messages = [json.loads(line) for line in (tmp_path / "heard").read_text("utf-8").splitlines()]
    assert [message["cmd"] for message in messages] == ["start", "run", "stop"]
    for message in messages:
        assert follows("to_harness", message)


def test_a_command_is_split_as_a_shell_does(tmp_path: Path) -> None:
    script = tmp_path / "with a space.py"
    script.write_text(HEAD + ANSWERS, "utf-8")
    target = CommandTarget(f"'{sys.executable}' '{script}'")
    try:
        assert target.start().name == "test"
    finally:
        target.stop()


# --- What goes wrong in a case -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("sys.exit(3)", "ended with exit code 3 instead of answering run"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL"),
        ("os.close(1); forever()", "closed its standard output"),
        ("print('loading', flush=True)", "not JSON: 'loading'; only answers may go to standard"),
        ("print('[1]', flush=True)", "not a JSON object: '[1]'"),
        ("print('{\"id\": NaN}', flush=True)", "printed NaN, which JSON does not have"),
        ("os.write(1, b'\\xff\\n')", "not UTF-8"),
        ("say(id='quant/b', result={})", "answered 'quant/b' when it was asked 'quant/a'"),
        ("say(result={})", "answered nothing when it was asked 'quant/a'"),
        ("say(id='quant/a')", "must give one of result, skip and error; it gave none of them"),
        ("say(id='quant/a', result={}, skip='-')", "it gave result, skip"),
        ("say(id='quant/a', result=[])", "a result that is not an object"),
        ("say(id='quant/a', skip='')", "must give a text as skip"),
        ("say(id='quant/a', result={}, ms=3)", "gave ms, which its answer does not have"),
    ],
)
def test_a_malformed_answer_is_shown(lines: str, problem: str, harness: StartOf) -> None:
    target = harness(f"{STARTED}{lines}\nforever()")
    target.start()
    assert problem in broken_message(target)


def test_a_silent_harness_is_given_up(harness: StartOf) -> None:
    target = harness(STARTED + "forever()", run_seconds=0.2)
    target.start()
    assert "did not answer run within 0.2 seconds" in broken_message(target)


def test_a_harness_that_does_not_read_is_given_up(harness: StartOf) -> None:
    target = harness("ask(); say(**HELLO); forever()", run_seconds=0.2)
    target.start()
    more_than_a_pipe_holds = "x" * 1_000_000
    assert "did not answer run" in broken_message(
        target, case(asked={"text": more_than_a_pipe_holds})
    )


def test_the_end_of_standard_error_is_shown(harness: StartOf) -> None:
    target = harness(
        STARTED + "[print('line', i, file=sys.stderr) for i in range(30)]; sys.exit(1)"
    )
    target.start()
    lines = broken_message(target).splitlines()
    assert lines[1] == "Its standard error ends with:"
    assert lines[2:] == [f"  line {i}" for i in range(10, 30)]


# --- Too much ------------------------------------------------------------------------------------

FLOOD = """
def flood(descriptor, line):
    try:
        for _ in range(400):  # far more than a pipe holds
            os.write(descriptor, line * 1000)
        (HERE / "all-written").touch()
    except OSError:
        pass
"""


def test_a_line_over_the_limit_is_refused(
    harness: StartOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refllm.conform.targets.command.MAX_ANSWER_BYTES", 1000)
    target = harness(STARTED + "os.write(1, b'x' * 1001); forever()")
    target.start()
    assert "printed a line of more than 1000 bytes" in broken_message(target)


def test_a_harness_that_prints_without_end_blocks_and_can_be_ended(
    harness: StartOf, tmp_path: Path
) -> None:
    n_threads = threading.active_count()
    target = harness(
        FLOOD + STARTED + "say(id=asked['id'], result={}); flood(1, b'{}\\n'); forever()"
    )
    target.start()
    assert target.run(case()) == Answer({})
    # A harness whose output were read on would write everything meanwhile. Only a target that reads
    # too much can fail here, never a slow machine.
    time.sleep(0.3)
    target.stop()
    assert not (tmp_path / "all-written").exists()
    assert threading.active_count() == n_threads


def test_a_second_answer_is_reported_at_the_next_case(harness: StartOf) -> None:
    target = harness(STARTED + "[say(id='quant/a', result={}) for _ in range(2)]; forever()")
    target.start()
    assert target.run(case("a")) == Answer({})
    assert "answered 'quant/a' when it was asked 'quant/b'" in broken_message(target, case("b"))


def test_standard_error_without_end_is_read_and_its_lines_are_cut(
    harness: StartOf, tmp_path: Path
) -> None:
    target = harness(FLOOD + STARTED + "flood(2, b'y'); os.write(2, b'\\nend\\n'); sys.exit(1)")
    target.start()
    assert broken_message(target).splitlines()[2:] == [f"  {'y' * 500}", "  end"]
    assert (tmp_path / "all-written").exists()


def test_an_answer_that_is_nested_too_deep_is_refused(harness: StartOf) -> None:
    nested = "say(id='quant/a', result=json.loads('{\"a\": ' + '[' * 200 + ']' * 200 + '}'))"
    target = harness(f"{STARTED}{nested}; forever()")
    target.start()
    assert "more than 32 deep" in broken_message(target)


# --- After a failure -----------------------------------------------------------------------------

COUNTED = "with open(HERE / 'starts', 'a') as starts: starts.write('x')\n"
DIES_OF_BAD = """
ask(); say(**HELLO)
while (asked := ask())["cmd"] != "stop":
    if asked["id"] == "quant/bad":
        sys.exit(1)
    say(id=asked["id"], result={})
"""


def test_the_next_case_has_a_new_harness(harness: StartOf, tmp_path: Path) -> None:
    target = harness(COUNTED + DIES_OF_BAD)
    target.start()
    replies = [target.run(case(name)) for name in ("good", "bad", "good", "good")]
    assert [type(reply) for reply in replies] == [Answer, HarnessError, Answer, Answer]
    assert replies[1].is_lost  # type: ignore[union-attr]
    assert (tmp_path / "starts").read_text("utf-8") == "xx"


def test_a_harness_that_does_not_start_again_is_not_tried_again(
    harness: StartOf, tmp_path: Path
) -> None:
    only_once = "if (HERE / 'starts').stat().st_size > 1: sys.exit('only once')\n"
    target = harness(COUNTED + only_once + DIES_OF_BAD)
    target.start()
    target.run(case("bad"))
    messages = [broken_message(target, case("good")) for _ in range(2)]
    assert messages[0] == messages[1]
    assert "did not start again" in messages[0]
    assert "only once" in messages[0]
    assert (tmp_path / "starts").read_text("utf-8") == "xx"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups")
def test_a_harness_that_ignores_signals_is_killed_with_its_children(harness: StartOf) -> None:
    n_threads = threading.active_count()
    stubborn = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])
HELLO["implementation"]["details"] = {"pid": str(os.getpid())}
ask(); say(**HELLO); forever()
"""
    target = harness(stubborn)
    pid = int(target.start().details["pid"])
    target.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    # The threads that read its pipes end only when the child, which inherits them, has ended, too.
    assert threading.active_count() == n_threads


# --- What does not even start --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("sys.exit('no GPU')", "ended with exit code 1 instead of answering start"),
        ("sys.exit('no GPU')", "no GPU"),
        ("say(error='no GPU')", "the harness cannot start: no GPU"),
        ("HELLO['version'] = 2; say(**HELLO)", "speaks version 2 of the protocol"),
        ("HELLO['groups'] = ['quants']; say(**HELLO)", "they must be among tokenizer, quant"),
        ("HELLO['implementation'] = {}; say(**HELLO)", "must give a text as name"),
        ("print('hello', flush=True)", "not JSON: 'hello'"),
    ],
)
def test_a_harness_that_does_not_start_is_reported_with_the_reason(
    lines: str, problem: str, harness: StartOf
) -> None:
    with pytest.raises(TargetError) as caught:
        harness(lines).start()
    assert problem in str(caught.value)


def test_a_harness_that_never_starts_is_given_up(tmp_path: Path) -> None:
    script = tmp_path / "harness.py"
    script.write_text(HEAD + "forever()", "utf-8")
    target = CommandTarget([sys.executable, str(script)], start_seconds=0.2, end_seconds=0.5)
    with pytest.raises(TargetError, match=r"did not answer start within 0\.2 seconds"):
        target.start()


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("no-such-program --fast", "cannot start 'no-such-program': No such file"),
        ("", "the command is empty"),
        ("python 'unfinished", "cannot be read: No closing quotation"),
    ],
)
def test_a_command_that_cannot_run_is_refused(command: str, problem: str) -> None:
    with pytest.raises(TargetError, match=problem):
        CommandTarget(command).start()


def test_a_target_can_start_after_a_stop(harness: StartOf) -> None:
    target = harness(ANSWERS)
    target.stop()
    assert target.start().name == "test"
