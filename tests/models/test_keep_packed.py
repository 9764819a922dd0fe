"""Packed weights on disk: found again, never in the way, and without a trace in any result."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refllm.doctor import examine
from refllm.engine import LocalEngine
from refllm.errors import InvalidInput
from refllm.files.private import open_kept
from refllm.files.whole import whole_file
from refllm.kernels.packed.checksum import CHUNK_BYTES, LANE_WORDS, checksums
from refllm.models import kept_panels
from refllm.models.kept_panels import bytes_to_keep, model_files
from refllm.models.load import BertModel, LlamaModel, load_path
from refllm.models.starting_llama import StartingLlama
from tests.support.model_files import tiny_bert_folder, tiny_llama_folder, tiny_llama_gguf
from tests.support.networks import same_bits

GIBIBYTE = 1 << 30
TOKENS = [1, 5, 9, 30, 7]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "GGUF": tiny_llama_gguf(folder / "llama.gguf"),
        "Q8_0": tiny_llama_gguf(folder / "q8_0.gguf", type="Q8_0"),
        "safetensors": tiny_llama_folder(folder / "llama"),
        "BERT": tiny_bert_folder(folder / "bert"),
    }


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return tiny_llama_gguf(tmp_path / "llama.gguf")


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of packed weights, empty, beside a folder of kernels that no kernel is in."""
    kernels = tmp_path / "cache" / "kernels-of-this-test"
    monkeypatch.setattr(kept_panels, "cache_folder", lambda *_: kernels)
    return kernels.parent / "packed"


def files_of(folder: Path) -> list[Path]:
    """Return all files and folders in the folder of packed weights."""
    return sorted(folder.iterdir()) if folder.exists() else []


def only_file(folder: Path) -> Path:
    [file] = files_of(folder)
    return file


def keep(path: Path, numerics: str = "exact", max_bytes: int = GIBIBYTE) -> LlamaModel | BertModel:
    return load_path(path, numerics=numerics, keep_packed_bytes=max_bytes)


def result_of(model: LlamaModel | BertModel) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    if isinstance(model, LlamaModel):
        return model.forward(TOKENS)
    return model.embed(["a cat sleeps", "the cat"])


def is_mapped(model: LlamaModel | BertModel) -> bool:
    """Return whether the panels of the last matrix are in a map, not in memory of their own."""
    if isinstance(model, LlamaModel):
        weight = model.network.layers[-1].ffn_down
    else:
        weight = model.network.layers[-1].ffn_down.weights[0]
    base: object = weight.data
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, memoryview) and isinstance(base.obj, mmap.mmap)


@pytest.mark.parametrize("numerics", ["exact", "int8"])
@pytest.mark.parametrize("kind", ["GGUF", "Q8_0", "safetensors", "BERT"])
def test_no_bit_depends_on_whether_weights_were_kept(
    kind: str, numerics: str, models: dict[str, Path], packed: Path
) -> None:
    plain = load_path(models[kind], numerics=numerics, keep_packed_bytes=0)
    assert files_of(packed) == []
    first, second = (keep(models[kind], numerics) for _ in range(2))
    assert [is_mapped(model) for model in (plain, first, second)] == [False, False, True]
    expected = result_of(plain)
    assert same_bits(result_of(first), expected)
    assert same_bits(result_of(second), expected)


class TestTheFile:
    def test_has_one_of_each_numerics_and_nothing_else(self, llama: Path, packed: Path) -> None:
        keep(llama)
        keep(llama, "int8")
        keep(llama)
        assert len(files_of(packed)) == 2
        assert {each.suffix for each in files_of(packed)} == {".panels"}

    def test_is_written_by_a_llama_that_may_start_in_numpy(
        self, llama: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REFLLM_COMPILE", "here")  # so it packs at its first step
        model = load_path(llama, keep_packed_bytes=GIBIBYTE, llama=StartingLlama)
        assert files_of(packed) == []
        assert same_bits(result_of(model), result_of(load_path(llama)))
        assert only_file(packed).stat().st_size > 0

    def test_is_found_under_another_path(self, llama: Path, packed: Path) -> None:
        keep(llama)
        beside = llama.with_name("link.gguf")
        beside.symlink_to(llama)
        assert is_mapped(keep(beside))
        only_file(packed)

    def test_is_not_changed_by_use(self, llama: Path, packed: Path) -> None:
        keep(llama)
        before = only_file(packed).read_bytes()
        model = keep(llama)
        result_of(model)
        assert isinstance(model, LlamaModel)
        model.network.layers[0].ffn_down.data[:] = 0  # as no kernel does
        assert only_file(packed).read_bytes() == before

    @pytest.mark.skipif(os.name == "nt", reason="Windows keeps the name of a file in use")
    def test_may_be_removed_while_it_is_mapped(self, llama: Path, packed: Path) -> None:
        expected = result_of(keep(llama))
        model = keep(llama)
        only_file(packed).unlink()
        assert same_bits(result_of(model), expected)

    def test_of_another_version_of_the_kernels_is_not_used(
        self, llama: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keep(llama)
        other = packed.parent / "kernels-of-a-newer-version"
        monkeypatch.setattr(kept_panels, "cache_folder", lambda *_: other)
        assert not is_mapped(keep(llama))
        assert len(files_of(packed)) == 2

    def test_of_another_number_of_lanes_is_not_used(
        self, llama: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keep(llama)
        monkeypatch.setattr(kept_panels, "LANES", 8)
        keep(llama)
        assert len(files_of(packed)) == 2


class TestAChangedModel:
    def test_of_the_same_size_and_time_is_packed_again(self, llama: Path, packed: Path) -> None:
        keep(llama)
        status = llama.stat()
        tiny_llama_gguf(llama, seed=1)
        os.utime(llama, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert llama.stat().st_size == status.st_size
        expected = result_of(load_path(llama, keep_packed_bytes=0))
        assert same_bits(result_of(keep(llama)), expected)
        assert len(files_of(packed)) == 2

    def test_is_not_kept_if_it_changes_while_it_is_loaded(
        self,
        llama: Path,
        packed: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        find = kept_panels.find_kept_panels

        def changed(*arguments: object, **options: object) -> object:
            found = find(*arguments, **options)  # type: ignore[arg-type]
            os.utime(llama, ns=(0, 0))
            return found

        monkeypatch.setattr("refllm.models.load.find_kept_panels", changed)
        keep(llama)
        assert files_of(packed) == []
        assert "the model's files have changed while it was loaded" in caplog.text

    def test_has_other_files(self, tmp_path: Path) -> None:
        folder = tiny_llama_folder(tmp_path / "folder")
        before = model_files(folder)
        config = folder / "config.json"
        config.write_text(config.read_text() + " ")
        assert model_files(folder) != before
        assert len(before) == 2

    def test_of_several_parts_has_all_of_them(self, tmp_path: Path) -> None:
        for name in ("a[1]-00001-of-00002", "a[1]-00002-of-00002", "b-00001-of-00002"):
            (tmp_path / f"{name}.gguf").write_text(name)
        assert len(model_files(tmp_path / "a[1]-00002-of-00002.gguf")) == 2


class TestADamagedFile:
    @pytest.mark.parametrize("place", [0, 20, 5000, -1], ids=["magic", "start", "panels", "header"])
    def test_is_written_again(
        self, place: int, llama: Path, packed: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        expected = result_of(keep(llama))
        file = only_file(packed)
        sound = file.read_bytes()
        content = bytearray(sound)
        content[place] ^= 1
        file.write_bytes(content)
        assert same_bits(result_of(keep(llama)), expected)
        assert "is damaged, the weights are packed again" in caplog.text
        assert only_file(packed).read_bytes() == sound
        assert is_mapped(keep(llama))

    def test_of_any_kind_changes_no_bit(self, llama: Path, packed: Path) -> None:
        expected = result_of(keep(llama))
        sound = only_file(packed).read_bytes()

        places = st.integers(0, len(sound) - 1)

        @settings(max_examples=30, deadline=None)
        @given(st.dictionaries(places, st.integers(0, 255), max_size=4), places)
        def changes_nothing(bytes_by_place: dict[int, int], size: int) -> None:
            content = bytearray(sound)
            for place, byte in bytes_by_place.items():
                content[place] = byte
            only_file(packed).write_bytes(content[:size])
            assert same_bits(result_of(keep(llama)), expected)
            assert only_file(packed).read_bytes() == sound

        changes_nothing()

    def test_of_another_model_is_not_used(self, llama: Path, tmp_path: Path, packed: Path) -> None:
        keep(llama)
        of_one = only_file(packed)
        other = tiny_llama_gguf(tmp_path / "other.gguf", seed=1)
        expected = result_of(keep(other))
        [of_other] = set(files_of(packed)) - {of_one}
        shutil.copy(of_one, of_other)
        assert same_bits(result_of(keep(other)), expected)

    @pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
    def test_that_other_users_can_write_to_is_not_used(
        self, llama: Path, packed: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        keep(llama)
        only_file(packed).chmod(0o666)
        assert open_kept(only_file(packed)) is None
        assert not is_mapped(keep(llama))
        assert "is not private to this user" in caplog.text


class TestTheLimit:
    def test_removes_what_was_not_used_for_the_longest_time(
        self, tmp_path: Path, packed: Path
    ) -> None:
        models = [tiny_llama_gguf(tmp_path / f"{seed}.gguf", seed=seed) for seed in range(3)]
        files: list[Path] = []
        for model in models[:2]:
            keep(model)
            files += set(files_of(packed)) - set(files)
        for day, file in enumerate(files):
            os.utime(file, ns=(day, day))
        size = files[0].stat().st_size
        keep(models[0], max_bytes=3 * size)  # the second is now the one that was not used
        keep(models[2], max_bytes=2 * size)
        assert files[0] in files_of(packed)
        assert files[1] not in files_of(packed)
        assert len(files_of(packed)) == 2

    def test_that_is_lowered_removes_files_at_the_next_start(
        self, tmp_path: Path, packed: Path
    ) -> None:
        models = [tiny_llama_gguf(tmp_path / f"{seed}.gguf", seed=seed) for seed in range(3)]
        for model in models:
            keep(model)
        size = files_of(packed)[0].stat().st_size
        keep(models[0], max_bytes=size)
        assert is_mapped(keep(models[0]))
        only_file(packed)

    def test_that_is_too_small_keeps_nothing(
        self, llama: Path, packed: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        keep(llama, max_bytes=1000)
        assert files_of(packed) == []
        assert "--keep-packed-mib or REFLLM_KEEP_PACKED_MIB allows 0" in caplog.text

    def test_removes_what_killed_processes_left(self, llama: Path, packed: Path) -> None:
        keep(llama)
        file = only_file(packed)
        leftover = packed / f".{file.name}.0123456789abcdef.unfinished"
        leftover.mkdir()
        (leftover / file.name).write_bytes(b"half")
        keep(llama)
        assert files_of(packed) == [file]

    def test_leaves_what_another_process_is_writing(self, llama: Path, packed: Path) -> None:
        keep(llama)
        with whole_file(only_file(packed)) as unfinished:
            unfinished.write_bytes(b"half")
            keep(llama)
            assert unfinished.read_bytes() == b"half"


class TestADiskWithoutRoom:
    def test_is_a_warning(
        self,
        llama: Path,
        packed: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        usage = shutil.disk_usage(llama)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
        keep(llama)
        assert files_of(packed) == []
        assert "0 MiB left" in caplog.text

    def test_is_a_warning_also_if_it_becomes_full_in_between(
        self,
        llama: Path,
        packed: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def full(path: Path, *_: object) -> None:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(kept_panels, "_write", full)
        keep(llama)
        assert files_of(packed) == []
        assert "packed weights are not kept" in caplog.text
        assert "No space left on device" in caplog.text

    def test_as_no_folder_at_all_is_a_warning(
        self, llama: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(kept_panels, "cache_folder", lambda *_: None)
        keep(llama)
        assert "no folder keeps packed weights" in caplog.text


KEEP = """
import sys
from pathlib import Path
from refllm.models.load import load_path
model = load_path(Path(sys.argv[1]), keep_packed_bytes=1 << 30)
print(model.forward([1, 5, 9]).tobytes().hex())
"""


def test_several_processes_at_once_write_one_whole_file(llama: Path, tmp_path: Path) -> None:
    # Kernels come from the cache of this process; only the folder beside them is new.
    from refllm.jit.disk_cache import cache_folder, kernel_sources

    kernels = cache_folder(os.environ, kernel_sources())
    cache = tmp_path / "own"
    environment = {**os.environ, "REFLLM_CACHE_DIR": str(cache)}
    if kernels is not None:
        shutil.copytree(kernels, cache / kernels.name)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", KEEP, llama], env=environment, stdout=subprocess.PIPE
        )
        for _ in range(4)
    ]
    printed = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert len(printed) == 1
    only_file(cache / "packed")


class TestTheOption:
    def test_is_off_by_default(
        self, llama: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("REFLLM_KEEP_PACKED_MIB", raising=False)
        LocalEngine().load(llama)
        load_path(llama)
        assert files_of(packed) == []

    @pytest.mark.parametrize("how", ["argument", "environment"])
    def test_of_the_engine_is_an_argument_or_the_environment(
        self, how: str, llama: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REFLLM_KEEP_PACKED_MIB", "8" if how == "environment" else "0")
        for _ in range(2):
            engine = LocalEngine(keep_packed_bytes=GIBIBYTE if how == "argument" else None)
            model = engine.load(llama)
        assert is_mapped(model)
        only_file(packed)

    def test_of_zero_outweighs_the_environment(
        self, llama: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REFLLM_KEEP_PACKED_MIB", "8")
        LocalEngine(keep_packed_bytes=0).load(llama)
        assert files_of(packed) == []

    def test_must_be_a_number_of_mebibytes(self) -> None:
        with pytest.raises(InvalidInput, match="must be a number of MiB, such as 8192, or 0; it"):
            bytes_to_keep({"REFLLM_KEEP_PACKED_MIB": "x"})
        with pytest.raises(InvalidInput, match="keep_packed_bytes must be at least 0, got -1"):
            LocalEngine(keep_packed_bytes=-1)
        assert bytes_to_keep({}) == 0
        assert bytes_to_keep({"REFLLM_KEEP_PACKED_MIB": "2"}) == 2 << 20

    def test_reports_its_progress_as_loading_does(self, llama: Path, packed: Path) -> None:
        keep(llama)
        seen: list[tuple[int, int]] = []
        load_path(
            llama,
            progress=lambda done, total: seen.append((done, total)),
            keep_packed_bytes=GIBIBYTE,
        )
        assert seen == sorted(seen)
        assert len(seen) > 2
        assert seen[-1][0] == seen[-1][1]


def test_the_doctor_names_the_folder(tmp_path: Path) -> None:
    environment = {"REFLLM_CACHE_DIR": str(tmp_path / "cache")}

    def found() -> list[str]:
        findings = examine(tmp_path, (), environment)
        return [each.what for each in findings if each.check == "packed-weights"]

    assert found() == []
    environment["REFLLM_KEEP_PACKED_MIB"] = "300"
    [what] = found()
    folder = tmp_path / "cache" / "packed"
    assert what == (
        f"packed weights are kept in {folder}: 0 files, 0 MiB; "
        "REFLLM_KEEP_PACKED_MIB allows 300 MiB"
    )


class TestChecksums:
    @given(
        st.integers(0, 2000) | st.integers(CHUNK_BYTES - 300, CHUNK_BYTES + 300),
        st.data(),
    )
    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def test_see_each_changed_bit(self, size: int, data: st.DataObject) -> None:
        content = np.random.default_rng(size).integers(0, 256, size, np.uint8)
        [before] = checksums([content])
        assert list(checksums([content.copy(), content[:0]])) == [before, *checksums([content[:0]])]
        if size > 0:
            place = data.draw(st.integers(0, size - 1))
            content[place] ^= 1 << data.draw(st.integers(0, 7))
            assert [before] != list(checksums([content]))

    def test_see_zeros_at_the_end(self) -> None:
        assert len(set(checksums([np.zeros(size, np.uint8) for size in range(600)]))) == 600

    def test_are_what_the_drawing_shows(self) -> None:
        import hashlib

        words = np.random.default_rng(0).integers(0, 2**64, (3, LANE_WORDS), np.uint64)
        state = [0] * LANE_WORDS
        for row in words.tolist():
            for lane, word in enumerate(row):
                mixed = (state[lane] ^ word) * 0x9E3779B97F4A7C15 % 2**64
                state[lane] = mixed ^ (mixed >> 29)
        packed = b"".join(word.to_bytes(8, sys.byteorder) for word in state)
        expected = hashlib.sha256(words.nbytes.to_bytes(8, "little") + packed).hexdigest()
        assert list(checksums([words.view(np.uint8)])) == [expected]
