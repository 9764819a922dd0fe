"""Checks of a Spin project: its folder of models, and the models that `spin.toml` names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from refllm.doctor.finding import Finding, Level, quoted
from refllm.errors import LlmError, LlmRuntimeError
from refllm.models.find import PULLABLE, find_model
from refllm.spin.manifest import read_manifest

__all__ = ["check_folders", "check_manifest"]

MODELS_FOLDER = Path(".spin", "ai-models")
MISPLACED = (".spin/ai_models", "ai-models", "ai_models")


def check_folders(project: Path) -> Iterator[Finding]:
    """Yield whether the project has Spin's folder of models, and folders that Spin ignores."""
    right = project / MODELS_FOLDER
    misplaced = [project / place for place in MISPLACED if (project / place).is_dir()]
    for wrong in misplaced:
        what = f"{wrong}: models are looked for in {right}, and not here"
        move = f"mv {quoted(wrong)} {quoted(right)}"
        if right.is_dir():
            move = f"mv {quoted(wrong)}/* {quoted(right)}/"
        remedy = f"mkdir -p {quoted(right.parent)} && {move}"
        yield Finding("misplaced-folder", "broken", what, remedy)
    if right.is_dir():
        yield Finding("ai-models-folder", "ok", f"models are kept in {right}")
    elif not misplaced:
        what = f"there is no {right}, where Spin looks for models"
        yield Finding("ai-models-folder", "warning", what, f"mkdir -p {quoted(right / 'llama')}")


def check_manifest(
    path: Path, roots: Sequence[Path], stand_ins: Mapping[str, str]
) -> Iterator[Finding]:
    """Yield whether a manifest can be read, and each model that it names and no root has.

    Args:
        path: The manifest; nothing is yielded where there is none.
        roots: The folders of models.
        stand_ins: The bundled models that answer for models that are not there.
    """
    if not path.exists():
        return
    try:
        components = read_manifest(path).components
    except LlmRuntimeError as error:
        yield Finding("manifest", "broken", str(error), f"edit {path}")
        return
    n = len(components)
    yield Finding("manifest", "ok", f"{path}: {n} component{'' if n == 1 else 's'}")
    for component in components.values():
        for name in component.ai_models:
            try:
                find_model(name, roots)
            except LlmRuntimeError:  # it is there and damaged, which the checks of models report
                continue
            except LlmError as error:
                level: Level = "broken"
                what = f"{path}: component {component.id} names a model that is not there: "
                what += error.args[0]
                if name in stand_ins:
                    what, level = f"{what}; {stand_ins[name]} stands in for it", "warning"
                remedy = f"put its files into {path.parent / MODELS_FOLDER / 'llama' / name}"
                if name in PULLABLE:
                    remedy = f"refllm models pull {name}"
                yield Finding("manifest-model", level, what, remedy)
