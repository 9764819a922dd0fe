"""Whose bits a target computes: what the report says of them, and what a claim requires."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from numpy.typing import NDArray

from refllm import NUMERICS_REVISION
from refllm.conform import suite as suites
from refllm.conform.bits import RULES, Bits, PublishedBits, ask_bits, load_published_bits
from refllm.conform.case import Case, Group
from refllm.conform.reply import (
    Answer,
    HarnessError,
    Implementation,
    NotApplicable,
    Reply,
    Skipped,
)
from refllm.conform.report.html import html_of
from refllm.conform.report.json import json_of
from refllm.conform.report.junit import junit_of
from refllm.conform.report.text import text_of
from refllm.conform.suite import chosen, is_bits_chosen, load_suite
from refllm.conform.targets.itself import Refllm
from refllm.conform.wire import to_wire
from refllm.errors import InvalidInput
from tests.conftest import PROJECT
from tests.support.commands import refllm_conform
from tests.support.conform_reports import report, verdict

GOLDEN = PROJECT / "golden"
LOGITS: Mapping[int, NDArray[np.float32]] = {  # [T, V] by numerics revision
    1: np.array([[0.1, -2.5, 3e-40], [1 / 3, 0.0, 7.25]], np.float32),
    2: np.array([[0.1, -2.5, 3e-40], [1 / 3, 0.0, 7.2500005]], np.float32),
}
OTHER = np.array([[0.1, -2.5, 3e-40], [1 / 3, 0.0, 7.250001]], np.float32)
PUBLISHED = PublishedBits(
    case=Case(
        id="logits/tiny-chat-exact-bits",
        group="logits",
        proves="-",
        clause="-",
        input={"model": "tiny-chat", "numerics": "exact", "token_ids": [1, 2]},
        expected={"shape": [2, 3]},
        models=("tiny-chat",),
    ),
    sha256s={n: hashlib.sha256(logits.tobytes()).hexdigest() for n, logits in LOGITS.items()},
)


def logits_of(values: NDArray[np.floating[Any]]) -> Reply:
    return Answer({"logits": {"shape": list(values.shape), "values": values.ravel().tolist()}})


class Stub:
    """A target that replies so to every question, and keeps the questions."""

    def __init__(
        self, reply: Reply, *, groups: Sequence[Group] = ("logits",), claims: int | None = None
    ) -> None:
        self.reply = reply
        self.groups = groups
        self.claims = claims
        self.asked: list[Case] = []

    def start(self) -> Implementation:
        return Implementation(
            name="stub", groups=frozenset(self.groups), claims_revision=self.claims
        )

    def not_applicable(self, case: Case) -> NotApplicable | None:
        del case
        return None

    def run(self, case: Case) -> Reply:
        self.asked.append(case)
        return self.reply

    def stop(self) -> None:
        """Nothing is to be released."""


def bits_of(stub: Stub, **options: Any) -> Bits:
    bits = ask_bits(stub, stub.start(), PUBLISHED, **options)
    assert bits is not None
    return bits


# --- Without a claim -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logits", "revision", "text"),
    [
        (LOGITS[2], 2, "those of numerics revision 2"),
        (LOGITS[1], 1, "those of numerics revision 1"),
        (OTHER, None, "of no published revision (not required)"),
    ],
)
def test_the_revision_whose_bits_the_logits_have_is_named(
    logits: NDArray[np.float32], revision: int | None, text: str
) -> None:
    bits = bits_of(Stub(logits_of(logits)))
    assert (bits.revision, bits.text, bits.verdict) == (revision, text, None)
    assert bits.sha256 == hashlib.sha256(logits.tobytes()).hexdigest()


def test_float32_may_be_written_in_nine_digits() -> None:
    short = np.array([float(f"{each:.9g}") for each in LOGITS[2].ravel()]).reshape(2, 3)
    assert bits_of(Stub(logits_of(short))).revision == 2


def test_a_last_digit_or_the_sign_of_a_zero_is_another_bit() -> None:
    negative = LOGITS[2].copy()
    negative[1, 1] = -0.0
    assert bits_of(Stub(logits_of(negative))).revision is None


@pytest.mark.parametrize("logits", [np.full((2, 3), np.nan), np.full((2, 3), 1e300)])
def test_what_is_no_float32_is_of_no_revision(logits: NDArray[np.float64]) -> None:
    reply = logits_of(logits)
    assert isinstance(reply, Answer)
    assert bits_of(Stub(Answer(to_wire(reply.result)))).revision is None


def test_the_question_is_one_of_the_group_logits() -> None:
    stub = Stub(logits_of(OTHER))
    bits_of(stub)
    assert stub.asked == [PUBLISHED.case]


def test_a_target_without_logits_is_not_asked() -> None:
    stub = Stub(logits_of(OTHER), groups=["quant"])
    assert ask_bits(stub, stub.start(), PUBLISHED) is None
    assert stub.asked == []


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Skipped("no tiny-chat here"), "no tiny-chat here"),
        (HarnessError("it ended\nits last words"), "it ended"),
        (Answer({"logits": {"shape": [1], "values": [0.5]}}), "shape is [1], the case asks for"),
        (Answer({"logit": []}), "the field 'logits' is missing"),
        (
            Answer({"error": {"kind": "runtime-error", "message": "no memory"}}),
            "the error runtime-error: no memory",
        ),
    ],
)
def test_where_no_logits_come_the_bits_are_not_known_and_nothing_is_wrong(
    reply: Reply, reason: str
) -> None:
    bits = bits_of(Stub(reply))
    assert (bits.sha256, bits.revision, bits.verdict) == (None, None, None)
    assert bits.text.startswith("not known: ")
    assert reason in bits.text
    assert "\n" not in bits.text


# --- With a claim --------------------------------------------------------------------------------


@pytest.mark.parametrize("claimed", [1, 2])
def test_a_claim_is_met_by_the_bits_of_its_revision(claimed: int) -> None:
    bits = bits_of(Stub(logits_of(LOGITS[claimed]), claims=claimed))
    assert bits.text == f"those of numerics revision {claimed}, as claimed"
    assert bits.verdict is not None
    assert bits.verdict.status == "passed"


@pytest.mark.parametrize(
    ("logits", "claimed", "text", "says"),
    [
        (LOGITS[1], 2, "those of numerics revision 1, not of revision 2 as claimed", "revision 1."),
        (LOGITS[2], 1, "those of numerics revision 2, not of revision 1 as claimed", "revision 2."),
        (OTHER, 2, "of no published revision, not of revision 2 as claimed", "no published"),
        (LOGITS[2], 3, "those of numerics revision 2, not of revision 3 as claimed", "1 and 2"),
    ],
)
def test_a_claim_is_not_met_by_other_bits_and_the_cause_says_whose_they_are(
    logits: NDArray[np.float32], claimed: int, text: str, says: str
) -> None:
    bits = bits_of(Stub(logits_of(logits), claims=claimed))
    assert bits.text == text
    assert bits.verdict is not None
    assert bits.verdict.status == "failed"
    assert f"Numerics revision {claimed} is claimed" in str(bits.verdict.cause)
    assert says in str(bits.verdict.cause)
    assert bits.verdict.difference is not None
    assert bits.verdict.difference.expected == PUBLISHED.sha256s.get(claimed)
    assert bits.verdict.difference.got == bits.sha256


def test_the_claim_of_the_user_replaces_the_target_s() -> None:
    stub = Stub(logits_of(LOGITS[1]), claims=2)
    assert bits_of(stub, claim=1).text == "those of numerics revision 1, as claimed"


@pytest.mark.parametrize(
    ("reply", "status"),
    [(Skipped("not here"), "skipped"), (HarnessError("it ended", is_lost=True), "error")],
)
def test_a_claim_of_a_target_that_gives_no_logits_is_not_met(reply: Reply, status: str) -> None:
    bits = bits_of(Stub(reply, claims=2))
    assert bits.verdict is not None
    assert (bits.verdict.status, bits.verdict.reason != "") == (status, True)


@pytest.mark.parametrize(
    ("groups", "absent", "reason"),
    [
        (["quant"], (), "stub does not list logits among its groups"),
        (["logits"], ["tiny-chat"], "if it has, add --have tiny-chat"),
    ],
)
def test_a_claim_that_cannot_be_checked_is_skipped(
    groups: Sequence[Group], absent: Sequence[str], reason: str
) -> None:
    stub = Stub(logits_of(OTHER), groups=groups, claims=2)
    bits = bits_of(stub, absent_models=absent)
    assert bits.verdict is not None
    assert bits.verdict.status == "skipped"
    assert reason in bits.verdict.reason
    assert stub.asked == []


# --- What is published ---------------------------------------------------------------------------


def test_both_revisions_are_published_for_one_question() -> None:
    published = load_published_bits(GOLDEN)
    assert published.sha256s.keys() == RULES.keys() == {1, NUMERICS_REVISION}
    assert published.revisions == "1 and 2"
    assert len(published.case.input["token_ids"]) == published.case.expected["shape"][0] == 64


def test_two_revisions_with_different_questions_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "bits"
    folder.mkdir()
    for name in ("hashes.json", "revision-1.json"):
        text = (GOLDEN / "bits" / name).read_text("ascii")
        (folder / name).write_text(text.replace("[1, 2, 5,", f"[{len(name)}, 2, 5,"), "ascii")
    with pytest.raises(ValueError, match="another question for tiny-chat"):
        load_published_bits(tmp_path)


def test_refllm_claims_the_revision_that_it_names() -> None:
    assert Refllm().start()["claims_revision"] == NUMERICS_REVISION


# --- Which runs ask ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "is_asked"),
    [
        ({}, True),
        ({"groups": ["logits"]}, True),
        ({"groups": ["quant", "ops"]}, False),
        ({"only": ["logits/*"]}, True),
        ({"only": ["text/*", "logits/tiny-chat-exact-bits"]}, True),
        ({"only": ["logits/tiny-chat-int8-*"]}, False),
        ({"groups": ["quant"], "only": ["*bits*"]}, False),
    ],
)
def test_the_bits_are_asked_for_where_their_group_and_id_are_chosen(
    options: dict[str, list[str]], is_asked: bool
) -> None:
    assert is_bits_chosen(load_suite(), **options) == is_asked


def test_the_bits_alone_can_be_chosen() -> None:
    assert chosen(load_suite(), only=["logits/tiny-chat-exact-bits"]) == ()


def test_the_bits_of_another_group_are_no_case() -> None:
    with pytest.raises(InvalidInput, match="leave no case"):
        chosen(load_suite(), groups=["quant"], only=["*-exact-bits"])


# --- Reports -------------------------------------------------------------------------------------

MET = Bits(sha256="0" * 64, revision=2, claimed=2)


@pytest.mark.parametrize("write", [text_of, html_of, json_of, junit_of])
def test_every_report_names_the_revision_and_whose_bits_they_are(
    write: Callable[[Any], str],
) -> None:
    text = write(report(verdict("quant/a"), bits=MET))
    assert "those of numerics revision 2, as claimed" in text
    assert re.search(r"numerics.revision\W+(th>|<td|value=|\W)*2\b", text)


def test_the_terminal_has_a_line_for_the_bits_below_the_target() -> None:
    lines = text_of(report(verdict("quant/a"), bits=MET)).splitlines()
    assert lines[0] == "refllm conformance, suite 1.0.0, numerics revision 2, profile llama.cpp"
    assert lines[2] == "bits: those of numerics revision 2, as claimed"


def test_a_report_without_bits_has_no_line_for_them() -> None:
    assert "bits" not in text_of(report(verdict("quant/a")))
    assert json.loads(json_of(report(verdict("quant/a"))))["bits"] is None


def test_junit_has_the_bits_among_the_properties_of_each_suite() -> None:
    tree = ET.fromstring(junit_of(report(verdict("quant/a"), verdict("text/a"), bits=MET)))
    for suite in tree.iter("testsuite"):
        properties = {each.get("name"): each.get("value") for each in suite.iter("property")}
        assert properties["numerics_revision"] == "2"
        assert properties["bits"] == "those of numerics revision 2, as claimed"


def test_a_run_that_only_asks_for_the_bits_has_tested_something() -> None:
    assert report(bits=MET).exit_code == 0
    assert report(bits=Bits(reason="no tiny-chat here")).exit_code == 2


# --- The command ---------------------------------------------------------------------------------

HARNESS = """
from refllm.conform.targets.harness import Skip
class Stub:
    def start(self):
        hello = {{"implementation": {{"name": "stub"}}, "groups": ["logits"]}}
        return {{**hello, **{hello}}}
    def run(self, group, asked):
        if len(asked["token_ids"]) != 2:
            raise Skip("two tokens only")
        return {{"logits": {{"shape": [2, 3], "values": {values}}}}}
"""
ONLY = ("--only", "logits/tiny-chat-exact-bits")
NUMBERS = itertools.count()

Conform = Callable[..., tuple[int, str, str]]


@pytest.fixture
def conform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Run `refllm conform` against a harness with these logits, and the small question above."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(suites, "load_published_bits", lambda root: PUBLISHED)

    def run(
        logits: NDArray[np.float32], *options: str, hello: Mapping[str, object] = {}
    ) -> tuple[int, str, str]:
        name = f"stub_{next(NUMBERS)}"  # Python imports a module once, whatever is in it
        values = logits.ravel().tolist()
        Path(f"{name}.py").write_text(HARNESS.format(hello=hello, values=values), "utf-8")
        return refllm_conform(f"{name}:Stub", *options)

    return run


def test_without_a_claim_the_bits_decide_nothing(conform: Conform) -> None:
    code, printed, _ = conform(OTHER, *ONLY)
    assert code == 0
    assert "bits: of no published revision (not required)\n" in printed


def test_a_claim_that_is_not_met_fails_the_run_and_names_the_next_step(conform: Conform) -> None:
    code, printed, _ = conform(LOGITS[1], *ONLY, hello={"claims_revision": 2})
    assert code == 1
    assert "bits: those of numerics revision 1, not of revision 2 as claimed\n" in printed
    assert "FAILED: logits/tiny-chat-exact-bits\n" in printed
    assert "--only logits/tiny-chat-exact-bits\n" in printed


def test_a_claim_on_the_command_line_replaces_the_harness_s_and_is_in_the_next_command(
    conform: Conform, tmp_path: Path
) -> None:
    hello = {"claims_revision": 2}
    path = str(tmp_path / "report.json")
    code, printed, _ = conform(
        LOGITS[1], *ONLY, "--claims-revision", "1", "--json", path, hello=hello
    )
    assert code == 0, printed
    document = json.loads(Path(path).read_text("utf-8"))
    assert document["bits"] == {
        "text": "those of numerics revision 1, as claimed",
        "sha256": PUBLISHED.sha256s[1],
        "revision": 1,
        "claimed": 1,
    }
    assert "--claims-revision 1" in document["command"]


def test_a_claim_on_the_command_line_is_checked_beside_any_chosen_cases(conform: Conform) -> None:
    only = ("--only", "quant/q8_0*")
    code, printed, _ = conform(LOGITS[1], *only, "--claims-revision", "2")
    assert code == 1
    assert "bits: those of numerics revision 1, not of revision 2 as claimed\n" in printed


def test_a_harness_whose_claim_is_no_number_does_not_start(conform: Conform) -> None:
    code, _, errors = conform(OTHER, *ONLY, hello={"claims_revision": "two"})
    assert code == 2
    assert "claims_revision 'two'" in errors


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["no-such-harness", "--claims-revision", "7"], "1 and 2"),
        (["no-such-harness", "--claims-revision", "0"], "claims-revision"),
        (["http://127.0.0.1:9", "--claims-revision", "2"], "gives none"),
    ],
)
def test_a_claim_that_cannot_be_compared_is_wrong_usage(arguments: list[str], named: str) -> None:
    code, printed, errors = refllm_conform(*arguments)
    assert (code, printed) == (2, "")
    assert named in errors
