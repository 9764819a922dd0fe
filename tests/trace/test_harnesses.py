"""The harnesses of docs/harnesses/ trace real engines, where these are installed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from refllm.export import export
from refllm.models.find import default_roots, find_model
from refllm.trace import open_trace, record
from refllm.trace.compare import compare
from refllm.trace.sides import formulas_for
from tests.support.exported_models import MODELS
from tools.record_traces import ENGINES, PROJECT

TEXTS = ("the cafe playing. a b c ab the cafe playing a b c d e f g", "The  Café")
PACKAGES = {"llama_cpp": "llama-cpp-python", "sentence_transformers": "sentence-transformers"}
FAMILY = ("tiny-embed", "roberta", "camembert", "distilbert", "mpnet")


@pytest.mark.parametrize("script", ["trace_llama_cpp.py", "trace_transformers.py"])
def test_a_harness_names_every_package_that_it_needs(script: str) -> None:
    module = ast.parse((PROJECT / "docs" / "harnesses" / script).read_text("utf-8"))
    imported: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            imported.add(node.module.partition(".")[0])
    needed = imported - sys.stdlib_module_names
    _, _, sentence = (ast.get_docstring(module) or "").partition("\nNeeds ")
    named = sentence.partition(".")[0]
    assert {"numpy", "safetensors"} < needed
    for name in needed:
        assert PACKAGES.get(name, name) in named


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILY)
def test_an_encoder_of_transformers_computes_the_values_of_refllm(
    name: str, tmp_path: Path
) -> None:
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    if name == "tiny-embed":
        source = find_model(name, default_roots())
        model = export(source, to=tmp_path, name="model", layout="hf")
    else:
        (tmp_path / "source").mkdir()
        model = MODELS[name].make(tmp_path / "source")
    assert_alike(model, tmp_path, n_values=2 * 26)


@pytest.mark.slow
def test_minilm_in_transformers_computes_the_values_of_refllm(
    minilm_dir: Path, tmp_path: Path
) -> None:
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    assert_alike(minilm_dir, tmp_path, n_values=2 * 70)


def assert_alike(model: Path, folder: Path, *, n_values: int) -> None:
    script = PROJECT / "docs" / "harnesses" / ENGINES["sentence-transformers"].script
    made = folder / "made.safetensors"
    subprocess.run([sys.executable, script, model, *TEXTS, made], check=True)
    right = record(model, TEXTS, to=folder / "right.safetensors")
    found = compare(right, open_trace(made), formulas=formulas_for(right.metadata))
    assert not found.is_different
    assert (found.n_values, found.n_alone, found.n_unbounded) == (n_values, 0, 0)
    assert max(growth.share for growth in found.growth) < 1e-5
