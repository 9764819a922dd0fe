"""The engine that a component of a Spin application gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refllm.engine import LocalEngine
from refllm.models.find import default_roots
from refllm.spin.manifest import manifest_path, read_manifest

__all__ = ["engine_for"]


def engine_for(
    app: Path,
    component_id: str,
    **options: Any,
) -> LocalEngine:
    """Return the engine of one component of the Spin application `app`.

    The engine allows the component's `ai_models`, and looks in the application's `.spin/ai-models`
    before the default roots.

    Args:
        app: The application's spin.toml, or the folder that has it.
        component_id: A key of `[component]` in spin.toml.
        **options: Those of `LocalEngine` but `roots` and `allowed_models`.

    Raises:
        InvalidInput: For a component that spin.toml does not have; the message lists its own.
        LlmRuntimeError: As `read_manifest`.
    """
    manifest = read_manifest(manifest_path(app))
    component = manifest.component(component_id)
    own_root = manifest.path.parent / ".spin" / "ai-models"
    roots = dict.fromkeys((own_root, *default_roots()))  # once, when the app's folder is the cwd
    return LocalEngine(roots=tuple(roots), allowed_models=component.ai_models, **options)
