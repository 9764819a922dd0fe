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
    """Cases that fail, why, and where the reason is described.

    Attributes:
        cases: Ids, or patterns with * and ?.
        exceptions: Those of them that the deviation does not cover.
        because: Why they fail, a sentence.
        link: The page that describes it.
        may_pass: Whether a pass is as expected as a failure.
    """

    cases: tuple[str, ...]
    exceptions: tuple[str, ...] = ()
    because: str
    link: str
    may_pass: bool = False

    def names(self, case_id: str) -> bool:
        """Return whether the deviation covers the case."""
        return _matches(case_id, self.cases) and not _matches(case_id, self.exceptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The known deviations of a backend; `about` describes the backend in a sentence."""

    name: str
    about: str
    deviations: tuple[Deviation, ...]

    def deviation_of(self, case_id: str) -> Deviation | None:
        """Return the first deviation that covers the case, None where it must pass."""
        return next((each for each in self.deviations if each.names(case_id)), None)

    def unmatched(self, case_ids: Collection[str]) -> tuple[str, ...]:
        """Return the patterns, of exceptions too, that match none of these ids; each once."""
        patterns = dict.fromkeys(
            pattern for each in self.deviations for pattern in (*each.cases, *each.exceptions)
        )
        return tuple(
            pattern
            for pattern in patterns
            if not any(_matches(case_id, [pattern]) for case_id in case_ids)
        )


def profile_names(root: Path | None = None) -> list[str]:
    """Return the names of the profiles that ship with the suite, sorted."""
    return sorted(path.name.removesuffix(ENDING) for path in _folder(root).glob(f"*{ENDING}"))


def load_profile(name: str, root: Path | None = None) -> Profile:
    """Return the profile of that name, or the one in a .toml file.

    Args:
        name: Of a profile of the suite, or the path of a file that ends in .toml.
        root: The folder of the golden files, by default that of `golden_root`.

    Raises:
        InvalidInput: Naming the file and what is wrong with it, or the profiles that there are.
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
        raise InvalidInput(f"{path} is not TOML: {error}") from error
    try:
        return _profile(document)
    except ValueError as error:
        raise InvalidInput(f"{path}: {error}") from None


def require_known_cases(profile: Profile, case_ids: Collection[str]) -> None:
    """Raise unless every pattern of the profile matches one of the suite's ids.

    A misspelled deviation would have no effect, without any sign of it.

    Raises:
        InvalidInput: Naming the patterns that match none, and the nearest ids.
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
    """Return the profile of a TOML document; raise `ValueError` naming the field."""
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
