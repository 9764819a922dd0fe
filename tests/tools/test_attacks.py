"""Each file of attacks/ in its place in a model that is right: refused, by a message that names it.

The folder's name is the file that takes the place of the model's own; see attacks/README.md.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from refllm.api import InvalidInput, LlmError, LlmRuntimeError, ModelNotSupported
from refllm.checkpoints.chat_template import chat_prompt
from refllm.models.load import LlamaModel, load_path
from tools.attack.models import stored_folder, write_files

ATTACKS = Path(__file__).parents[2] / "attacks"
MAX_BYTES = 200_000
HELLO = [{"role": "user", "content": "Hello!"}]

# The file, the error, and words of its message.
OF_MODELS: Sequence[tuple[str, type[LlmError], Sequence[str]]] = (
    ("config.json/eps-of-401-digits.json", LlmRuntimeError, ("rms_norm_eps", "finite")),
    ("config.json/key-twice.json", LlmRuntimeError, ("'head_dim' appears twice",)),
    ("config.json/layers-without-end.json", LlmRuntimeError, ("num_hidden_layers", "1 to 1024")),
    ("config.json/nested.json", LlmRuntimeError, ("config.json",)),
    ("config.json/context-of-nothing.json", LlmRuntimeError, ("max_position_embeddings",)),
    ("config.json/frequencies-that-do-not-exist.json", LlmRuntimeError, ("YaRN", "rope_theta")),
    ("gguf/announces-2^60-keys.gguf", LlmRuntimeError, (f"{2**60} metadata keys",)),
    ("gguf/announces-2^60-tensors.gguf", LlmRuntimeError, (f"{2**60} tensors",)),
    ("gguf/array-of-2^60-strings.gguf", LlmRuntimeError, ("arrays of", f"{2**60}")),
    ("gguf/string-of-2^63-bytes.gguf", LlmRuntimeError, ("truncated or damaged",)),
    ("gguf/alignment-0.gguf", LlmRuntimeError, ("alignment",)),
    ("gguf/key-twice.gguf", LlmRuntimeError, ("llama.block_count",)),
    ("gguf/tensor-of-2^64-numbers.gguf", LlmRuntimeError, ("token_embd.weight",)),
    ("gguf/tensors-overlap.gguf", LlmRuntimeError, ("output.weight", "overlap")),
    ("gguf/type-999.gguf", LlmRuntimeError, ("token_embd.weight", "unknown GGML type 999")),
    ("gguf/offset-2^63.gguf", LlmRuntimeError, ("token_embd.weight", "outside the file")),
    ("gguf/layers-without-end.gguf", LlmRuntimeError, ("llama.block_count", "1 to 1024")),
    (
        "model.safetensors/header-of-2^63-bytes.safetensors",
        LlmRuntimeError,
        ("model.safetensors", "not a whole safetensors file"),
    ),
    (
        "model.safetensors/offsets-beyond-the-file.safetensors",
        LlmRuntimeError,
        ("model.safetensors", "not a whole safetensors file"),
    ),
    (
        "model.safetensors/shape-of-2^64-numbers.safetensors",
        LlmRuntimeError,
        ("model.safetensors", "not a whole safetensors file"),
    ),
    (
        "model.safetensors.index.json/file-outside-the-folder.json",
        LlmRuntimeError,
        ("weight_map", "'../model.safetensors'", "same folder"),
    ),
    ("tokenizer.json/absurd-id.json", LlmRuntimeError, ("tokenizer.json", "id 1000000")),
    (
        "tokenizer.json/absurd-id-of-an-added-token.json",
        LlmRuntimeError,
        ("tokenizer.json", "id 1000000"),
    ),
    (
        "tokenizer.model/score-that-is-no-number.model",
        LlmRuntimeError,
        ("'▁far'", "score"),
    ),
    ("modules.json/folder-outside.json", LlmRuntimeError, ("path", "'../1_Pooling'")),
    ("modules.json/code-of-the-model.json", ModelNotSupported, ("type", "'os.system'")),
)
OF_TEMPLATES: Sequence[tuple[str, type[LlmError], Sequence[str]]] = (
    ("templates/break-outside-a-loop.jinja", LlmRuntimeError, ("cannot be used", "break")),
    ("templates/unknown-codec.jinja", InvalidInput, ("no such codec",)),
    ("templates/wrong-shape.jinja", InvalidInput, ("makes nothing of the messages",)),
    ("templates/reaches-for-classes.jinja", LlmRuntimeError, ("cannot be used", "__class__")),
)
OF_NUMBERS = "gguf/number-that-is-none.gguf"


def placed(name: str, folder: Path) -> Path:
    """The path of a model that has the file in it."""
    place = name.partition("/")[0]
    if place == "gguf":
        return Path(shutil.copy(ATTACKS / name, folder / "model.gguf"))
    files = dict(stored_folder("bert" if place == "modules.json" else "llama"))
    if place == "tokenizer.model":
        del files["tokenizer.json"]
    if place == "model.safetensors.index.json":
        del files["model.safetensors"]
    write_files(folder, {**files, place: (ATTACKS / name).read_bytes()})
    return folder


@pytest.mark.parametrize(("name", "error", "words"), OF_MODELS)
def test_a_hostile_model_is_refused_by_name(
    name: str, error: type[LlmError], words: Sequence[str], tmp_path: Path
) -> None:
    path = placed(name, tmp_path)
    with pytest.raises(error) as raised:
        load_path(path)
    assert type(raised.value) is error
    assert [word for word in words if word not in str(raised.value)] == []


def test_the_model_in_which_they_are_placed_is_right(tmp_path: Path) -> None:
    write_files(tmp_path, stored_folder("llama"))
    assert isinstance(load_path(tmp_path), LlamaModel)


@pytest.mark.parametrize(("name", "error", "words"), OF_TEMPLATES)
def test_a_hostile_template_is_refused_by_its_own_fault(
    name: str, error: type[LlmError], words: Sequence[str]
) -> None:
    template = (ATTACKS / name).read_text()
    with pytest.raises(error) as raised:
        chat_prompt(template, HELLO, special_tokens={})
    assert type(raised.value) is error
    assert [word for word in words if word not in str(raised.value)] == []


def test_a_value_that_is_not_finite_is_found_when_it_is_computed(tmp_path: Path) -> None:
    model = load_path(placed(OF_NUMBERS, tmp_path))
    assert isinstance(model, LlamaModel)
    with pytest.raises(LlmRuntimeError, match="not finite"):
        model.forward([1, 2])


def test_every_file_is_tested_and_all_are_small() -> None:
    files = {
        str(path.relative_to(ATTACKS)): path.stat().st_size
        for path in ATTACKS.rglob("*")
        if path.is_file() and path.parent != ATTACKS
    }
    tested = {name for name, _, _ in (*OF_MODELS, *OF_TEMPLATES)} | {OF_NUMBERS}
    assert tested == set(files)
    assert sum(files.values()) < MAX_BYTES


def test_the_readme_names_every_file() -> None:
    page = (ATTACKS / "README.md").read_text()
    names = [name for name, _, _ in (*OF_MODELS, *OF_TEMPLATES)]
    assert [name for name in [*names, OF_NUMBERS] if Path(name).name not in page] == []
