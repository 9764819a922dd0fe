"""`refllm diff`: its sides, what it prints, and its exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from refllm.engine import LocalEngine
from refllm.trace import Program, open_trace, record, report
from refllm.trace.faults.llama import NETWORK_FAULTS
from tests.conftest import HUNG_SECONDS
from tests.support import planted as planted_module
from tests.support.commands import answer, refllm
from tests.support.model_files import tiny_llama_gguf
from tests.support.planted import planted_llama, write_trace

SCHEMA = json.loads(
    Path(report.__file__).with_name("comparison.schema.json").read_text(encoding="utf-8")
)
KINDS = ("tokens", "first", "draw")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("run") / "run.safetensors"
    answer("trace", "tiny-chat", "Once upon a time", "--to", file)
    return file


def planted(name: str, run: Path, to: Path) -> Path:
    fault = next(fault for fault in NETWORK_FAULTS if fault.name == name)
    trace = open_trace(run)
    planted_llama(to, trace.metadata.texts[0].token_ids[:5], fault.network)
    return to


def test_numerics_differ_at_the_first_product() -> None:
    result = refllm("diff", "tiny-chat", "tiny-chat@int8")
    assert result.exit_code == 1
    assert "numerics: exact in A, int8 in B" in result.stdout
    assert "First difference: Qcur-0, layer 0, the prompt" in result.stdout
    assert "products of int8 (exactly): Activations are quantized" in result.stdout


def test_a_profile_alone_differs_in_nothing() -> None:
    result = refllm("diff", "tiny-chat", "tiny-chat@spin-local")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "profile: contract in A, spin-local in B" in result.stdout
    assert "67 values: 67 are equal in every bit, 0 are not\nNo difference\n" in result.stdout


def test_a_model_is_run_with_the_text_of_the_trace(run: Path) -> None:
    for sides in ((run, "tiny-chat"), ("tiny-chat", run)):
        output = answer("diff", *sides)
        assert "67 values: 67 are equal in every bit" in output


def test_a_model_is_run_with_the_seed_the_profile_and_the_parameters_of_the_trace(
    tmp_path: Path,
) -> None:
    file = tmp_path / "run.safetensors"
    options = ("--seed", "5", "--profile", "llama.cpp", "--top-k", "3", "--steps", "4")
    answer("trace", "tiny-chat", "Once upon", "--to", file, *options)
    assert "268 values: 268 are equal in every bit" in answer("diff", file, "tiny-chat")


def test_a_model_is_run_with_the_token_ids_of_a_trace_without_text(
    run: Path, tmp_path: Path
) -> None:
    other = planted("RoPE missing", run, tmp_path / "b.safetensors")
    result = refllm("diff", other, "tiny-chat")
    assert result.exit_code == 1
    assert "A does not follow from its inputs" in result.stdout


def test_a_planted_fault_is_named_as_text_json_and_html(run: Path, tmp_path: Path) -> None:
    other = planted("GQA heads by modulo", run, tmp_path / "b.safetensors")
    page = tmp_path / "diff.html"
    result = refllm("diff", run, other, "--json", "--html", page)
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    jsonschema.validate(found, SCHEMA)
    assert found["first"]["name"] == "kq_soft_max-0"
    assert found["first"]["causes"][0]["name"] == "GQA heads by modulo"
    assert found["is_different"] is True
    text = page.read_text("utf-8")
    assert "GQA heads by modulo (exactly)" in text
    assert text.count('class="bar"') == 5
    assert not re.search(r'(src|href)="', text)
    assert str(other) in text


def test_a_trace_of_a_prompt_in_parts_is_compared_with_the_model(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    record("tiny-chat", "Once upon a time", to=file, prompt_calls=[2, 2])
    for sides in ((file, "tiny-chat"), ("tiny-chat", file)):
        assert "201 values: 201 are equal in every bit" in answer("diff", *sides)


def test_each_kind_of_difference_is_as_the_published_schema_has_it(tmp_path: Path) -> None:
    seeds = [tmp_path / f"{seed}.safetensors" for seed in (0, 3)]
    for seed, file in zip((0, 3), seeds, strict=True):
        answer("trace", "tiny-chat", "Once upon a time", "--to", file, "--seed", str(seed))
    other = tmp_path / "tokens.safetensors"
    answer("trace", "tiny-chat", "Twice upon a time", "--to", other)
    short = tmp_path / "shape.safetensors"
    write_trace(
        short,
        [{"inp_embd": np.full((5, 100), np.nan)}],
        architecture="llama",
        model="x",
        texts=open_trace(seeds[0]).metadata.texts,
    )
    found = {
        key: json.loads(refllm("diff", seeds[0], file, "--json").stdout)
        for key, file in (
            ("none", seeds[0]),
            ("draw", seeds[1]),
            ("tokens", other),
            ("first", short),
        )
    }
    assert {key: [k for k in KINDS if each[k] is not None] for key, each in found.items()} == {
        "none": [],
        "draw": ["draw"],
        "tokens": ["tokens"],
        "first": ["first"],
    }
    for each in found.values():
        jsonschema.validate(each, SCHEMA)


def test_a_bert_is_compared_by_its_vectors() -> None:
    result = refllm("diff", "tiny-embed", "tiny-embed@spin-local", "--prompt", "A cat sat.")
    assert result.exit_code == 1
    assert "First difference: ffn_gelu-0, layer 0, text 0" in result.stdout
    assert "tanh GELU (exactly)" in result.stdout


def test_control_characters_of_a_trace_do_not_reach_the_terminal(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Program(name="\x1b[2J\x1b]0;title\x07", version="1\n2")
    monkeypatch.setattr(planted_module, "PROGRAM", program)
    other = planted("RoPE missing", run, tmp_path / "b.safetensors")
    output = refllm("diff", run, other).stdout
    assert "\\x1b[2J\\x1b]0;title\\x07 1\\n2 in B\n" in output
    assert "\x1b" not in output


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_an_error_about_standard_output(run: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        process = subprocess.run(
            [sys.executable, "-m", "refllm", "diff", run, run],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            timeout=HUNG_SECONDS,
        )
    assert process.returncode == 2
    expected = b"refllm: runtime-error: standard output: No space left on device\n"
    assert process.stderr.endswith(expected)


def test_a_page_that_exists_is_replaced_with_force_alone(run: Path, tmp_path: Path) -> None:
    page = tmp_path / "diff.html"
    page.write_text("old")
    result = refllm("diff", run, run, "--html", page)
    assert (result.exit_code, result.stdout, page.read_text()) == (2, "", "old")
    assert f"{page} exists already; --force replaces it" in result.stderr
    answer("diff", run, run, "--html", page, "--force")
    assert "No difference" in page.read_text("utf-8")


def test_other_processes_compile_the_kernels_of_a_side(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    class Recorded(LocalEngine):
        def __init__(self, **options: Any) -> None:
            asked.append(options["compiles_apart"])
            super().__init__(**options)

    monkeypatch.setattr("refllm.trace.sides.LocalEngine", Recorded)
    answer("diff", run, "tiny-chat")
    assert asked == [True]


def test_wrong_sides_are_refused(run: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent.safetensors"
    wrong = tmp_path / "wrong"
    wrong.write_text("no trace")
    for sides, code, words in (
        (("tiny-chat", "tiny-chat@int4"), 2, "behind @ is one of exact, int8, contract"),
        (("tiny-chat", absent), 2, "no such file; to make it: refllm trace MODEL PROMPT"),
        (("tiny-chat", wrong), 2, f"{wrong}: is no trace"),
        (("tiny-chat", "no-such-model"), 2, "no-such-model"),
        ((run, run, "--prompt", "x"), 2, "both are traces"),
        ((run, "tiny-chat", "--steps", "2"), 2, "the prompt and the steps of the trace"),
        (("tiny-chat",), 2, "Missing argument"),
    ):
        result = refllm("diff", *sides)
        assert result.exit_code == code
        assert words in " ".join(result.stderr.replace("│", "").split())


def test_networks_of_two_kinds_are_refused(run: Path) -> None:
    result = refllm("diff", "tiny-chat", "tiny-embed")
    assert result.exit_code == 2
    assert "tiny-chat is of a llama and tiny-embed of a bert; these networks" in result.stderr


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("tiny-embed", "it is a bert, and the trace is of a llama"),
        ("other.gguf", "its n_embd is 32, and that of the trace is 256"),
    ],
)
def test_weights_of_another_model_are_refused(
    model: str, words: str, run: Path, tmp_path: Path
) -> None:
    tiny_llama_gguf(tmp_path / "other.gguf")
    path = tmp_path / model if model.endswith(".gguf") else model
    result = refllm("diff", run, run, "--model", path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{path} is not the model of the trace: {words}" in result.stderr


def test_parameters_of_a_trace_that_no_run_can_have_are_named(run: Path, tmp_path: Path) -> None:
    trace = open_trace(run)
    other = tmp_path / "b.safetensors"
    values = {n: trace.value(n).astype(np.float64) for n in trace.metadata.calls[0].values}
    write_trace(
        other,
        [values],
        architecture="llama",
        model="tiny-chat",
        texts=trace.metadata.texts,
        params={"max_tokens": 1e12},
    )
    result = refllm("diff", other, "tiny-chat")
    assert result.exit_code == 2
    assert "the params of the trace beside tiny-chat: max_tokens must be" in result.stderr
