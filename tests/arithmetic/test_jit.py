"""Machine code on disk: found again, never when it is out of date, and no hindrance."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

import refllm
from refllm.jit import disk_cache as cache
from refllm.jit.compile import (
    HOLE,
    SERIAL_WORK,
    inner,
    jit,
    prange,
    template,
)
from refllm.jit.compile import both as in_both_forms
from refllm.jit.disk_cache import KernelCache, cache_folder, kernel_sources, stamp
from refllm.jit.stored import stored
from tests.support.owners import owned_by_another

DAY = 86400


# --- Which code is still good --------------------------------------------------------------------


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    files = [tmp_path / "blocks.py", tmp_path / "linear.py"]
    for file in files:
        file.write_text("x = 1\n")
    return files


def test_a_change_in_any_source_changes_the_folder(sources: list[Path], tmp_path: Path) -> None:
    environment = {"REFLLM_CACHE_DIR": str(tmp_path / "cache")}
    folders = [cache_folder(environment, sources)]
    for file in sources:
        status = file.stat()
        file.write_text("x = 2\n")
        os.utime(
            file, ns=(status.st_atime_ns, status.st_mtime_ns)
        )  # as a reproducible wheel has it
        folders.append(cache_folder(environment, sources))
    assert len(set(folders)) == 3
    assert cache_folder(environment, sources) == folders[-1]


def test_code_moved_to_another_file_changes_the_stamp(sources: list[Path]) -> None:
    sources[0].write_text("x = 1\ny = 2\n")
    before = stamp(sources)
    sources[0].write_text("x = 1\n")
    sources[1].write_text("y = 2\nx = 1\n")
    assert stamp(sources) != before


def test_another_compiler_is_another_stamp(
    sources: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stamp(sources)
    monkeypatch.setattr(numba, "__version__", "0.0.0")
    assert stamp(sources) != before


def test_every_module_that_a_kernel_is_made_of_is_a_source() -> None:
    package = Path(refllm.__file__).parent
    names = {path.relative_to(package).as_posix() for path in kernel_sources()}
    folders = [package / name for name in ("jit", "ggml", "kernels")]
    modules = {
        path.relative_to(package).as_posix() for each in folders for path in each.rglob("*.py")
    }
    assert names == {"quant.py", *modules}
    assert {"ggml/superblocks.py", "kernels/linear.py", "kernels/packed/tile.py"} < names


# --- Where it is ---------------------------------------------------------------------------------


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (("REFLLM_CACHE_DIR", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME"), "REFLLM_CACHE_DIR"),
        (("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"), "NUMBA_CACHE_DIR/refllm"),
        (("XDG_CACHE_HOME",), "XDG_CACHE_HOME/refllm"),
    ],
)
def test_the_best_folder_that_is_named_is_used(
    variables: tuple[str, ...], expected: str, sources: list[Path], tmp_path: Path
) -> None:
    environment = {variable: str(tmp_path / variable) for variable in variables}
    assert cache_folder(environment, sources) == tmp_path / expected / f"kernels-{stamp(sources)}"


def test_a_folder_that_cannot_be_made_is_passed_over_with_a_warning(
    sources: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    environment = {
        "REFLLM_CACHE_DIR": str(sources[0]),  # a file
        "NUMBA_CACHE_DIR": str(sources[0] / "deeper"),
        "XDG_CACHE_HOME": str(tmp_path / "good"),
    }
    folder = cache_folder(environment, sources)
    assert folder is not None
    assert folder.parent == tmp_path / "good" / "refllm"
    assert caplog.messages == [
        f"no kernel can be kept in {sources[0]}, which REFLLM_CACHE_DIR names, so "
        f"{folder.parent} is used; let REFLLM_CACHE_DIR name another folder"
    ]


@pytest.fixture
def nowhere(sources: list[Path]) -> dict[str, str]:
    """Variables that name no possible folder."""
    return dict.fromkeys(("REFLLM_CACHE_DIR", "XDG_CACHE_HOME"), str(sources[0]))


def test_temporary_files_are_the_last_resort(
    nowhere: dict[str, str], sources: list[Path], temporary: Path
) -> None:
    folder = cache_folder(nowhere, sources)
    assert folder is not None
    assert folder.parent.parent == temporary
    assert folder.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.name != "posix", reason="on Windows each user has their own")
@pytest.mark.parametrize("change", ["others may write", "another user's", "a link"])
def test_a_temporary_folder_writable_by_other_users_is_not_used(
    change: str,
    nowhere: dict[str, str],
    sources: list[Path],
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = temporary / f"refllm-{os.geteuid()}"
    if change == "another user's":
        monkeypatch.setattr(os, "lstat", owned_by_another(os.lstat, lambda file: file == folder))
    if change == "a link":
        (temporary / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(temporary / "elsewhere")
    else:
        folder.mkdir()
        folder.chmod(0o777 if change == "others may write" else 0o700)
    assert cache_folder(nowhere, sources) is None


@pytest.mark.skipif(os.name != "posix", reason="Windows has no modes")
def test_a_folder_writable_by_other_users_is_skipped_with_one_warning(
    sources: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shared = tmp_path / "shared"
    environment = {"REFLLM_CACHE_DIR": str(shared), "XDG_CACHE_HOME": str(tmp_path / "good")}
    theirs = cache_folder(environment, sources)
    assert theirs is not None
    shared.chmod(0o777)
    folders = [cache_folder(environment, sources) for _ in range(2)]
    assert folders == [tmp_path / "good" / "refllm" / theirs.name] * 2
    (message,) = caplog.messages
    assert f"{shared} can be written to by every user" in message
    assert f"chmod go-w {shared}" in message


@pytest.mark.parametrize("is_filled", [False, True])
def test_a_folder_on_a_read_only_disk_is_used_if_it_brings_code(
    is_filled: bool, sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"REFLLM_CACHE_DIR": str(tmp_path / "a"), "NUMBA_CACHE_DIR": str(tmp_path / "b")}
    folder = cache_folder(environment, sources)
    assert folder is not None
    if is_filled:
        (folder / "linear.kernel-0.nbc").touch()
    monkeypatch.setattr(os, "access", lambda path, _mode: not str(path).startswith(str(folder)))
    assert (cache_folder(environment, sources) == folder) == is_filled


def test_without_sources_nothing_is_kept(tmp_path: Path) -> None:
    assert cache_folder({"REFLLM_CACHE_DIR": str(tmp_path)}, []) is None


def test_kernels_unused_for_90_days_are_removed(sources: list[Path], tmp_path: Path) -> None:
    for name, days in {"kernels-old": 91, "kernels-new": 89, "something-else": 91}.items():
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - days * DAY,) * 2)
    folder = cache_folder({"REFLLM_CACHE_DIR": str(tmp_path)}, sources)
    assert folder is not None
    left = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert left == {"kernels-new", "something-else", folder.name}


# --- What is kept --------------------------------------------------------------------------------


def twice(x: float) -> float:
    return x + x


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the cache."""
    monkeypatch.setattr(cache, "_folder", lambda: tmp_path)
    return tmp_path


def compiled(function: Callable[..., object] = twice) -> Any:
    """The function as another process would compile it."""
    dispatcher: Any = numba.njit(function)
    dispatcher._cache = KernelCache(function)
    return dispatcher


def counts(dispatcher: Any) -> tuple[int, int]:
    """How many versions were found, and how many had to be compiled."""
    stats = dispatcher.stats
    return sum(stats.cache_hits.values()), sum(stats.cache_misses.values())


@pytest.mark.usefixtures("folder")
def test_a_compiled_kernel_is_loaded_from_the_disk_cache() -> None:
    first, second = compiled(), compiled()
    assert (first(3), counts(first)) == (6, (0, 1))
    assert (second(3), counts(second)) == (6, (1, 0))


@pytest.mark.usefixtures("folder")
def test_other_types_are_another_version() -> None:
    compiled()(3)
    second = compiled()
    assert (second(1.5), second(3), counts(second)) == (3.0, 6, (1, 1))


@pytest.mark.parametrize("damage", ["truncated", "changed", "empty"])
def test_damaged_code_is_compiled_again(damage: str, folder: Path) -> None:
    compiled()(3)
    (file,) = folder.iterdir()
    contents = file.read_bytes()
    middle = len(contents) // 2
    file.write_bytes(
        {
            "truncated": contents[:middle],
            "changed": contents[:middle] + bytes([contents[middle] ^ 1]) + contents[middle + 1 :],
            "empty": b"",
        }[damage]
    )
    second, third = compiled(), compiled()
    assert (second(3), counts(second)) == (6, (0, 1))
    assert (third(3), counts(third)) == (6, (1, 0))


def thrice(x: float) -> float:
    return x + x + x


def test_the_code_of_one_function_under_the_name_of_another_is_not_run(folder: Path) -> None:
    compiled(thrice)(3)
    (of_thrice,) = folder.iterdir()
    compiled()(3)
    (of_twice,) = set(folder.iterdir()) - {of_thrice}
    of_thrice.replace(of_twice)
    dispatcher = compiled()
    assert (dispatcher(3), counts(dispatcher)) == (6, (0, 1))


def test_the_code_of_other_sources_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("kernels-old", "kernels-new"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(cache, "_folder", lambda: tmp_path / "kernels-old")
    compiled()(3)
    (kept,) = (tmp_path / "kernels-old").iterdir()
    kept.replace(tmp_path / "kernels-new" / kept.name)
    monkeypatch.setattr(cache, "_folder", lambda: tmp_path / "kernels-new")
    dispatcher = compiled()
    assert (dispatcher(3), counts(dispatcher)) == (6, (0, 1))


CALLS: list[str] = []


class CallsSomething:
    """What calls a function, harmlessly, when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return CALLS.append, ("called",)


def test_contents_that_are_no_stored_kernel_are_compiled_again_and_call_nothing(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(cache, "stored", lambda *_: pickle.dumps(CallsSomething()) + b"\0" * 24)
    compiled()(3)
    assert len(list(folder.iterdir())) == 1
    dispatcher = compiled()
    assert (dispatcher(3), counts(dispatcher)) == (6, (0, 1))
    assert CALLS == []


def both(x: float) -> tuple[float, Any]:
    return x + x, np.full((2, 3), x, np.float32)


@pytest.mark.usefixtures("folder")
def test_a_result_of_several_types_is_found_again() -> None:
    compiled(both)(1.5)
    dispatcher = compiled(both)
    number, array = dispatcher(1.5)
    assert (number, array.tolist(), counts(dispatcher)) == (3.0, [[1.5] * 3] * 2, (1, 0))


@pytest.mark.usefixtures("folder")
def test_code_that_refers_to_a_foreign_module_is_compiled_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stored_of_others(*version: Any) -> bytes:
        return stored(*version).replace(b'"module": "tests', b'"module": "texts')

    monkeypatch.setattr(cache, "stored", stored_of_others)
    compiled()(3)
    dispatcher = compiled()
    assert (dispatcher(3), counts(dispatcher)) == (6, (0, 1))


def test_code_that_cannot_be_written_still_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_unfinished: Path, _path: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    dispatcher = compiled()
    assert (dispatcher(3), counts(dispatcher)) == (6, (0, 1))
    assert list(folder.iterdir()) == []


def test_without_a_folder_everything_still_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_folder", lambda: None)
    dispatcher = compiled()
    assert (dispatcher(3), counts(dispatcher)) == (6, (0, 1))
    assert dispatcher.stats.cache_path is None
    dispatcher.recompile()
    assert dispatcher(3) == 6


@pytest.mark.usefixtures("folder")
def test_forgotten_code_is_compiled_again() -> None:
    first, second = compiled(), compiled()
    first(3)
    first._cache.flush()
    assert (second(3), counts(second)) == (6, (0, 1))


@pytest.mark.usefixtures("folder")
def test_each_compilation_is_announced(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "refllm.kernels"):
        compiled()(3)
        compiled()(3)
    assert caplog.messages == ["compiling test_jit.twice for this machine (first run only)"]


def test_many_processes_can_fill_the_cache_at_once(tmp_path: Path) -> None:
    program = (
        "import numpy as np\n"
        "from refllm.kernels.elementwise import l2_normalize\n"
        "print(l2_normalize(np.array([3, 4], np.float32)), len(l2_normalize.stats.cache_hits))"
    )
    environment = {**os.environ, "REFLLM_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", program]
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = [process.communicate()[0] for process in running]
    assert all(answer.startswith("[0.6 0.8]") for answer in answers)
    last = subprocess.check_output(command, env=environment, text=True)
    assert last.split() == ["[0.6", "0.8]", "1"]
    assert [path.suffix for path in tmp_path.glob("*/*")] == [".nbc"]


# --- Templates, parts of kernels and both forms --------------------------------------------------

factor: Any = HOLE


@template
def times(x: Any) -> Any:
    return factor * x


@template
def times_and_one(x: Any) -> Any:
    return times(x) + 1


def test_a_filled_template_is_a_function_with_these_values_and_this_name() -> None:
    double, triple = times.fill("double", factor=2), times.fill("triple", factor=3)
    assert (double(5), triple(5), double.__name__) == (10, 15, "double")


def test_a_template_that_another_one_calls_is_a_hole_of_it() -> None:
    assert times_and_one.holes == {"times"}
    assert times_and_one.fill("six_and_one", times=times.fill("six", factor=6))(2) == 13


@pytest.mark.parametrize("values", [{}, {"factor": 2, "summand": 1}], ids=["open", "unknown"])
def test_every_hole_needs_a_value_and_every_value_a_hole(values: dict[str, int]) -> None:
    with pytest.raises(TypeError, match=r"the template times has the holes \['factor'\]"):
        times.fill("double", **values)


def test_a_template_is_not_called_before_it_is_filled() -> None:
    with pytest.raises(TypeError, match="times is a template"):
        times(2)


def test_a_part_of_kernels_is_called_by_kernels_only() -> None:
    part = inner(twice)

    def kernel(x: float) -> float:
        return part(x) + 1

    assert jit(kernel)(3) == 7
    with pytest.raises(TypeError, match="twice can be called by kernels only"):
        part(3)


@in_both_forms
def counted(out: np.ndarray) -> None:
    for i in prange(out.size):
        out[i] = i


@pytest.mark.parametrize("work", [SERIAL_WORK - 1, SERIAL_WORK])
def test_the_form_is_chosen_by_the_amount_of_work(work: int) -> None:
    run = counted.choose(work)
    assert run is (counted.serial if work < SERIAL_WORK else counted.parallel)
    out = np.zeros(1000)
    run(out)
    assert np.array_equal(out, np.arange(1000))


@inner
def twice_as_many(x: Any) -> Any:
    if x.size == 0:
        raise ValueError("there is no number")
    return x.size * 2


@jit
def counted_twice(x: Any) -> Any:
    return twice_as_many(x)


def test_a_part_of_kernels_has_no_machine_code_and_its_errors_are_raised() -> None:
    assert counted_twice(np.zeros(3)) == 6
    with pytest.raises(ValueError, match="there is no number"):
        counted_twice(np.zeros(0))
    dispatchers: tuple[Any, Any] = twice_as_many, counted_twice
    part, kernel = (next(iter(each.overloads.values())) for each in dispatchers)
    assert part.library.get_pointer_to_function(part.fndesc.llvm_func_name) == 0
    assert kernel.library.get_pointer_to_function(kernel.fndesc.llvm_func_name) != 0


# --- Which kernels a call needs, and processes that compile them ---------------------------------

KERNELS = """
import json, sys
import numpy as np
from refllm.jit.compile import recorded
from refllm.jit.workers import compile_all
from refllm.kernels.elementwise import l2_normalize, rms_norm

def missing(every_form=False):
    row = np.zeros(3, np.float32)
    with recorded(lambda name, *given: np.empty_like(given[0]), every_form=every_form) as missing:
        normal = l2_normalize(row)
        rms_norm(normal[None], row, 1e-5)
    return list(missing.values())

"""


def output_of(program: str, folder: Path, *arguments: str) -> str:
    """What a process with that folder for kernels prints."""
    return subprocess.check_output(
        [sys.executable, "-c", KERNELS + program, *arguments],
        env={**os.environ, "REFLLM_CACHE_DIR": str(folder)},
        text=True,
    )


NAMES = "print(*sorted(each.name.rpartition('.')[2] for each in missing(len(sys.argv) > 1)))"


def test_kernels_are_recorded_without_being_compiled(tmp_path: Path) -> None:
    assert output_of(NAMES, tmp_path).split() == ["_rms_norm_serial", "l2_normalize"]
    assert list(tmp_path.glob("*/*")) == []
    both_forms = ["_rms_norm_parallel", "_rms_norm_serial", "l2_normalize"]
    assert output_of(NAMES, tmp_path, "every form").split() == both_forms


def test_what_is_compiled_is_no_longer_missing_and_other_processes_load_it(tmp_path: Path) -> None:
    output_of("compile_all(missing(), is_in_background=True)", tmp_path)
    assert output_of(NAMES, tmp_path).split() == []
    loaded = "l2_normalize(np.ones(3, np.float32)); print(*l2_normalize.stats.cache_hits.values())"
    assert output_of(loaded, tmp_path).split() == ["1"]


def test_two_processes_share_the_work_and_compile_each_kernel_once(tmp_path: Path) -> None:
    program = """
import refllm.jit.compile as compiling
compile = compiling.Missing.compile
def counted(kernel):
    print(kernel.path.name, flush=True)
    compile(kernel)
compiling.Missing.compile = counted
compile_all(missing(), is_in_background=False)
"""
    command = [sys.executable, "-c", KERNELS + program]
    environment = {**os.environ, "REFLLM_CACHE_DIR": str(tmp_path)}
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    compiled_there = [name for each in running for name in each.communicate()[0].split()]
    assert sorted(compiled_there) == sorted(path.name for path in tmp_path.glob("*/*.nbc"))
    assert len(compiled_there) == 2


def test_a_kernel_whose_process_was_ended_is_compiled_by_another(tmp_path: Path) -> None:
    # The lock of a claim is released by the system; the file stays.
    (path,) = output_of("print(missing()[0].path)", tmp_path).splitlines()
    Path(path).with_suffix(".claim").touch()
    output_of("compile_all(missing(), is_in_background=False)", tmp_path)
    assert Path(path).exists()


def test_a_python_function_stands_in_for_a_kernel_until_it_is_compiled() -> None:
    program = """
from refllm.jit.compile import stand_in
row = np.array([3, 4], np.float32)
stand_in(l2_normalize, lambda x: "stood in")
first = l2_normalize(row)
stand_in(l2_normalize, None)
print(first, l2_normalize(row))
"""
    printed = subprocess.check_output([sys.executable, "-c", KERNELS + program], text=True)
    assert printed == "stood in [0.6 0.8]\n"
