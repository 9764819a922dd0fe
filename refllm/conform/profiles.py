"""Known deviations of a backend: which cases it fails, why, and where that is described.

    profile = load_profile("spin-local")
    profile.deviation_of("api/top-k-zero").because

`golden/profiles/README.md` describes the files.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from refllm.conform.suite import golden_root, nearest
from refllm.errors import InvalidInput
from refllm.spin.toml import toml_document

__all__ = ["Deviation", "Profile", "load_profile", "profile_names", "require_known_cases"]

ENDING = ".toml"
NEAREST = 3  # ids that are shown beside a pattern that matches none


@dataclass(frozen=True, slots=True, kw_only=True)
class Deviation:
    """Cases that fail, why in a sentence, and a link to where that can be read.

    `cases` are ids or patterns with * and ?, `exceptions` those that are not meant. `may_pass`:
    nobody promises that they fail.
    """

    cases: tuple[str, ...]
    exceptions: tuple[str, ...] = ()
    because: str
    link: str
    may_pass: bool = False

    def names(self, case_id: str) -> bool:
        """Whether the case is one of them."""
        return _matches(case_id, self.cases) and not _matches(case_id, self.exceptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What is known of a backend: its name, whose it is in a sentence, and its deviations."""

    name: str
    about: str
    deviations: tuple[Deviation, ...]

    def deviation_of(self, case_id: str) -> Deviation | None:
        """The first deviation that names the case; None where it must pass."""
        return next((each for each in self.deviations if each.names(case_id)), None)

    def unmatched(self, case_ids: Collection[str]) -> tuple[str, ...]:
        """The patterns that match none of these ids, exceptions among them; each once."""
        patterns = dict.fromkeys(
            pattern for each in self.deviations for pattern in (*each.cases, *each.exceptions)
        )
        return tuple(
            pattern
            for pattern in patterns
            if not any(_matches(case_id, [pattern]) for case_id in case_ids)
        )


def profile_names(root: Path | None = None) -> list[str]:
    """The names of the profiles that come with the suite, in their order."""
    return sorted(path.name.removesuffix(ENDING) for path in _folder(root).glob(f"*{ENDING}"))


def load_profile(name: str, root: Path | None = None) -> Profile:
    """The profile of that name, or the one in the .toml file of that path.

    `root` is the folder of the golden files, by default those of the suite. Errors: `InvalidInput`
    naming the file and what is wrong with it, or the profiles that there are.
    """
    if name.endswith(ENDING):
        path = Path(name)
    elif name in profile_names(root):
        path = _folder(root) / f"{name}{ENDING}"
    else:
        known = ", ".join(profile_names(root)) or "none"
        raise InvalidInput(
            f"there is no profile {name!r:.80}{nearest(name, profile_names(root))} Those of the "
            f"suite are: {known}; one of your own is named by its path, which ends in {ENDING}"
        )
    try:
        document = toml_document(path)
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InvalidInput(f"{path} is no TOML: {error}") from error
    try:
        return _profile(document)
    except ValueError as error:
        raise InvalidInput(f"{path}: {error}") from None


def require_known_cases(profile: Profile, case_ids: Collection[str]) -> None:
    """Raise `InvalidInput` naming the patterns that match none of the suite's ids, and the nearest.

    A deviation that is misspelled would be granted to nothing, and nobody would know.
    """
    unmatched = profile.unmatched(case_ids)
    if unmatched:
        raise InvalidInput(
            f"the profile {profile.name} names cases that the suite does not have",
            *(
                f"{pattern!r:.80}: the nearest ids are "
                + ", ".join(get_close_matches(pattern, case_ids, n=NEAREST, cutoff=0.0))
                for pattern in unmatched
            ),
        )


def _folder(root: Path | None) -> Path:
    return (golden_root() if root is None else root) / "profiles"


def _matches(case_id: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(case_id, pattern) for pattern in patterns)


# --- Reading -------------------------------------------------------------------------------------


def _profile(document: Mapping[str, Any]) -> Profile:
    """Errors: `ValueError` naming the field."""
    _check_keys("a profile", document, ("name", "about", "deviation"))
    tables = document.get("deviation")
    if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
        raise ValueError("it must have [[deviation]] tables")
    return Profile(
        name=_text("name", document),
        about=_text("about", document),
        deviations=tuple(map(_deviation, tables)),
    )


def _deviation(table: Mapping[str, Any]) -> Deviation:
    _check_keys("a deviation", table, ("cases", "except", "because", "link", "may_pass"))
    link = _text("link", table)
    if not link.startswith("https://"):
        raise ValueError(f"link must begin with https://, got {link!r:.80}")
    may_pass = table.get("may_pass", False)
    if not isinstance(may_pass, bool):
        raise ValueError(f"may_pass must be true or false, got {may_pass!r:.80}")  # noqa: TRY004
    return Deviation(
        cases=_patterns("cases", table.get("cases")),
        exceptions=_patterns("except", table.get("except", []), least=0),
        because=_text("because", table),
        link=link,
        may_pass=may_pass,
    )


def _patterns(name: str, value: object, *, least: int = 1) -> tuple[str, ...]:
    is_list = isinstance(value, list) and all(isinstance(each, str) and each for each in value)
    if not is_list or len(value) < least:  # type: ignore[arg-type]
        raise ValueError(f"{name} must be a list of cases' ids, got {value!r:.80}")
    return tuple(value)  # type: ignore[arg-type]


def _text(name: str, table: Mapping[str, Any]) -> str:
    value = table.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} must be text, got {value!r:.80}")
    return value


def _check_keys(what: str, table: Mapping[str, Any], known: Sequence[str]) -> None:
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise ValueError(f"{what} has no {unknown[0]}; it has {', '.join(known)}")
