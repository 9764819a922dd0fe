"""`refllm doctor`: what is wrong here, and the command that fixes it."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from refllm.cli.common import FAILED, JsonOption, one_line, write_json, write_text

__all__ = ["doctor"]


def doctor(
    *,
    folder: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="The project; the current folder unless given.")
    ] = Path(),
    json: JsonOption = False,
) -> None:
    """Check this machine and the project in DIR: CPU, kernels, folders, models and spin.toml.

    Each line is a finding: ok, warning or broken, the check's name and what was found; the line
    below it is how to fix it. Nothing is changed. Exits with 1 if something is broken.
    """
    from refllm.doctor import examine
    from refllm.errors import InvalidInput
    from refllm.models.find import pulled_models_root

    if not folder.is_dir():
        raise InvalidInput(f"there is no folder {folder}")
    roots = (folder / ".spin" / "ai-models", pulled_models_root())
    findings = list(examine(folder, roots, os.environ))
    is_broken = any(finding.level == "broken" for finding in findings)
    if json:
        write_json({"is_broken": is_broken, "findings": [asdict(found) for found in findings]})
    else:
        for found in findings:
            write_text(f"{found.level:8} {found.check}: {one_line(found.what)}\n")
            if found.remedy is not None:
                write_text(f"         fix: {one_line(found.remedy)}\n")
    if is_broken:
        raise typer.Exit(FAILED)
