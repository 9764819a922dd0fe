"""`refllm new NAME --language LANGUAGE`: a small Spin application with its tests.

The files are those of `templates/LANGUAGE`, with the application's name in the place of @NAME@. A
file of which a tool would take notice here, such as a test, has the ending `.template`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from refllm.cli.common import write_text
from refllm.errors import InvalidInput

__all__ = ["Language", "files_of", "new"]

TEMPLATES = Path(__file__).parent / "templates"
TEMPLATE = ".template"
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
MAX_NAME_CHARACTERS = 64


class Language(StrEnum):
    """The languages of Spin's SDKs."""

    RUST = "rust"
    TS = "ts"
    PYTHON = "python"
    GO = "go"


def new(
    *,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The application and its folder: my-app.")
    ],
    language: Annotated[Language, typer.Option(help="What the component is written in.")],
) -> None:
    """Write a small Spin application that asks a model, with its tests.

    Its README.md has the commands that build, test and run it. A folder that is there is not
    touched.
    """
    if not NAME.fullmatch(name) or len(name) > MAX_NAME_CHARACTERS:
        raise InvalidInput(
            f"the name {name!r:.80} must have lower-case letters, digits and single hyphens, and "
            f"begin with a letter; at most {MAX_NAME_CHARACTERS} characters"
        )
    folder = Path(name)
    try:
        folder.mkdir()
        for path, text in files_of(language, name).items():
            file = folder / path
            file.parent.mkdir(exist_ok=True)
            file.write_text(text, "utf-8")
    except FileExistsError as error:
        raise InvalidInput(
            f"there is {folder} already, and nothing is written over it", "choose another name"
        ) from error
    except OSError as error:
        raise InvalidInput(f"{folder} cannot be written: {error.strerror}") from error
    write_text(f"{folder / 'README.md'}\n")


def files_of(language: Language, name: str) -> Mapping[str, str]:
    """Return the text of each file of an application, by its path in the application's folder.

    Args:
        language: What the component is written in.
        name: The application's.
    """
    folder = TEMPLATES / language
    files = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        path = file.relative_to(folder).as_posix().removesuffix(TEMPLATE)
        path = {"gitignore": ".gitignore"}.get(path, path)
        files[path] = file.read_text("utf-8").replace("@NAME@", name)
    return files
