"""What a run found out, ready to be told: the `report_…` modules write it for people and machines.

report_text     a terminal          report_html     a browser, one file
report_json     programs            report_junit    a CI system
report_badge    a README
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from typing import get_args
from urllib.parse import urlsplit, urlunsplit

from refllm import __version__
from refllm.conform.case import GROUPS, Group
from refllm.conform.reply import Implementation
from refllm.conform.verdict import Status, Verdict
from refllm.kernels.threads import available_cpus

__all__ = ["STATUSES", "Report", "counted", "environment_here", "without_password"]

STATUSES: tuple[Status, ...] = get_args(Status)

PLURALS: Mapping[Status, str] = {
    "error": "errors",
    "expected failure": "expected failures",
    "unexpected pass": "unexpected passes",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A run of the suite against one target.

    `target` is what the user wrote, `profile` the name of the known deviations, if any were
    granted. `environment` describes the machine that asked, `started` is in UTC, and `seconds` is
    how long the whole run took. `verdicts` are in the order in which the cases ran.
    """

    implementation: Implementation
    target: str
    verdicts: tuple[Verdict, ...]
    suite_version: str
    profile: str | None
    environment: Mapping[str, str]
    started: datetime
    seconds: float

    @property
    def name(self) -> str:
        """Who was tested, for a headline: "llama-server b4404"."""
        return f"{self.implementation.name} {self.implementation.version}".strip()

    @property
    def details(self) -> dict[str, str]:
        """What the target says of itself besides, by name; without the password of a URL."""
        said = sorted(self.implementation.details.items())
        return {key: without_password(value) for key, value in said}

    def groups(self) -> tuple[Group, ...]:
        """The groups that have a verdict, in the suite's order."""
        present = {verdict.case.group for verdict in self.verdicts}
        return tuple(group for group in GROUPS if group in present)

    def of_group(self, group: Group) -> tuple[Verdict, ...]:
        """The verdicts of one group."""
        return tuple(verdict for verdict in self.verdicts if verdict.case.group == group)

    def with_status(self, *statuses: Status) -> tuple[Verdict, ...]:
        """The verdicts that ended in one of these ways."""
        return tuple(verdict for verdict in self.verdicts if verdict.status in statuses)

    @property
    def counts(self) -> dict[Group, dict[Status, int]]:
        """How many verdicts of each group, present or not, ended in each way."""
        found = Counter((verdict.case.group, verdict.status) for verdict in self.verdicts)
        return {group: {status: found[group, status] for status in STATUSES} for group in GROUPS}

    @property
    def totals(self) -> dict[Status, int]:
        """How many verdicts ended in each way."""
        found = Counter(verdict.status for verdict in self.verdicts)
        return {status: found[status] for status in STATUSES}

    @property
    def summary(self) -> str:
        """The totals that are not 0, in words: "300 passed, 1 failed, 11 skipped"."""
        present = [counted(n, status) for status, n in self.totals.items() if n]
        return ", ".join(present) or "no cases"

    @property
    def causes(self) -> dict[str, int]:
        """The likely causes and how many cases each explains, the one that explains most first."""
        found = Counter(verdict.cause for verdict in self.verdicts if verdict.cause is not None)
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    @property
    def exit_code(self) -> int:
        """0 all as expected, 1 not, 2 some cases could not be asked, or all were skipped.

        A failure says something about the backend, whatever else broke: it goes before an error.
        """
        totals = self.totals
        if totals["failed"] or totals["unexpected pass"]:
            return 1
        return 2 if totals["error"] or self._is_empty else 0

    @property
    def outcome(self) -> str:
        """What the exit code means, in a few words."""
        if self._is_empty:
            return "nothing was tested"
        return ("all as expected", "not as expected", "the harness broke")[self.exit_code]

    @property
    def _is_empty(self) -> bool:
        """Whether every case was skipped."""
        return self.totals["skipped"] == len(self.verdicts)


def counted(n: int, status: Status) -> str:
    """So many of them in words: "3 passed", "1 error", "2 unexpected passes"."""
    return f"{n} {status if n == 1 else PLURALS.get(status, status)}"


def environment_here() -> dict[str, str]:
    """This machine and its software, for people: no name of a host, of a user or of a path."""
    # Whoever reads reports shall not wait for numba.
    from refllm.kernels.cpu import NAME

    return {
        "refllm": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "numpy": version("numpy"),
        "numba": version("numba"),
        "system": _system(),
        "machine": platform.machine(),
        "cpu": NAME,
        "cpus": str(available_cpus()),
    }


def _system() -> str:
    """The C library says more about a Linux than its kernel, whose name says who built it."""
    system = platform.system()
    if system == "Linux":
        return ", ".join(filter(None, (system, " ".join(platform.libc_ver()).strip())))
    return f"{system} {platform.release()}".strip()


def without_password(target: str) -> str:
    """The target without the user and the password that a URL can hold; reports are passed on."""
    try:
        url = urlsplit(target)
    except ValueError:  # a command in which something looks like the start of an IPv6 address
        return target
    if url.scheme not in ("http", "https") or "@" not in url.netloc:
        return target
    return urlunsplit(url._replace(netloc=url.netloc.rpartition("@")[2]))
