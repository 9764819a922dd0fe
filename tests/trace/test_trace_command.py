"""`refllm trace`: what it writes, prints and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from refllm.trace import open_trace
from tests.support.commands import answer, refllm


def test_the_command_writes_a_trace_and_prints_its_counts(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    printed = answer("trace", "tiny-chat", "Once upon a time", "--steps", "2", "--to", file)
    trace = open_trace(file)
    assert [call.n_tokens for call in trace.metadata.calls] == [5, 1]
    n_values = sum(len(call.values) for call in trace.metadata.calls)
    size = file.stat().st_size
    assert printed == f"{file}: {n_values} values of 6 tokens in 2 calls, {size:,} bytes\n"


def test_options_are_those_of_infer(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    options = ("--temperature", "0", "--seed", "7", "--profile", "llama.cpp", "--threads", "1")
    answer("trace", "tiny-chat", "Once", "--steps", "5", "--to", file, *options)
    metadata = open_trace(file).metadata
    assert (metadata.params["temperature"], metadata.seed) == (0, 7)
    assert (metadata.profile, metadata.draws[0].stages) == ("llama.cpp", ("argmax",))
    text = answer("infer", "tiny-chat", "Once", "--max-tokens", "5", "--temperature", "0")
    drawn = metadata.texts[0].pieces[metadata.texts[0].n_given :]
    assert "".join(drawn).replace("▁", " ").strip() == text.strip()


def test_int8_is_another_run(tmp_path: Path) -> None:
    for numerics in ("exact", "int8"):
        answer("trace", "tiny-chat", "Once", "--numerics", numerics, "--to", tmp_path / numerics)
    exact, int8 = (open_trace(tmp_path / numerics) for numerics in ("exact", "int8"))
    assert (exact.metadata.numerics, int8.metadata.numerics) == ("exact", "int8")
    np.testing.assert_array_equal(exact.value("inp_embd"), int8.value("inp_embd"))
    assert (exact.value("Qcur-0") != int8.value("Qcur-0")).any()


def test_several_texts_of_an_encoder_are_traced(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    printed = json.loads(answer("trace", "tiny-embed", "A cat", "Dogs", "--to", file, "--json"))
    ids = [list(text.token_ids) for text in open_trace(file).metadata.texts]
    assert (printed["token_ids"], printed["n_calls"], printed["n_drawn"]) == (ids, 2, 0)


def test_a_prompt_can_come_from_standard_input(tmp_path: Path) -> None:
    answer("trace", "tiny-chat", "-", "--to", tmp_path / "run", stdin="Once")
    assert open_trace(tmp_path / "run").metadata.texts[0].text == "Once"


def test_an_existing_file_needs_force(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    file.write_text("mine")
    result = refllm("trace", "tiny-chat", "Once", "--to", file)
    assert (result.exit_code, file.read_text()) == (1, "mine")
    assert result.stderr == f"refllm: invalid-input: {file} exists already; --force replaces it\n"
    answer("trace", "tiny-chat", "Once", "--to", file, "--force")
    assert open_trace(file).metadata.model == "tiny-chat"


def test_what_cannot_be_traced_is_refused_before_a_file_appears(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    for arguments, reason in (
        (("tiny-chat", "a", "b"), "tiny-chat continues one text; give one prompt, not a list"),
        (("tiny-chat", "a", "--only", "Q"), "no value has a name like Q; the names are"),
        (("no-such-model", "a"), "no-such-model"),
        (("tiny-chat", "a", "--top-p", "nan"), "top_p must be a finite float32"),
        (("tiny-chat", "a", "--seed", "-1"), "seed must be a whole number"),
    ):
        result = refllm("trace", *arguments, "--to", file)
        assert result.exit_code == 1
        assert reason in result.stderr
        assert list(tmp_path.iterdir()) == []
    assert refllm("trace", "tiny-chat", "a").exit_code == 2
    assert refllm("trace", "tiny-chat", "a", "--steps", "-1", "--to", file).exit_code == 2
