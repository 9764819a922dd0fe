"""docs/conformance.md says what is true: commands are run, names are there."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from refllm.conform.case import GROUPS
from refllm.conform.targets.protocol import VERSION
from refllm.conform.verdict import CONSEQUENCES
from tests.conform.test_conform_naive_backends import BACKENDS, conform, program
from tests.conftest import PROJECT
from tests.support.pages import COMMAND, blocks, matches, run

PAGE = (PROJECT / "docs" / "conformance.md").read_text("utf-8")


@pytest.mark.parametrize(("command", "shown"), COMMAND.findall("\n".join(blocks("console", PAGE))))
def test_a_command_of_the_page_prints_what_it_shows(
    command: str, shown: str, tmp_path: Path
) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    printed = run(command, tmp_path, os.environ | {"PATH": path})
    assert matches(shown, printed), printed


def test_the_page_names_every_group_and_every_option() -> None:
    assert [group for group in GROUPS if f"| [{group}](../golden/{group}) |" not in PAGE] == []
    source = (PROJECT / "refllm" / "cli" / "conform.py").read_text("utf-8")
    signature = source.split("def conform(")[1].split(") -> None:")[0]
    names = [name.replace("_", "-") for name in re.findall(r"^    (\w+): ", signature, re.M)]
    options = [f"--{name}" for name in names if name != "target"]
    assert len(options) == 16
    assert [option for option in options if option not in PAGE] == []


def test_the_page_has_every_consequence_the_worst_first() -> None:
    table = PAGE.partition("| consequence | what it is |\n|---|---|\n")[2].partition("\n\n")[0]
    assert tuple(row.split(" | ")[0].strip("| ") for row in table.splitlines()) == CONSEQUENCES


def test_the_causes_of_the_page_are_those_that_such_a_harness_is_told() -> None:
    [shown] = [block for block in blocks("text", PAGE) if block.startswith("CAUSES")]
    harness = f"{program('perl')} {BACKENDS / 'unsigned.pl'}"
    _, report = conform(harness, "--group", "quant")
    assert f"\n\n{shown}\n" in report


def test_the_messages_of_the_page_are_those_of_the_protocol() -> None:
    schema = json.loads(
        (PROJECT / "refllm" / "conform" / "protocol.schema.json").read_text("utf-8")
    )
    validator = jsonschema.Draft202012Validator(schema)
    messages = re.findall(r"^[→←] (.*)$", blocks("text", PAGE)[0], re.M)
    assert len(messages) == 5
    for message in messages:
        parsed: Any = json.loads(message.replace(", …]", "]"))
        validator.validate(parsed)
        assert parsed.get("version", VERSION) == VERSION


@pytest.mark.parametrize("name", ["harness.py", "harness.js"])
def test_an_example_harness_is_below_60_lines(name: str) -> None:
    assert len((PROJECT / "docs" / "harnesses" / name).read_text("utf-8").splitlines()) < 60
