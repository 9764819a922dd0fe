"""The project's English: one plain term for each thing, and no house words.

CONTRIBUTING.md has the rules; these are the words that a program can find.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import PROJECT

HOUSE_WORDS = {
    r"who(so)?ever|whomever": "name the actor: the caller, the client, the user",
    r"(no|some|any|every)body": "name the actor: no client, a process, every reader",
    r"mend(s|ed|ing)?": "fix, correct, repair",
    r"anew": "again, once more",
    r"guilty|forgiv(es?|en|ing)": "name the first value or key that is wrong",
    r"its sisters|and sisters": "name the functions",
    r"said once|measured anew": "say what the change does",
    r"(?-i:_?(MOST|LEAST|FEWEST)_[A-Z_]+)": "MAX_, MIN_",
}
SUFFIXES = (".py", ".md", ".sh", ".toml", ".jinja", ".yml")
FOLDERS = ("refllm", "tests", "tools", "benchmarks", "docs", "findings", "attacks", "examples")
# The words of a story, of a text that is embedded, and of this list.
EXEMPT = ("tools/tiny_chat/", "tools/make_embedding_goldens.py", "tests/docs/test_words.py")


def texts() -> list[str]:
    """The project's own texts, by their paths in it."""
    found = [*PROJECT.glob("*.md"), PROJECT / "justfile", PROJECT / "pyproject.toml"]
    for folder in FOLDERS:
        found += [path for path in (PROJECT / folder).rglob("*") if path.suffix in SUFFIXES]
    paths = [path.relative_to(PROJECT) for path in found if path.is_file()]
    skipped = ("_build", "__pycache__", "node_modules", "target")
    return sorted(
        path.as_posix()
        for path in paths
        if not set(skipped) & set(path.parts) and not path.as_posix().startswith(EXEMPT)
    )


def test_the_word_check_reads_code_and_pages() -> None:
    assert {"README.md", "refllm/llama.py", "docs/security.md"} <= set(texts())


@pytest.mark.parametrize("words", HOUSE_WORDS)
def test_no_text_has_a_house_word(words: str) -> None:
    pattern = re.compile(rf"\b({words})\b", re.IGNORECASE)
    found = [
        f"{path}:{number}: {line.strip()}"
        for path in texts()
        for number, line in enumerate(Path(PROJECT, path).read_text("utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == [], f"write instead: {HOUSE_WORDS[words]}"
