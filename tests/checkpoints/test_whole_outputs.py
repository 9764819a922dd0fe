"""Whatever a command writes survives a full disk and a kill: the old is whole, or the new is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from refllm.api import InvalidInput, LlmRuntimeError
from refllm.conform.models import suite_model
from refllm.conform.report.files import KINDS, require_writable, write_reports
from refllm.export import LAYOUTS, Layout, export, quantize
from refllm.models.find import list_models
from tests.support.commands import answer, refllm, refllm_conform
from tests.support.conform_reports import of_each_status
from tests.support.exports import exported, names_in, result
from tests.support.interrupted import full_disk, hidden_in, killed_at, needs_kill
from tests.support.model_files import tiny_bert_folder, tiny_llama_gguf
from tests.support.networks import same_bits

WRITTEN = "refllm.files.whole.sync"
RENAMED = "refllm.files.whole.shutil.rmtree"


class TestReports:
    """`refllm conform --json FILE` and the other reports."""

    @pytest.fixture
    def files(self, tmp_path: Path) -> dict[str, Path]:
        """Each kind of report, as an earlier run left it."""
        paths = {kind: tmp_path / f"report.{kind}" for kind in KINDS}
        for path in paths.values():
            path.write_text("old")
        return paths

    @pytest.mark.parametrize("kind", KINDS)
    def test_on_a_full_disk_the_old_report_stays_and_the_new_one_is_named(
        self, kind: str, files: dict[str, Path], tmp_path: Path
    ) -> None:
        message = rf"^{files[kind]}: cannot be written: File too large$"
        with full_disk(100), pytest.raises(LlmRuntimeError, match=message):
            write_reports(of_each_status(), {kind: files[kind]})
        assert {path.read_text() for path in files.values()} == {"old"}
        assert hidden_in(tmp_path) == []

    def test_the_reports_that_can_be_written_are(self, files: dict[str, Path]) -> None:
        files["html"].unlink()
        files["html"].mkdir()
        with pytest.raises(LlmRuntimeError, match=r"report\.html: cannot .*: Is a directory"):
            write_reports(of_each_status(), files)
        assert json.loads(files["json"].read_text("utf-8"))["totals"]["failed"] == 2
        assert "old" not in [files[kind].read_text("utf-8") for kind in ("badge", "json", "junit")]

    @needs_kill
    @pytest.mark.parametrize("point", [WRITTEN, RENAMED])
    def test_after_a_kill_the_report_is_whole_and_the_next_run_clears_the_rest(
        self, point: str, files: dict[str, Path], tmp_path: Path
    ) -> None:
        killed_at(point, write_reports, of_each_status(), {"junit": files["junit"]})
        text = files["junit"].read_text("utf-8")
        assert text == ("old" if point == WRITTEN else KINDS["junit"](of_each_status()))
        assert len(hidden_in(tmp_path)) == 1
        write_reports(of_each_status(), files)
        assert hidden_in(tmp_path) == []
        assert files["junit"].read_text("utf-8") == KINDS["junit"](of_each_status())

    def test_asking_before_the_run_leaves_nothing(self, files: dict[str, Path]) -> None:
        folder = files["json"].parent
        require_writable({**files, "badge": folder / "a" / "b.svg"})
        assert names_in(folder) == sorted(path.name for path in files.values())

    @pytest.fixture
    def asking(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
        """Arguments of the command that ask a backend of two functions for its draws."""
        (tmp_path / "constant.py").write_text(
            "class Constant:\n"
            "    def start(self):\n"
            "        return {'implementation': {'name': 'constant'}, 'groups': ['sampling']}\n"
            "    def run(self, group, asked):\n"
            "        return {'token': 0}\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        return ("constant:Constant", "--quick", "--group", "sampling")

    def test_the_command_names_the_report_and_prints_what_it_found(
        self, asking: tuple[str, ...], files: dict[str, Path]
    ) -> None:
        with full_disk(8192):
            code, printed, message = refllm_conform(*asking, "--json", files["json"])
        assert code == 1
        assert "refllm conformance, suite" in printed
        assert f"runtime-error: {files['json']}: cannot be written: File too large\n" in message
        assert files["json"].read_text() == "old"

    def test_a_closed_standard_output_does_not_cost_the_reports(
        self, asking: tuple[str, ...], files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(text: str) -> None:
            raise LlmRuntimeError("standard output is closed")

        monkeypatch.setattr("refllm.cli.conform.write_text", fail)
        code, _, message = refllm_conform(*asking, "--json", files["json"])
        assert code == 1
        assert message.endswith("refllm: runtime-error: standard output is closed\n")
        assert json.loads(files["json"].read_text("utf-8"))["exit_code"] == 1


class TestExports:
    """`refllm models export` and `refllm models quantize`."""

    @pytest.fixture
    def llama(self, tmp_path: Path) -> Path:
        return tiny_llama_gguf(tmp_path / "source.gguf")

    @pytest.fixture
    def to(self, tmp_path: Path) -> Path:
        return tmp_path / "exported"

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_on_a_full_disk_the_error_names_the_target_and_no_file_is_left(
        self, layout: Layout, llama: Path, to: Path, tmp_path: Path
    ) -> None:
        with (
            full_disk(8192),
            pytest.raises(LlmRuntimeError, match=r"/tiny[.a-z]*: cannot be written: File too la"),
        ):
            exported(llama, tmp_path, layout)
        assert [path for path in to.rglob("*") if path.name not in PLACES] == []
        assert same_bits(result(exported(llama, tmp_path, layout)), result(llama))

    def test_quantizing_on_a_full_disk_names_the_file(self, llama: Path, to: Path) -> None:
        message = r"small\.gguf: cannot be written: File too large"
        with full_disk(8192), pytest.raises(LlmRuntimeError, match=message):
            quantize(llama, to / "small.gguf", type_name="Q8_0")
        assert names_in(to) == []

    @needs_kill
    @pytest.mark.parametrize(
        ("layout", "type_name", "point", "call"),
        [
            ("gguf", "Q8_0", "refllm.checkpoints.gguf_writer.recoded", 3),
            ("gguf", "Q8_0", WRITTEN, 1),
            ("gguf", None, "shutil.copyfile", 1),
            ("hf", None, "refllm.export.huggingface.recoded", 3),
            ("hf", None, WRITTEN, 3),
            ("spin", None, WRITTEN, 1),
        ],
    )
    def test_after_a_kill_there_is_no_model_and_the_next_run_makes_it(
        self,
        layout: Layout,
        type_name: str | None,
        point: str,
        call: int,
        llama: Path,
        to: Path,
        tmp_path: Path,
    ) -> None:
        killed_at(point, exported, llama, tmp_path, layout, type_name, call=call)
        assert list_models([to, to / ".spin" / "ai-models"]) == []
        target = exported(llama, tmp_path, layout, type_name)
        assert names_in(target.parent) == [target.name]
        again = export(llama, to=tmp_path / "b", name="tiny", layout=layout, type_name=type_name)
        assert content(target) == content(again)

    @needs_kill
    @pytest.mark.parametrize("layout", ["gguf", "hf"])
    def test_a_kill_after_the_rename_leaves_a_model_that_is_whole(
        self, layout: Layout, llama: Path, to: Path, tmp_path: Path
    ) -> None:
        killed_at(RENAMED, exported, llama, tmp_path, layout)
        assert len(names_in(to)) == 2
        with pytest.raises(InvalidInput, match="exists already"):
            exported(llama, tmp_path, layout)
        (target,) = to.iterdir()
        assert same_bits(result(target), result(llama))


PLACES = (".spin", "ai-models", "llama")


def content(path: Path) -> dict[str, bytes]:
    files = path.rglob("*") if path.is_dir() else [path]
    return {each.name: each.read_bytes() for each in files if each.is_file()}


@needs_kill
class TestMadeModels:
    """The models that the golden suite makes of tiny-chat."""

    @pytest.mark.parametrize(
        ("point", "call"),
        [("refllm.checkpoints.gguf_writer.recoded", 9), (WRITTEN, 1), (WRITTEN, 2)],
    )
    def test_after_a_kill_the_next_run_makes_what_is_not_whole(
        self, point: str, call: int, tmp_path: Path
    ) -> None:
        killed_at(point, suite_model, "tiny-chat-F16", tmp_path / "a", call=call)
        path = suite_model("tiny-chat-F16", tmp_path / "a")
        right = suite_model("tiny-chat-F16", tmp_path / "b")
        assert path is not None
        assert right is not None
        assert content(path.parent) == content(right.parent)

    @pytest.mark.parametrize("call", [1, 2])
    def test_a_kill_after_a_rename_leaves_nothing_for_ever(self, call: int, tmp_path: Path) -> None:
        killed_at(RENAMED, suite_model, "tiny-chat-F16", tmp_path, call=call)
        path = suite_model("tiny-chat-F16", tmp_path)
        assert path is not None
        assert names_in(path.parent) == [path.name, f"{path.name}.sha256"]

    def test_writing_the_models_replaces_one_that_is_not_whole(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("refllm.conform.models.MODEL_NAMES", ("tiny-embed",))
        (tmp_path / "tiny-embed.gguf").write_text("half")
        answer("conform", "--write-models", tmp_path)
        assert (tmp_path / "tiny-embed.gguf").read_bytes()[:4] == b"GGUF"
        assert names_in(tmp_path) == ["tiny-embed.gguf"]


class TestVectors:
    """`refllm embed --npy FILE`."""

    @pytest.fixture
    def bert(self, tmp_path: Path) -> Path:
        return tiny_bert_folder(tmp_path / "tiny-bert")

    def test_on_a_full_disk_the_old_vectors_stay_and_the_file_is_named(
        self, bert: Path, tmp_path: Path
    ) -> None:
        file = tmp_path / "out" / "vectors.npy"
        file.parent.mkdir()
        answer("embed", bert, "the cat", "--npy", file)
        before = np.load(file)
        with full_disk(200):
            done = refllm("embed", bert, "the cat", "a dog", "--npy", file)
        assert done.exit_code == 1
        assert done.stderr == f"refllm: runtime-error: {file}: cannot be written: File too large\n"
        assert same_bits(np.load(file), before)
        assert names_in(file.parent) == ["vectors.npy"]

    def test_a_file_that_cannot_be_written_ends_the_command_before_the_model_is_loaded(
        self, tmp_path: Path
    ) -> None:
        done = refllm("embed", tmp_path / "no-such-model", "a cat", "--npy", tmp_path)
        assert (
            done.stderr == f"refllm: runtime-error: {tmp_path}: cannot be written: Is a directory\n"
        )
