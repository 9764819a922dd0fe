"""The models of the golden suite, as files for other engines."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Models", "refllm", "write_models"]

# What other engines are given as a folder of transformers; they read no quantized one.
FOLDERS = ("tiny-chat", "tiny-chat-F32", "tiny-chat-F16", "tiny-chat-BF16", "tiny-embed")
MINILM = "all-minilm-l6-v2"


@dataclass(frozen=True, slots=True)
class Models:
    """Two folders with the same models: NAME.gguf, and NAME/ with config.json and safetensors."""

    gguf: Path
    hf: Path


def write_models(folder: Path, *, stories: Path | None, minilm: Path | None) -> Models:
    """Write the suite's models into a folder.

    Args:
        folder: An empty folder.
        stories: stories260K.gguf; without it its cases are skipped.
        minilm: The folder of all-minilm-l6-v2, as `refllm models pull` writes it.
    """
    models = Models(folder / "gguf", folder / "hf")
    refllm("conform", "--write-models", models.gguf)
    export(models.gguf / "tiny-embed.gguf", folder / "F32", "gguf", "--type", "F32")
    (folder / "F32" / "tiny-embed.gguf").rename(models.gguf / "tiny-embed-F32.gguf")
    for name in FOLDERS:
        export(models.gguf / f"{name}.gguf", models.hf, "hf")
    if stories is not None:
        shutil.copyfile(stories, models.gguf / stories.name)
        export(stories, models.hf, "hf")
    if minilm is not None:
        shutil.copytree(minilm, models.hf / MINILM)
        export(models.hf / MINILM, models.gguf, "gguf")
    return models


def export(model: Path, folder: Path, form: str, *options: str) -> None:
    """Write a model in another form."""
    refllm("models", "export", model, "--to", folder, "--format", form, *options)


def refllm(*arguments: str | Path, accepted: Sequence[int] = (0,)) -> None:
    """Run a command of refllm; its output goes to standard error.

    Raises:
        RuntimeError: If it exits with a code that is not accepted.
    """
    command = [sys.executable, "-m", "refllm", *map(str, arguments)]
    code = subprocess.run(command, check=False, stdout=sys.stderr).returncode
    if code not in accepted:
        raise RuntimeError(f"{' '.join(command)} exited with {code}")
