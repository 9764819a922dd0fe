"""`refllm models pull` and `refllm models list`."""

from __future__ import annotations

from dataclasses import asdict

import typer

from refllm.cli.common import JsonOption, write_json, write_text

__all__ = ["list_"]


def list_(*, json: JsonOption = False) -> None:
    """Print the models that are here: on each line a name, a tab, and where it is.

    They are looked for in .spin/ai-models, then in $REFLLM_HOME/ai-models (REFLLM_HOME is
    ~/.refllm unless set).
    """
    from refllm.models import default_roots, list_models

    roots = default_roots()
    found = list_models(roots)
    if json:
        write_json([{**asdict(model), "path": str(model.path)} for model in found])
    else:
        for model in found:
            write_text(f"{model.name}\t{model.path}\n")
        if not found:
            typer.echo(f"no models in {' or '.join(map(str, roots))}", err=True)
