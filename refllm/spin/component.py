"""The engine of a component of a Spin application."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refllm.engine import LocalEngine
from refllm.models.find import default_roots
from refllm.spin.manifest import manifest_path, read_manifest

__all__ = ["engine_for"]


def engine_for(app: Path, component_id: str, **options: Any) -> LocalEngine:
    """Return the engine of one component of the Spin application `app`.

    The engine allows the component's `ai_models`, and looks in the application's `.spin/ai-models`
    before the default roots.

    Args:
        app: The application's spin.toml, or the folder that has it.
        component_id: A key of `[component]` in spin.toml.
        **options: Those of `LocalEngine` but `roots` and `allowed_models`.

    Raises:
        InvalidInput: spin.toml has no such component; the message lists its components.
        LlmRuntimeError: As `read_manifest`.
    """
    manifest = read_manifest(manifest_path(app))
    component = manifest.component(component_id)
    own_root = manifest.path.parent / ".spin" / "ai-models"
    roots = dict.fromkeys(
        (own_root, *default_roots())
    )  # one, if the folder is the working directory
    return LocalEngine(roots=tuple(roots), allowed_models=component.ai_models, **options)
