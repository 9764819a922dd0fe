"""The published hashes: this CPU's kernels give them, other CPUs' kernels do, and the oracle does.

Each run is a process of its own (tools/hash_bits.py), because numba chooses the CPU at its start.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jsonschema
import numpy as np
import pytest

from refllm.kernels.linear import DECODERS
from tests.conftest import PROJECT
from tests.support.other_cpus import (
    CPUS,
    environment_for,
    skip_unless_asked_for,
    skip_unless_runnable,
)
from tests.support.tiny_formats import llama_of_bits, splitmix64

Results: TypeAlias = Mapping[str, Mapping[str, Any]]

FOLDER = PROJECT / "golden" / "bits"
PUBLISHED: Results = {
    result["name"]: result
    for result in json.loads((FOLDER / "hashes.json").read_text(encoding="utf-8"))["results"]
}
OF_STORIES = ["stories260K", "stories260K-greedy"]
OF_MINILM = ["all-MiniLM-L6-v2"]
SHIPPED = ["tiny-chat", "tiny-chat-greedy", "tiny-embed"]
MADE_HERE = [name for name in PUBLISHED if name not in [*OF_STORIES, *OF_MINILM, *SHIPPED]]
AT_HAND = [*MADE_HERE, *SHIPPED]


def computed(
    way: str,
    names: Sequence[str],
    *,
    cpu: str | None = None,
    models: Mapping[str, Path] | None = None,
) -> Results:
    """What the tool prints for these names; `models` are its options that name a file."""
    command = [sys.executable, "-m", "tools.hash_bits", way]
    command += [word for name in names for word in ("--only", name)]
    command += [word for option, path in (models or {}).items() for word in (option, str(path))]
    done = subprocess.run(
        command,
        cwd=PROJECT,
        env=environment_for(cpu),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {result["name"]: result for result in json.loads(done.stdout)}


@pytest.fixture(scope="session")
def stories(data_dir: Path) -> Mapping[str, Path]:
    return {"--stories": data_dir / "stories260K" / "stories260K.gguf"}


@pytest.fixture(scope="module")
def by_this_cpu() -> Results:
    return computed("kernels", AT_HAND)


def test_the_file_keeps_to_its_schema() -> None:
    schema = json.loads((FOLDER / "schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    document = json.loads((FOLDER / "hashes.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(document)


def test_every_format_that_has_a_kernel_has_a_published_hash() -> None:
    assert {f"llama-{name}" for name in DECODERS} == set(MADE_HERE) - {"bert"}


def test_no_two_results_are_the_same() -> None:
    assert len({result["sha256"] for result in PUBLISHED.values()}) == len(PUBLISHED)


def test_the_models_are_made_of_the_published_outputs_of_splitmix64(golden_dir: Path) -> None:
    cases = json.loads((golden_dir / "sampling" / "cases.json").read_text(encoding="utf-8"))
    published = [int(draw["output"]) for draw in cases["uniform"] if draw["seed"] == "1234567"]
    assert len(published) >= 5
    assert splitmix64(1234567, len(published)).tolist() == published


def test_a_model_is_made_the_same_twice(tmp_path: Path) -> None:
    first, second = (llama_of_bits(tmp_path / name, "Q6_K") for name in ("first", "second"))
    assert np.array_equal(np.fromfile(first, np.uint8), np.fromfile(second, np.uint8))


@pytest.mark.parametrize("name", AT_HAND)
def test_this_cpu_gives_the_published_bits(name: str, by_this_cpu: Results) -> None:
    assert by_this_cpu[name] == PUBLISHED[name]


def test_this_cpu_gives_the_published_bits_of_a_trained_model(
    stories: Mapping[str, Path],
) -> None:
    assert computed("kernels", OF_STORIES, models=stories) == only(OF_STORIES)


def test_the_oldest_x86_64_gives_the_published_bits_of_a_trained_model(
    stories: Mapping[str, Path],
) -> None:
    skip_unless_runnable("x86-64")
    assert computed("kernels", OF_STORIES[:1], cpu="x86-64", models=stories) == only(OF_STORIES[:1])


@pytest.mark.network
def test_this_cpu_gives_the_published_bits_of_minilm(minilm_dir: Path) -> None:
    models = {"--minilm": minilm_dir}
    assert computed("kernels", OF_MINILM, models=models) == only(OF_MINILM)


@pytest.mark.slow
@pytest.mark.parametrize("cpu", CPUS)
def test_other_cpus_give_the_published_bits(
    cpu: str, stories: Mapping[str, Path], request: pytest.FixtureRequest
) -> None:
    skip_unless_asked_for(request)
    skip_unless_runnable(cpu)
    names = [*AT_HAND, *OF_STORIES]
    assert computed("kernels", names, cpu=cpu, models=stories) == only(names)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("cpu", CPUS)
def test_other_cpus_give_the_published_bits_of_minilm(
    cpu: str, minilm_dir: Path, request: pytest.FixtureRequest
) -> None:
    skip_unless_asked_for(request)
    skip_unless_runnable(cpu)
    models = {"--minilm": minilm_dir}
    assert computed("kernels", OF_MINILM, cpu=cpu, models=models) == only(OF_MINILM)


@pytest.mark.slow
def test_the_oracle_gives_the_published_bits(
    stories: Mapping[str, Path], request: pytest.FixtureRequest
) -> None:
    skip_unless_asked_for(request)
    names = [*AT_HAND, *OF_STORIES]
    assert computed("oracle", names, models=stories) == only(names)


def only(names: Sequence[str]) -> Results:
    """What is published under these names."""
    return {name: PUBLISHED[name] for name in names}
