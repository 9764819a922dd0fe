"""What a run found out, ready to be told: the `report_…` modules write it for people and machines.

report_text     a terminal          report_html     a browser, one file
report_json     programs            report_junit    a CI system
report_badge    a README
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
from refllm.conform.case import GROUPS, Group
from refllm.conform.consequence import rank
from refllm.conform.reply import Implementation
from refllm.conform.targets import is_url
from refllm.conform.verdict import Consequence, Status, Verdict
from refllm.jit.threads import available_cpus

__all__ = ["STATUSES", "Cause", "Report", "counted", "environment_here", "without_password"]

STATUSES: tuple[Status, ...] = get_args(Status)

# What is wrong first.
TOLD: tuple[Status, ...] = (
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

    `consequence` is the worst that the fault does in one of them. The cases are in the order in
    which to look at them: those in which it does that, and of these the smallest first. `n_later`
    are those in which it is seen only once another fault is taken out of the answer.
    """

    cause: str
    consequence: Consequence
    is_recognized: bool
    verdicts: tuple[Verdict, ...]
    n_later: int

    @property
    def example(self) -> Verdict:
        """The case to begin with."""
        return self.verdicts[0]


@dataclass(frozen=True, kw_only=True)  # without slots: `causes` is kept
class Report:
    """A run of the suite against one target.

    `target` is what the user wrote, `profile` the name of the known deviations, if any were
    granted. `environment` describes the machine that asked, `started` is in UTC, and `seconds` is
    how long the whole run took. `verdicts` are in the order in which the cases ran. `command` asks
    the target again, but for which cases; "" where the target alone says how.
    """

    implementation: Implementation
    target: str
    verdicts: tuple[Verdict, ...]
    suite_version: str
    profile: str | None
    environment: Mapping[str, str]
    started: datetime
    seconds: float
    command: str = ""

    @property
    def name(self) -> str:
        """Who was tested, for a list: "llama-server b4404"."""
        return f"{self.implementation.name} {self.implementation.version}".strip()

    def command_for(self, case_id: str) -> str:
        """The command that asks the target one case."""
        target = without_password(self.target)
        asking = self.command or shlex.join(["refllm", "conform", target])
        return f"{asking} --only {shlex.quote(case_id)}"

    @property
    def headline(self) -> str:
        """Who was tested, and how it was asked: "llama-server b4404 (C++) at http://…".

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
        """The totals that are not 0, in words: "1 failed, 300 passed, 11 skipped"."""
        totals = self.totals
        present = [counted(totals[status], status) for status in TOLD if totals[status]]
        return ", ".join(present) or "no cases"

    @cached_property
    def causes(self) -> tuple[Cause, ...]:
        """What is wrong with the target: the worst consequence first, then the highest count.

        Cases in which the fault is seen only behind another one count less than all others.

        Known deviations are none of it.
        """
        cases: dict[tuple[str, bool], list[tuple[Verdict, int]]] = {}
        for verdict in self.with_status("failed", "error"):
            for place, finding in enumerate(verdict.findings):
                key = (finding.cause, finding.is_recognized)
                cases.setdefault(key, []).append((verdict, place))
        causes = [_cause(*key, found) for key, found in cases.items()]
        return tuple(sorted(causes, key=_place))

    @property
    def order_of_causes(self) -> str:
        """In which order causes are, and how certain they are, in a few words."""
        is_certain = all(each.consequence != "answers change" for each in self.causes)
        return "the worst first" if is_certain else "the first makes the others uncertain"

    @property
    def exit_code(self) -> int:
        """0 all as expected; 1 the target was asked, and something is not; 2 it was asked nothing.

        A target that brings no answer is not as expected, as one whose answer is wrong.
        """
        totals = self.totals
        if totals["failed"] or totals["unexpected pass"] or totals["error"]:
            return 1
        return 2 if self._is_empty else 0

    @property
    def outcome(self) -> str:
        """What the exit code means, in a few words."""
        if self._is_empty:
            return "nothing was tested"
        return ("all as expected", "not as expected")[self.exit_code]

    @property
    def _is_empty(self) -> bool:
        """Whether no case was asked."""
        return self.totals["skipped"] + self.totals["not applicable"] == len(self.verdicts)


def _cause(cause: str, is_recognized: bool, found: Sequence[tuple[Verdict, int]]) -> Cause:
    def order(each: tuple[Verdict, int]) -> tuple[int, int, tuple[bool, int]]:
        verdict, place = each
        return rank(verdict.findings[place].consequence), place, _size(verdict)

    in_order = sorted(found, key=order)
    return Cause(
        cause=cause,
        consequence=in_order[0][0].findings[in_order[0][1]].consequence,
        is_recognized=is_recognized,
        verdicts=tuple(verdict for verdict, _ in in_order),
        n_later=sum(place > 0 for _, place in found),
    )


def _place(cause: Cause) -> tuple[int, int, int]:
    n = len(cause.verdicts)
    return rank(cause.consequence), cause.n_later - n, -n


def _size(verdict: Verdict) -> tuple[bool, int]:
    """How much there is to look at; what was not asked because of another case comes last."""
    answer = {} if verdict.difference is None else verdict.difference.answer
    return verdict.because_of is not None, len(str(verdict.case.input)) + len(str(answer))


def counted(n: int, status: Status) -> str:
    """So many of them in words: "3 passed", "1 error", "2 unexpected passes"."""
    return f"{n} {status if n == 1 else PLURALS.get(status, status)}"


def environment_here() -> dict[str, str]:
    """This machine and its software, for people: no name of a host, of a user or of a path."""
    # Whoever reads reports shall not wait for numba.
    from refllm.jit.cpu import NAME

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
