"""Every diagnosis of `refllm doctor`, on a project that was broken that way."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from typer.testing import CliRunner

from refllm import NUMERICS_REVISION, doctor
from refllm.cli import app
from refllm.doctor import Finding, examine
from refllm.models.load import load_tokenizer
from refllm.tokenizer.base import Tokenizer
from tests.support.model_files import tiny_bert_folder, tiny_llama_folder, tiny_llama_gguf

LFS_POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    "size 12345\n"
)
WITH_TEMPLATE = {"tokenizer.chat_template": "{{ messages }}"}
MANIFEST = "spin_manifest_version = 2\n[component.hello]\nai_models = [{}]\n"

Break = Callable[[Path], object]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project in which all is well: a llama and a BERT where Spin looks for them."""
    models = tmp_path / ".spin" / "ai-models"
    (models / "llama").mkdir(parents=True)
    tiny_llama_gguf(models / "llama" / "tiny.gguf", metadata=WITH_TEMPLATE)
    tiny_bert_folder(models / "tiny-bert")
    (tmp_path / "spin.toml").write_text(MANIFEST.format('"tiny", "tiny-bert"'))
    return tmp_path


@pytest.fixture(autouse=True)
def _home_without_models(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFLLM_HOME", str(tmp_path_factory.mktemp("home")))


def findings(project: Path, environment: Mapping[str, str] = os.environ) -> list[Finding]:
    return list(examine(project, [project / ".spin" / "ai-models"], environment))


def llama(project: Path) -> Path:
    return project / ".spin" / "ai-models" / "llama" / "tiny.gguf"


def bert(project: Path) -> Path:
    return project / ".spin" / "ai-models" / "tiny-bert"


def llama_folder(project: Path, *, shards: int = 1, flat: bool = False) -> Path:
    """The llama as safetensors, in place of its GGUF."""
    llama(project).unlink()
    models = project / ".spin" / "ai-models"
    return tiny_llama_folder((models if flat else models / "llama") / "tiny", shards=shards)


def rename(project: Path, place: str) -> None:
    (project / ".spin" / "ai-models").rename(project / place)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def test_a_project_without_problems_has_only_ok_findings(project: Path) -> None:
    found = findings(project)
    assert {finding.level for finding in found} == {"ok"}
    models = [finding.what for finding in found if finding.check == "model"]
    assert [what.split(":")[0] for what in models] == ["tiny", "tiny-bert"]


def test_the_numerics_revision_is_named(project: Path) -> None:
    [found] = [finding for finding in findings(project) if finding.check == "numerics"]
    assert found.what == f"revision {NUMERICS_REVISION}; every CPU computes the same bits"


BROKEN: Sequence[tuple[str, str, Break, str, str]] = [
    (
        "misplaced-folder",
        "broken",
        lambda project: rename(project, ".spin/ai_models"),
        "ai_models: models are looked for in",
        "mv",
    ),
    ("misplaced-folder", "broken", lambda project: rename(project, "ai-models"), "", "mkdir -p"),
    ("misplaced-folder", "broken", lambda project: rename(project, "ai_models"), "", "mkdir -p"),
    (
        "misplaced-folder",
        "broken",
        lambda project: (project / "ai_models").mkdir(),
        "ai_models",
        "/* ",
    ),
    (
        "ai-models-folder",
        "warning",
        lambda project: shutil.rmtree(project / ".spin"),
        "there is no",
        "mkdir -p",
    ),
    (
        "manifest",
        "broken",
        lambda project: (project / "spin.toml").write_text("[component"),
        "not valid TOML",
        "edit",
    ),
    (
        "manifest-model",
        "broken",
        lambda project: (project / "spin.toml").write_text(MANIFEST.format('"absent"')),
        "component hello names a model that is not there",
        "put its files into",
    ),
    (
        "manifest-model",
        "broken",
        lambda project: (project / "spin.toml").write_text(MANIFEST.format('"all-minilm-l6-v2"')),
        "all-minilm-l6-v2",
        "refllm models pull all-minilm-l6-v2",
    ),
    (
        "lfs-pointer",
        "broken",
        lambda project: llama(project).write_text(LFS_POINTER),
        "tiny.gguf: a Git LFS pointer",
        "lfs pull",
    ),
    (
        "lfs-pointer",
        "broken",
        lambda project: (bert(project) / "tokenizer.json").write_text(LFS_POINTER),
        "tokenizer.json: a Git LFS pointer",
        "lfs pull",
    ),
    (
        "missing-index",
        "broken",
        lambda project: (llama_folder(project, shards=2) / "model.safetensors.index.json").unlink(),
        "model.safetensors.index.json",
        "fetch model.safetensors.index.json",
    ),
    ("damaged-file", "broken", lambda project: truncate(llama(project)), "tiny.gguf", "again"),
    (
        "damaged-file",
        "broken",
        lambda project: truncate(bert(project) / "model.safetensors"),
        "model.safetensors",
        "again",
    ),
    (
        "unsupported-model",
        "warning",
        lambda project: tiny_llama_gguf(llama(project), metadata={"general.architecture": "mamba"}),
        "mamba",
        "",
    ),
    (
        "wrong-architecture",
        "broken",
        lambda project: bert(project).rename(llama(project).with_name("tiny-bert")),
        "is a bert, in the folder of llama",
        "mv",
    ),
    (
        "architecture-level",
        "warning",
        lambda project: llama_folder(project, flat=True),
        "Spin looks for it in",
        "mv",
    ),
    (
        "bad-config",
        "broken",
        lambda project: tiny_llama_gguf(
            llama(project), metadata=WITH_TEMPLATE | {"llama.block_count": 0}
        ),
        "llama.block_count",
        "again",
    ),
    (
        "not-computed",
        "broken",
        lambda project: (bert(project) / "modules.json").write_text(
            '[{"name": "0", "path": "", "type": "sentence_transformers.models.BoW"}]'
        ),
        "sentence_transformers.models.BoW",
        "--accounting",
    ),
    (
        "bad-tokenizer",
        "broken",
        lambda project: (bert(project) / "tokenizer.json").unlink(),
        "tokenizer.json",
        "fetch tokenizer.json",
    ),
    (
        "not-computed",
        "broken",
        lambda project: tiny_llama_gguf(
            llama(project), metadata=WITH_TEMPLATE | {"llama.expert_count": 8}
        ),
        "llama.expert_count = 8 is not supported: a mixture of experts",
        "--accounting",
    ),
    (
        "not-computed",
        "broken",
        lambda project: tiny_llama_gguf(
            llama(project),
            metadata=WITH_TEMPLATE,
            tensors={"blk.0.attn_q_norm.weight": np.zeros(8, np.float32)},
        ),
        "1 tensor that a llama does not use: blk.0.attn_q_norm.weight",
        "--accounting",
    ),
    (
        "unknown-key",
        "warning",
        lambda project: tiny_llama_folder(llama_folder(project), config={"unheard_of": 3}),
        "unheard_of = 3",
        "remove the key",
    ),
    (
        "vocabulary-sizes",
        "warning",
        lambda project: tiny_llama_gguf(
            llama(project),
            metadata=WITH_TEMPLATE,
            tensors={"token_embd.weight": np.zeros((300, 32), np.float32)},
        ),
        "the network 300",
        "from one place",
    ),
    (
        "vocabulary-sizes",
        "warning",
        lambda project: tiny_llama_gguf(
            llama(project),
            metadata=WITH_TEMPLATE,
            tensors={
                "token_embd.weight": np.zeros((2000, 32), np.float32),
                "output.weight": np.zeros((2000, 32), np.float32),
            },
        ),
        "the network 2000",
        "from one place",
    ),
    (
        "chat-template",
        "warning",
        lambda project: tiny_llama_gguf(llama(project)),
        "chat template: none; using Llama 2's chat format",
        "",
    ),
]


@pytest.mark.parametrize(("check", "level", "break_", "what", "remedy"), BROKEN)
def test_each_problem_of_a_project_is_found_with_how_to_fix_it(
    check: str, level: str, break_: Break, what: str, remedy: str, project: Path
) -> None:
    break_(project)
    found = next(finding for finding in findings(project) if finding.check == check)
    assert found.level == level
    assert what in found.what
    assert remedy in (found.remedy or "")


def test_every_diagnosis_is_tested_and_none_is_unnamed() -> None:
    documented = {
        name.strip()
        for line in str(doctor.__doc__).splitlines()
        if line.startswith("    ")
        for name in line[4:31].split(",")
        if name.strip()
    }
    own = {"bug", "cpu", "kernel-cache", "model", "numerics", "rope-layout"}
    tested = {check for check, *_ in BROKEN} | own
    assert documented == tested


def test_the_other_models_are_examined_where_refllm_fails_on_one(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = load_tokenizer

    def fails_on_the_llama(path: Path) -> Tokenizer:
        if path == llama(project):
            raise RuntimeError("harmless")
        return real(path)

    monkeypatch.setattr("refllm.doctor.model.load_tokenizer", fails_on_the_llama)
    found = findings(project)
    [bug] = [finding for finding in found if finding.check == "bug"]
    assert bug.level == "broken"
    assert "harmless" in bug.what
    [well] = [finding for finding in found if finding.check == "model"]
    assert well.what.startswith("tiny-bert")


def test_no_writable_cache_folder_is_a_warning(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refllm.doctor.machine.find_cache", lambda *_: (None, ()))
    [found] = [finding for finding in findings(project) if finding.check == "kernel-cache"]
    assert found.level == "warning"
    assert "REFLLM_CACHE_DIR" in str(found.remedy)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no modes")
def test_a_cache_that_other_users_can_write_to_is_a_warning_with_its_remedy(
    project: Path, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    environment = {**os.environ, "REFLLM_CACHE_DIR": str(shared)}
    found = [each for each in examine(project, (), environment) if each.check == "kernel-cache"]
    assert [each.level for each in found] == ["warning", "ok"]
    assert str(shared) in found[0].what
    assert found[0].remedy == f"chmod go-w {shared}"


@pytest.mark.parametrize(("wanted", "level"), [("1", "warning"), ("0", "broken")])
def test_a_named_model_for_which_another_stands_in_is_a_warning(
    wanted: str, level: str, project: Path
) -> None:
    (project / "spin.toml").write_text(MANIFEST.format('"llama2-chat"'))
    environment = {**os.environ, "REFLLM_STAND_INS": wanted}
    [found] = [f for f in findings(project, environment) if f.check == "manifest-model"]
    assert found.level == level
    assert found.what.endswith("; tiny-chat stands in for it") is (wanted == "1")
    assert found.remedy == "refllm models pull llama2-chat"


@pytest.mark.parametrize("is_half_split", [False, True])
def test_rows_in_the_order_of_the_other_convention_are_noticed(
    is_half_split: bool, project: Path, data_dir: Path
) -> None:
    shutil.copy(data_dir / "stories260K" / "stories260K.gguf", llama(project))
    if is_half_split:
        split_queries_and_keys(llama(project))
    found = [finding for finding in findings(project) if finding.check == "rope-layout"]
    assert [finding.level for finding in found] == ["broken"] * is_half_split
    assert all("nats a token" in finding.what for finding in found)


def split_queries_and_keys(path: Path) -> None:
    """Put the rows of the first elements of all pairs of a head before those of the second ones."""
    reader = GGUFReader(path, "r+")
    heads = {
        "q": reader.fields["llama.attention.head_count"].contents(),
        "k": reader.fields["llama.attention.head_count_kv"].contents(),
    }
    for tensor in reader.tensors:
        part = re.fullmatch(r"blk\.[0-9]+\.attn_([qk])\.weight", tensor.name)
        if part is not None:
            rows = tensor.data.reshape(heads[part[1]], -1, 2, tensor.data.shape[-1])
            tensor.data[:] = rows.swapaxes(1, 2).reshape(tensor.data.shape).copy()
    del reader


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_chat_template_of_a_folder_is_found_where_transformers_puts_it(
    place: str, project: Path
) -> None:
    folder = llama_folder(project)
    (folder / place).write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert "chat-template" not in {finding.check for finding in findings(project)}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% if %}", "the model's chat template cannot be used: Expected an expression"),
        ("{% break %}", "the model's chat template cannot be used: 'break' outside loop"),
        ("{{ raise_exception('Only tools!') }}", None),
        ("{{ messages[7].content }}", None),
    ],
)
def test_a_chat_template_that_no_chat_can_use_is_broken(
    template: str, expected: str | None, project: Path
) -> None:
    tiny_llama_gguf(llama(project), metadata={"tokenizer.chat_template": template})
    found = [finding for finding in findings(project) if finding.check == "chat-template"]
    assert [finding.level for finding in found] == ([] if expected is None else ["broken"])
    assert expected is None or expected in found[0].what


class TestCommand:
    """`refllm doctor`, as it is typed."""

    def test_doctor_prints_a_line_for_each_finding_and_each_remedy(self, project: Path) -> None:
        tiny_llama_gguf(llama(project))
        result = CliRunner().invoke(app, ["doctor", str(project)])
        assert result.exit_code == 0
        lines = result.stdout.splitlines()
        assert lines[0].startswith("ok       cpu: ")
        [place] = [i for i, line in enumerate(lines) if line.startswith("warning  chat-template")]
        assert lines[place + 1].startswith("         fix: none is needed")

    def test_doctor_exits_with_1_if_something_is_broken(self, project: Path) -> None:
        truncate(llama(project))
        assert CliRunner().invoke(app, ["doctor", str(project)]).exit_code == 1

    def test_json_has_every_finding(self, project: Path) -> None:
        truncate(llama(project))
        result = CliRunner().invoke(app, ["doctor", str(project), "--json"])
        report = json.loads(result.stdout)
        assert result.exit_code == 1
        assert report["is_broken"] is True
        assert {"check", "level", "what", "remedy"} == set(report["findings"][0])

    def test_a_folder_that_is_not_there_is_refused(self, tmp_path: Path) -> None:
        result = CliRunner().invoke(app, ["doctor", str(tmp_path / "absent")])
        assert result.exit_code == 1
        assert "there is no folder" in result.stderr
