"""What a run found, and one module for each form in which it is written.

text    a terminal          html     a browser, one file
json    programs            junit    a CI system
badge   a README

Start at `Report`. `files` writes reports to files; `values` and `plot` show values and numbers.
This package may import everything but `refllm.cli`, `refllm.conform.runner` and
`refllm.conform.faults`.
"""

from __future__ import annotations

import platform
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from importlib.metadata import version
from typing import get_args
from urllib.parse import urlsplit, urlunsplit

from refllm import __version__
from refllm.conform.bits import Bits
from refllm.conform.case import GROUPS, Group
from refllm.conform.reply import Implementation
from refllm.conform.targets import is_url
from refllm.conform.verdict import Consequence, Status, Verdict, rank
from refllm.jit.threads import available_cpus

__all__ = ["STATUSES", "Cause", "Report", "counted", "environment_here", "without_password"]

STATUSES: tuple[Status, ...] = get_args(Status)

# In a summary: what is wrong comes first.
SUMMARY_ORDER: tuple[Status, ...] = (
    *("failed", "error", "unexpected pass"),
    *("passed", "expected failure", "skipped", "not applicable"),
)

PLURALS: Mapping[Status, str] = {
    "error": "errors",
    "expected failure": "expected failures",
    "unexpected pass": "unexpected passes",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One fault of the target, and every case that shows it.

    Attributes:
        cause: What is wrong and what to do, in sentences.
        consequence: The worst that the fault does to users in one of the cases.
        is_recognized: Whether the fault is a known one.
        verdicts: Of the cases, in the order in which to look at them: those with the worst
            consequence first, and of these the smallest.
        n_later: How many cases show the fault only once another is taken out of the answer.
    """

    cause: str
    consequence: Consequence
    is_recognized: bool
    verdicts: tuple[Verdict, ...]
    n_later: int

    @property
    def example(self) -> Verdict:
        """Return the verdict of the case to begin with."""
        return self.verdicts[0]


@dataclass(frozen=True, kw_only=True)  # without slots: `causes` is kept
class Report:
    """A run of the suite against one target.

    Attributes:
        implementation: What was tested, as it describes itself.
        target: What the user wrote for TARGET.
        verdicts: In the order in which the cases ran.
        suite_version: The version of the golden suite.
        numerics_revision: The revision of the rule of numerics that the suite's answers follow.
        profile: The name of the known deviations, None if none were granted.
        environment: The machine that asked, see `environment_here`.
        started: When the run began, in UTC.
        seconds: How long the whole run took.
        command: The command that asks the target again, without the choice of cases; "" where the
            target needs no options.
        bits: Whose bits the target computes; None where it was not asked.
    """

    implementation: Implementation
    target: str
    verdicts: tuple[Verdict, ...]
    suite_version: str
    numerics_revision: int
    profile: str | None
    environment: Mapping[str, str]
    started: datetime
    seconds: float
    command: str = ""
    bits: Bits | None = None

    @property
    def name(self) -> str:
        """Return what was tested, for a list: "llama-server b4404"."""
        return f"{self.implementation.name} {self.implementation.version}".strip()

    def command_for(self, case_id: str) -> str:
        """Return the command that asks the target one case."""
        target = without_password(self.target)
        command = self.command or shlex.join(["refllm", "conform", target])
        return f"{command} --only {shlex.quote(case_id)}"

    @property
    def headline(self) -> str:
        """Return what was tested and how it was asked: "llama-server b4404 (C++) at http://…".

        A name that is the target itself is not repeated.
        """
        target = without_password(self.target)
        language = self.implementation.language
        is_target = bool(target) and target.endswith(self.implementation.name)
        name = target if is_target else self.name
        name = f"{name} ({language})" if language else name
        return name if is_target else f"{name} {'at' if is_url(self.target) else 'as'} {target}"

    @property
    def details(self) -> dict[str, str]:
        """Return the implementation's further details, sorted, without the password of a URL."""
        details = sorted(self.implementation.details.items())
        return {key: without_password(value) for key, value in details}

    def groups(self) -> tuple[Group, ...]:
        """Return the groups that have a verdict, in the suite's order."""
        present = {verdict.case.group for verdict in self.verdicts}
        return tuple(group for group in GROUPS if group in present)

    def of_group(self, group: Group) -> tuple[Verdict, ...]:
        """Return the verdicts of one group."""
        return tuple(verdict for verdict in self.verdicts if verdict.case.group == group)

    def with_status(self, *statuses: Status) -> tuple[Verdict, ...]:
        """Return the verdicts with one of these statuses."""
        return tuple(verdict for verdict in self.verdicts if verdict.status in statuses)

    @property
    def counts(self) -> dict[Group, dict[Status, int]]:
        """Return how many verdicts each group, present or not, has of each status."""
        found = Counter((verdict.case.group, verdict.status) for verdict in self.verdicts)
        return {group: {status: found[group, status] for status in STATUSES} for group in GROUPS}

    @property
    def totals(self) -> dict[Status, int]:
        """Return how many verdicts have each status."""
        found = Counter(verdict.status for verdict in self.verdicts)
        return {status: found[status] for status in STATUSES}

    @property
    def summary(self) -> str:
        """Return the totals that are not 0, in words: "1 failed, 300 passed, 11 skipped"."""
        totals = self.totals
        present = [counted(totals[status], status) for status in SUMMARY_ORDER if totals[status]]
        return ", ".join(present) or "no cases"

    @cached_property
    def causes(self) -> tuple[Cause, ...]:
        """Return the target's faults: the worst consequence first, then the highest count.

        Cases in which a fault is only seen behind another one do not count. Known deviations are no
        faults.
        """
        cases: dict[tuple[str, bool], list[tuple[Verdict, int]]] = {}
        for verdict in self.with_status("failed", "error"):
            for place, finding in enumerate(verdict.findings):
                key = (finding.cause, finding.is_recognized)
                cases.setdefault(key, []).append((verdict, place))
        causes = [_cause(*key, found) for key, found in cases.items()]

        def order(cause: Cause) -> tuple[int, int, int]:
            n = len(cause.verdicts)
            return rank(cause.consequence), cause.n_later - n, -n

        return tuple(sorted(causes, key=order))

    @property
    def order_of_causes(self) -> str:
        """Return the order of the causes in words, or that only the first is certain."""
        is_certain = all(each.consequence != "answers change" for each in self.causes)
        return "the worst first" if is_certain else "the first makes the others uncertain"

    @property
    def exit_code(self) -> int:
        """Return 0 where all is as expected, 1 where something is not, 2 where nothing was asked.

        A missing answer is not as expected, like a wrong one.
        """
        totals = self.totals
        if totals["failed"] or totals["unexpected pass"] or totals["error"]:
            return 1
        return 2 if self._is_empty else 0

    @property
    def outcome(self) -> str:
        """Return what the exit code means, in a few words."""
        if self._is_empty:
            return "nothing was tested"
        return ("all as expected", "not as expected")[self.exit_code]

    @property
    def _is_empty(self) -> bool:
        """Return whether nothing was asked, or could be."""
        if self.bits is not None and self.bits.sha256 is not None:
            return False
        return self.totals["skipped"] + self.totals["not applicable"] == len(self.verdicts)


def _cause(cause: str, is_recognized: bool, found: Sequence[tuple[Verdict, int]]) -> Cause:
    def order(each: tuple[Verdict, int]) -> tuple[int, int, bool, int]:
        verdict, place = each
        answer = {} if verdict.difference is None else verdict.difference.answer
        size = len(str(verdict.case.input)) + len(str(answer))
        # A case that was not asked because of another one comes last.
        is_lost = verdict.because_of is not None
        return rank(verdict.findings[place].consequence), place, is_lost, size

    in_order = sorted(found, key=order)
    return Cause(
        cause=cause,
        consequence=in_order[0][0].findings[in_order[0][1]].consequence,
        is_recognized=is_recognized,
        verdicts=tuple(verdict for verdict, _ in in_order),
        n_later=sum(place > 0 for _, place in found),
    )


def counted(n: int, status: Status) -> str:
    """Return a count in words.

    Example:
        >>> counted(3, "passed"), counted(1, "error"), counted(2, "unexpected pass")
        ('3 passed', '1 error', '2 unexpected passes')
    """
    return f"{n} {status if n == 1 else PLURALS.get(status, status)}"


def environment_here() -> dict[str, str]:
    """Return this machine and its software by name, without the name of a host, user or path."""
    # Imported here so that reading a report does not import numba.
    from refllm.jit.cpu import NAME

    system = platform.system()
    if system == "Linux":  # the kernel's version may contain its builder's name
        system = ", ".join(filter(None, (system, " ".join(platform.libc_ver()).strip())))
    else:
        system = f"{system} {platform.release()}".strip()
    return {
        "refllm": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "numpy": version("numpy"),
        "numba": version("numba"),
        "system": system,
        "machine": platform.machine(),
        "cpu": NAME,
        "cpus": str(available_cpus()),
    }


def without_password(target: str) -> str:
    """Return the target without the user and password of a URL, because reports are passed on.

    Example:
        >>> without_password("http://me:secret@127.0.0.1:8177/")
        'http://127.0.0.1:8177/'
    """
    try:
        url = urlsplit(target)
    except ValueError:  # a command in which something looks like the start of an IPv6 address
        return target
    if url.scheme not in ("http", "https") or "@" not in url.netloc:
        return target
    return urlunsplit(url._replace(netloc=url.netloc.rpartition("@")[2]))
