"""Tests of `refllm.models.find`: every layout is found, and nothing outside the roots is."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from refllm.api import InvalidInput, LlmRuntimeError, ModelNotSupported
from refllm.models import find as models
from refllm.models.bundled import ROOT, STAND_INS
from refllm.models.pull import PUBLISHED
from refllm.models.pull.hub import KNOWN_REPOSITORIES

Finder = Callable[[str, Sequence[Path]], Path]
FINDERS: tuple[Finder, ...] = (
    models.find_inferencing_model,
    models.find_embedding_model,
    models.find_model,
)
HUGE = "ab" * 5_000_000

NOT_NAMES = [
    ("", "empty"),
    ("a/b", "path separator"),
    ("/etc/passwd", "path separator"),
    ("a\\b", "path separator"),
    ("..", '".."'),
    ("../tiny", "path separator"),
    ("a..b", '".."'),
    (".hidden", "begins with a dot"),
    (".", "begins with a dot"),
    (".partial-all-minilm-l6-v2", "begins with a dot"),
    ("tiny\0", "NUL"),
    ("tiny\n", "control character"),
    ("\x1b[2J", "control character"),
    ("tiny\x85", "control character"),
    ("tiny\ud800", "lone surrogate"),
    ("C:tiny", "drive letter"),
    ("a" * 256, "longer than 255 bytes"),
    ("é" * 128, "longer than 255 bytes"),
    (HUGE, "longer than 255 bytes"),
]
NAMES = ["tiny", "llama2-chat", "all-minilm-l6-v2", "Llama 3 (8B)", "llama3:8b", "a.b", "é" * 127]


def put(root: Path, *files: str) -> None:
    """Make `files` below `root`, empty: what is in them is not this module's business."""
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize("name", NAMES)
def test_a_plain_component_of_a_path_is_a_name(name: str) -> None:
    models.check_name(name)


@pytest.mark.parametrize(("name", "why"), NOT_NAMES, ids=range(len(NOT_NAMES)))
def test_an_invalid_name_is_refused_with_the_reason(name: str, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        models.check_name(name)


@pytest.mark.parametrize("not_text", [None, 7, b"tiny", Path("tiny"), ["tiny"]])
def test_a_name_that_is_not_text_is_refused(not_text: object) -> None:
    with pytest.raises(InvalidInput, match=f"must be text, got {type(not_text).__name__}"):
        models.check_name(not_text)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name, _ in NOT_NAMES], ids=range(len(NOT_NAMES)))
def test_a_refusal_is_short_and_can_be_printed(name: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        models.check_name(name)
    assert len(str(refusal.value)) < 500
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("find", FINDERS)
def test_every_search_refuses_an_invalid_name(find: Finder, tmp_path: Path) -> None:
    put(tmp_path, "secret/model.safetensors", "root/llama/x/model.safetensors")
    with pytest.raises(InvalidInput, match="path separator"):
        find("../secret", [tmp_path / "root"])


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["llama/tiny/config.json", "llama/tiny/model.safetensors"], "llama/tiny"),
        (["llama/tiny/model.safetensors.index.json"], "llama/tiny"),
        (["llama/tiny/weights-q4.gguf"], "llama/tiny/weights-q4.gguf"),
        (["llama/tiny/other.gguf", "llama/tiny/tiny.gguf"], "llama/tiny/tiny.gguf"),
        (["llama/tiny.gguf"], "llama/tiny.gguf"),
        (["llama/tiny"], "llama/tiny"),
        (["tiny/model.safetensors"], "tiny"),
        (["tiny/model.safetensors", "tiny/tiny.gguf"], "tiny"),
        (["tiny/weights.gguf"], "tiny/weights.gguf"),
        (["tiny"], "tiny"),
        (["tiny.gguf"], "tiny.gguf"),
    ],
)
def test_an_inferencing_model_is_found_in_every_layout(
    files: list[str], found: str, tmp_path: Path
) -> None:
    put(tmp_path, *files)
    assert models.find_inferencing_model("tiny", [tmp_path]) == tmp_path / found
    assert models.find_model("tiny", [tmp_path]) == tmp_path / found


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["mini/tokenizer.json", "mini/model.safetensors"], "mini"),
        (["mini/mini-f16.gguf"], "mini/mini-f16.gguf"),
        (["mini.gguf"], "mini.gguf"),
        (["bert/mini/model.safetensors"], "bert/mini"),
        (["bert/mini.gguf"], "bert/mini.gguf"),
    ],
)
def test_an_embedding_model_is_found_in_every_layout(
    files: list[str], found: str, tmp_path: Path
) -> None:
    put(tmp_path, *files)
    assert models.find_embedding_model("mini", [tmp_path]) == tmp_path / found
    assert models.find_model("mini", [tmp_path]) == tmp_path / found


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_a_model_may_be_called_like_its_architecture(architecture: str, tmp_path: Path) -> None:
    put(tmp_path, f"{architecture}.gguf", f"{architecture}/other/model.safetensors")
    found = models.find_model(architecture, [tmp_path])
    assert found == tmp_path / f"{architecture}.gguf"


def test_the_architecture_folder_comes_before_the_flat_layout(tmp_path: Path) -> None:
    put(tmp_path, "tiny/model.safetensors", "llama/tiny/model.safetensors")
    assert models.find_inferencing_model("tiny", [tmp_path]) == tmp_path / "llama" / "tiny"


def test_the_first_root_that_has_the_model_wins(tmp_path: Path) -> None:
    put(tmp_path, "b/tiny.gguf", "c/llama/tiny/model.safetensors")
    roots = [tmp_path / "absent", tmp_path / "b", tmp_path / "c"]
    assert models.find_inferencing_model("tiny", roots) == tmp_path / "b" / "tiny.gguf"


def test_a_link_that_the_owner_of_the_root_made_is_followed(tmp_path: Path) -> None:
    put(tmp_path, "elsewhere/model.safetensors")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "tiny").symlink_to(tmp_path / "elsewhere")
    assert models.find_inferencing_model("tiny", [tmp_path / "root"]) == tmp_path / "root" / "tiny"


@pytest.mark.parametrize("find", [models.find_inferencing_model, models.find_model])
def test_an_absent_inferencing_model_is_invalid_input_that_names_the_roots(
    find: Finder, tmp_path: Path
) -> None:
    roots = [tmp_path / "here", tmp_path / "there"]
    with pytest.raises(InvalidInput, match="no model directory found for model 'tiny'") as refusal:
        find("tiny", roots)
    assert all(str(root) in str(refusal.value) for root in roots)


def test_an_absent_embedding_model_is_not_supported_and_the_roots_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotSupported, match="unknown embedding model 'mini'") as refusal:
        models.find_embedding_model("mini", [tmp_path])
    assert str(tmp_path) in str(refusal.value)


def test_an_inferencing_model_is_not_an_embedding_model(tmp_path: Path) -> None:
    put(tmp_path, "llama/tiny/model.safetensors")
    with pytest.raises(ModelNotSupported, match="unknown embedding model 'tiny'") as refusal:
        models.find_embedding_model("tiny", [tmp_path])
    assert refusal.value.args[1:] == ("to continue a text with it: refllm infer tiny PROMPT",)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("minny", "mini"),
        ("MINI", "mini"),
        ("all-MiniLM-L6-v2", "all-minilm-l6-v2"),
        ("llama2", "llama2-chat"),
        ("tiny-lama-chat", "tinyllama-chat"),
    ],
)
@pytest.mark.parametrize("find", FINDERS)
def test_an_absent_model_s_error_has_the_names_that_are_spelled_like_it(
    find: Finder, name: str, meant: str, tmp_path: Path
) -> None:
    put(tmp_path, "mini/model.safetensors")
    with pytest.raises((InvalidInput, ModelNotSupported)) as refusal:
        find(name, [tmp_path])
    _, similar, where = refusal.value.args
    assert similar.startswith("did you mean ")
    assert meant in similar.removeprefix("did you mean ").removesuffix("?").split(" or ")
    assert where == "to see the models that are here: refllm models list"


def test_a_name_like_no_other_gets_no_suggestion(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as refusal:
        models.find_model("xyzzy", [tmp_path])
    assert refusal.value.args[1:] == ("to see the models that are here: refllm models list",)


def test_an_absent_path_s_error_has_the_paths_that_are_spelled_like_it(tmp_path: Path) -> None:
    put(tmp_path, "stories.gguf", "mini/model.safetensors", "storeys.txt")
    lines = list(models.absent_path(tmp_path / "storys.gguf"))
    assert lines == [
        f"there is no model at {tmp_path / 'storys.gguf'}",
        f"did you mean {tmp_path / 'stories.gguf'}?",
    ]


def test_a_repository_of_the_hub_in_place_of_a_path_comes_with_the_command() -> None:
    repository = Path("sentence-transformers", "all-MiniLM-L6-v2")
    assert f"to fetch it from the Hugging Face Hub: refllm models pull {repository}" in list(
        models.absent_path(repository)
    )


@pytest.mark.parametrize("find", FINDERS)
def test_an_absent_model_that_can_be_pulled_comes_with_the_command(
    find: Finder, tmp_path: Path
) -> None:
    with pytest.raises((InvalidInput, ModelNotSupported)) as refusal:
        find("tinyllama-chat", [tmp_path])
    assert str(refusal.value).endswith("\nto fetch it: refllm models pull tinyllama-chat")


@pytest.mark.parametrize("name", STAND_INS)
@pytest.mark.parametrize("find", FINDERS)
def test_an_absent_model_that_another_could_stand_in_for_has_an_error_of_three_lines(
    find: Finder, name: str, tmp_path: Path
) -> None:
    with pytest.raises((InvalidInput, ModelNotSupported)) as refusal:
        find(name, [tmp_path])
    looked, pull, stand_in = str(refusal.value).splitlines()
    assert looked.endswith(f"looked in {tmp_path}")
    assert pull == f"to fetch it: refllm models pull {name}"
    assert stand_in == (
        f"to have {STAND_INS[name]} answer instead: "
        "--stand-ins, LocalEngine(stand_ins=True) or REFLLM_STAND_INS=1"
    )


def test_the_pullable_models_are_the_models_of_the_catalog() -> None:
    assert {*PUBLISHED, *KNOWN_REPOSITORIES} == models.PULLABLE


@pytest.mark.parametrize("file", ["mistral/tiny/model.safetensors", "mistral/tiny.gguf"])
@pytest.mark.parametrize("find", [models.find_inferencing_model, models.find_model])
def test_an_unknown_architecture_folder_is_not_supported_and_named(
    file: str, find: Finder, tmp_path: Path
) -> None:
    put(tmp_path, file)
    with pytest.raises(ModelNotSupported, match=r"mistral.*supported here: llama"):
        find("tiny", [tmp_path])


def test_an_embedding_folder_holds_no_inferencing_models(tmp_path: Path) -> None:
    put(tmp_path, "bert/mini/model.safetensors")
    with pytest.raises(
        ModelNotSupported, match=r"'mini' .*bert.*\nto make vectors with it: refllm embed mini TEXT"
    ):
        models.find_inferencing_model("mini", [tmp_path])


def test_a_folder_inside_a_model_is_no_architecture(tmp_path: Path) -> None:
    put(tmp_path, "mini/model.safetensors", "mini/1_Pooling/config.json")
    with pytest.raises(InvalidInput, match="no model directory"):
        models.find_inferencing_model("1_Pooling", [tmp_path])


@pytest.mark.parametrize("file", ["llama/tiny/tokenizer.json", "tiny/config.json", "tiny/notes.md"])
def test_a_folder_without_weights_is_named_with_what_it_lacks(file: str, tmp_path: Path) -> None:
    put(tmp_path, file)
    with pytest.raises(LlmRuntimeError, match=r"model\.safetensors.*\.gguf") as refusal:
        models.find_inferencing_model("tiny", [tmp_path])
    assert str(refusal.value).startswith(str((tmp_path / file).parent))


def test_several_ggufs_without_the_models_name_are_named(tmp_path: Path) -> None:
    put(tmp_path, "llama/tiny/q4.gguf", "llama/tiny/q8.gguf")
    with pytest.raises(LlmRuntimeError, match=r"q4\.gguf, q8\.gguf.*call one tiny\.gguf"):
        models.find_inferencing_model("tiny", [tmp_path])


def test_many_ggufs_do_not_make_a_long_message(tmp_path: Path) -> None:
    put(tmp_path, *(f"tiny/{i:03}.gguf" for i in range(200)))
    with pytest.raises(LlmRuntimeError, match="and 195 more"):
        models.find_model("tiny", [tmp_path])


def test_a_hidden_file_is_not_a_model(tmp_path: Path) -> None:
    put(tmp_path, "tiny/.download.gguf")
    with pytest.raises(LlmRuntimeError, match="has no weights"):
        models.find_model("tiny", [tmp_path])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_is_not_a_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tiny.gguf")
    with pytest.raises(InvalidInput, match="no model directory"):
        models.find_model("tiny", [tmp_path])


def test_the_longest_name_is_looked_for_without_an_error_of_the_file_system(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no model directory"):
        models.find_model("a" * 255, [tmp_path])


def test_a_link_that_leads_to_itself_is_named(tmp_path: Path) -> None:
    (tmp_path / "tiny").symlink_to(tmp_path / "tiny")
    with pytest.raises(LlmRuntimeError) as refusal:
        models.find_model("tiny", [tmp_path])
    assert str(refusal.value).startswith(str(tmp_path / "tiny"))


def test_the_default_roots_are_this_folders_the_pulled_ones_and_the_package_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFLLM_HOME", str(tmp_path))
    assert models.default_roots() == (Path(".spin/ai-models"), tmp_path / "ai-models", ROOT)


def test_pulled_models_are_in_the_home_directory_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REFLLM_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert models.pulled_models_root() == tmp_path / ".refllm" / "ai-models"


def test_every_model_is_listed_with_its_architecture(tmp_path: Path) -> None:
    put(
        tmp_path,
        "llama/b/model.safetensors",
        "llama/a.gguf",
        "mistral/c/model.safetensors",
        "flat.gguf",
        "mini/model.safetensors",
        "mini/1_Pooling/config.json",
        ".partial-x/model/model.safetensors",
        "notes.txt",
        "empty/notes.txt",
    )
    found = models.list_models([tmp_path / "absent", tmp_path])
    assert [(model.name, model.architecture) for model in found] == [
        ("flat", None),
        ("a", "llama"),
        ("b", "llama"),
        ("mini", None),
        ("c", "mistral"),
    ]


def test_a_listed_model_is_found_by_its_name(tmp_path: Path) -> None:
    put(tmp_path, "llama/b/model.safetensors", "llama/a.gguf", "flat.gguf", "mini/x.gguf")
    for model in models.list_models([tmp_path]):
        assert model.path in (path := models.find_model(model.name, [tmp_path]), path.parent)
