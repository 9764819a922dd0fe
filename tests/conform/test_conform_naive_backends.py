"""What authors of small backends read first: each fault, the worst first, and what to do next."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from refllm.api import InferencingParams
from refllm.cli import app
from refllm.engine import LocalEngine
from refllm.models.bundled import ROOT
from tests.support.servers import listening

BACKENDS = Path(__file__).parent / "naive_backends"
SCREEN = 25  # lines of a terminal


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed; it runs a naive backend")
    return found


def conform(*arguments: str) -> tuple[int, str]:
    """The exit code and the report of a terminal."""
    result = CliRunner().invoke(app, ["conform", *arguments])
    return result.exit_code, result.stdout


def headings(report: str) -> list[str]:
    """The causes by what they do and what they say, as far as a first screen shows them."""
    screen = "\n".join(report.splitlines()[:SCREEN])
    found = re.findall(r"^ ?\d+  ([A-Z ]+) in \d+ cases?(?:, .*)?\n    (.*)", screen, re.MULTILINE)
    return [f"{consequence}: {cause}" for consequence, cause in found]


# --- A server of 30 lines in JavaScript ----------------------------------------------------------


@contextmanager
def node_server(script: str) -> Iterator[str]:
    command = [program("node"), str(BACKENDS / script)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def test_answers_that_change_are_the_first_cause() -> None:
    with node_server("random.js") as url:
        code, report = conform(
            url, "--protocol", "openai", "--group", "text", "--group", "embeddings"
        )
    assert code == 1
    assert "CAUSES, the first makes the others uncertain\n" in report
    first, second, third, *_ = headings(report)
    assert first.startswith("ANSWERS CHANGE: The same request gets another ")
    assert second.startswith("ANSWERS CHANGE: The same request gets other numbers")
    assert third.startswith("WRONG TEXT: The text begins with the prompt")


def test_an_echo_hides_neither_ignored_options_nor_wrong_counts() -> None:
    with node_server("random.js") as url:
        _, report = conform(url, "--protocol", "openai", "--group", "text")
    assert "The text begins with the prompt" in report
    assert "More tokens are generated than max_tokens allows" in report
    assert "The prompt's count is too small" in report


def test_the_request_that_ended_a_server_is_named() -> None:
    with node_server("random.js") as url:
        code, report = conform(url, "--protocol", "openai", "--only", "api/http-*")
    assert code == 1
    ended = "NO ANSWER: the server ended when it was asked api/http-json-cut-off: nothing"
    assert headings(report)[0].startswith(ended)
    assert report.count("NO ANSWER in") == 1  # of what came later it is the cause, too
    assert "--only \\\n    api/http-json-cut-off\n" in report


# --- A server of 30 lines in Python, with a model ------------------------------------------------

Answers = Callable[[LocalEngine, str, Mapping[str, Any]], Mapping[str, Any]]


@contextmanager
def python_server(answers: Answers) -> Iterator[str]:
    """A server of Spin's protocol and OpenAI's completions around refllm's engine."""
    engine = LocalEngine(roots=[ROOT], threads=1)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, {})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            try:
                self._answer(200, answers(engine, self.path, asked))
            except Exception as error:  # noqa: BLE001 - whatever it is, the other end wants to know
                self._answer(500, f"runtime-error: {type(error).__name__}: {error}")

        def _answer(self, status: int, value: object) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing on standard error."""

    with listening(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as port:
        yield f"http://127.0.0.1:{port}"


SEEDS = itertools.count()


def echo_and_draw(engine: LocalEngine, _path: str, asked: Mapping[str, Any]) -> Mapping[str, Any]:
    """OpenAI's completions: the prompt before the text, drawn whatever the temperature is."""
    engine.seed = next(SEEDS)
    params = InferencingParams(max_tokens=asked["max_tokens"], repeat_penalty=1.0)
    result = engine.infer(asked["model"], asked["prompt"], params)
    usage = {
        "prompt_tokens": result.usage.prompt_token_count,
        "completion_tokens": result.usage.generated_token_count,
    }
    return {"choices": [{"text": asked["prompt"] + result.text}], "usage": usage}


def test_an_echo_sampling_and_changing_answers_are_all_named() -> None:
    with python_server(echo_and_draw) as url:
        code, report = conform(url, "--protocol", "openai", "--only", "text/greedy-*")
    assert code == 1
    first, *others = headings(report)
    assert first.startswith("ANSWERS CHANGE: The same request gets another answer")
    assert {other[:40] for other in others} >= {
        "WRONG TEXT: The text begins with the prompt: return only what was generated."[:40],
        "WRONG TEXT: The text is drawn where it must be the most likely one"[:40],
    }


def latin_1(engine: LocalEngine, path: str, asked: Mapping[str, Any]) -> Mapping[str, Any]:
    """Spin's protocol: prompts in Latin-1 only, vectors that are too long, counts without BOS."""
    if path == "/embed":
        found = engine.generate_embeddings(asked["model"], asked["input"])
        vectors = [[2.5 * float(x) for x in vector] for vector in found.embeddings]
        usage = {"promptTokenCount": found.usage.prompt_token_count}
        return {"embeddings": vectors, "usage": usage}
    asked["prompt"].encode("latin-1")
    params = InferencingParams(
        max_tokens=asked["options"]["maxTokens"],
        temperature=asked["options"]["temperature"],
        repeat_penalty=asked["options"]["repeatPenalty"],
        repeat_penalty_last_n_token_count=asked["options"]["repeatPenaltyLastNTokenCount"],
    )
    result = engine.infer(asked["model"], asked["prompt"], params)
    usage = {
        "promptTokenCount": result.usage.prompt_token_count - 1,
        "generatedTokenCount": result.usage.generated_token_count,
    }
    return {"text": result.text, "usage": usage}


def test_a_repeated_exception_is_grouped_and_the_worst_cause_is_first() -> None:
    only = ("text/emoji", "text/cjk", "text/accents", "text/nothing", "text/end-token")
    asked = [argument for case in (*only, "embeddings/one-*") for argument in ("--only", case)]
    with python_server(latin_1) as url:
        code, report = conform(url, *asked)
    assert code == 1
    assert headings(report) == [
        "WRONG NUMBERS: The vectors are not scaled to length 1: divide each by its length.",
        "REFUSED: Valid requests end in the error runtime-error: UnicodeEncodeError: 'latin-1'",
        "WRONG COUNTS: The prompt's count is one too small: BOS belongs to the prompt.",
    ]
    assert "REFUSED in 3 cases" in report


def test_a_second_fault_is_named_where_the_first_is_taken_away(tmp_path: Path) -> None:
    def echo(engine: LocalEngine, path: str, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        result = latin_1(engine, path, asked)
        return {**result, "text": asked["prompt"] + result["text"]}

    path = tmp_path / "report.json"
    with python_server(echo) as url:
        conform(url, "--only", "text/greedy-story", "--json", str(path))
    [case] = json.loads(path.read_text("utf-8"))["cases"]
    assert [finding["consequence"] for finding in case["findings"]] == [
        "wrong text",
        "wrong counts",
    ]
    assert "begins with the prompt" in case["findings"][0]["cause"]
    assert "BOS belongs to the prompt" in case["findings"][1]["cause"]


# --- A harness in Perl ---------------------------------------------------------------------------


def test_repeated_ends_of_a_harness_are_grouped_before_wrong_numbers() -> None:
    harness = f"{program('perl')} {BACKENDS / 'unsigned.pl'}"
    code, report = conform(harness, "--group", "quant", "--group", "sampling")
    assert code == 1
    lost, wrong = headings(report)
    assert lost.startswith("NO ANSWER: the harness ended with exit code ")
    assert wrong == "WRONG NUMBERS: Q8_0: the values are read as unsigned bytes. They are signed."
    assert "does not list" not in report  # only of what was asked for


def test_groups_a_harness_could_list_are_skipped_and_impossible_ones_not_applicable(
    tmp_path: Path,
) -> None:
    harness = f"{sys.executable} {Path(__file__).parents[2] / 'docs/harnesses/harness.py'}"
    path = tmp_path / "report.json"
    conform(harness, "--group", "ops", "--group", "api", "--json", str(path))
    cases = json.loads(path.read_text("utf-8"))["cases"]
    found = {(case["group"], case["status"], case["id"].startswith("api/http-")) for case in cases}
    assert found == {
        ("ops", "skipped", False),
        ("api", "skipped", False),
        ("api", "not applicable", True),
    }
