"""The engines of an application's components: each has its own `ai_models`, all share the models.

A model that two components may use is loaded once. Spin has one engine for all components, too.
"""

from __future__ import annotations

from typing import Any

from refllm.engine import LocalEngine
from refllm.spin.component import engine_for
from refllm.wasm.http.application import Application

__all__ = ["engines_of"]


def engines_of(
    application: Application,
    **options: Any,
) -> dict[str, LocalEngine]:
    """An engine for each component, by the component's id.

    It allows what spin.toml says, and looks in the application's folder first; a component without
    a spin.toml may use every model. `options` are those of `engine_for`. Errors:
    `InvalidInput` naming a wrong option.
    """
    if application.manifest is None:
        engine = LocalEngine(**options)
        return dict.fromkeys(application.components, engine)
    first = next(iter(application.components))
    engine = engine_for(application.manifest, first, **options)
    return {
        id_: engine.restricted_to(component.ai_models or ())
        for id_, component in application.components.items()
    }
