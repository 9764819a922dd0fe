"""The numerics revision whose bits a target computes: its logits beside `golden/bits`, by SHA-256.

No target must have these bits: the suite allows what another order of sums changes. A target may
claim a revision, in its answer to start or by `--claims-revision`; then its bits must be those of
that revision and of no other.

    no claim    bits: those of numerics revision 2
                bits: of no published revision (not required)
    claim of 2  bits: those of numerics revision 2, as claimed
                bits: those of numerics revision 1, not of revision 2 as claimed
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from refllm.conform.case import Case, Json
from refllm.conform.compare.numbers import MalformedAnswer, array, refusal
from refllm.conform.reply import Answer, HarnessError, Implementation, Reply, Skipped, Target
from refllm.conform.verdict import Difference, Finding, Status, Verdict

__all__ = ["RULES", "Bits", "PublishedBits", "ask_bits", "load_published_bits"]

MODEL = "tiny-chat"  # which ships with refllm

RULES: Mapping[int, str] = {
    1: "a product and its sum are rounded separately, the sum of a row has one part, and the "
    "elementary functions have other coefficients",
    2: "a product and its sum are rounded once, by a fused multiply-add, the sum of a row has "
    "sixteen parts, and the elementary functions have the coefficients of SPEC.md",
}
"""What distinguishes the published revisions of the rule, by their numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedBits:
    """The question, and the right SHA-256 by numerics revision.

    Attributes:
        case: A case of the group logits; `expected` has the "shape" of the logits, [T, V].
        sha256s: Of the logits as little-endian float32, the last axis fastest.
    """

    case: Case
    sha256s: Mapping[int, str]

    @property
    def revisions(self) -> str:
        """Return the published revisions in words: "1 and 2"."""
        *others, last = map(str, sorted(self.sha256s))
        return " and ".join(filter(None, (", ".join(others), last)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bits:
    """Whose bits a target computes.

    Attributes:
        sha256: Of the target's logits, None where it gave none.
        revision: The published revision that has the same bits, None where none has.
        claimed: The revision that the target claims, None where it claims none.
        reason: Why there are no logits, "" where there are.
        verdict: On the claim; None where there is none.
    """

    sha256: str | None = None
    revision: int | None = None
    claimed: int | None = None
    reason: str = ""
    verdict: Verdict | None = None

    @property
    def text(self) -> str:
        """Return whose bits they are, for a line that begins with "bits:"."""
        if self.sha256 is None:
            return f"not known: {self.reason.partition(chr(10))[0]}"
        found, claimed = self.revision, self.claimed
        if found is not None:
            text = f"those of numerics revision {found}"
            ending = ", as claimed" if found == claimed else ""
        else:
            text = "of no published revision"
            ending = " (not required)" if claimed is None else ""
        if claimed not in (None, found):
            ending = f", not of revision {claimed} as claimed"
        return text + ending


def load_published_bits(root: Path) -> PublishedBits:
    """Return the question and the hashes of `golden/bits`.

    Args:
        root: The folder of the golden files.

    Raises:
        OSError: Where a file is missing.
        ValueError: Where a file is damaged, or has another question than the newest revision.
    """
    found: dict[int, Json] = {}
    for path in (root / "bits" / "hashes.json", *sorted((root / "bits").glob("revision-*.json"))):
        document = json.loads(path.read_text(encoding="utf-8"))
        results = {result["name"]: result for result in document["results"]}
        found[int(document["numerics_revision"])] = results[MODEL]
    newest = found[max(found)]
    for revision, result in found.items():
        if any(result[key] != newest[key] for key in ("token_ids", "shape", "type")):
            raise ValueError(f"golden/bits: revision {revision} has another question for {MODEL}")
    [token_ids] = newest["token_ids"]
    case = Case(
        id=f"logits/{MODEL}-exact-bits",
        group="logits",
        proves="The logits have the bits of the numerics revision that the target claims.",
        clause="the rule",
        input={"model": MODEL, "numerics": "exact", "token_ids": token_ids},
        expected={"shape": newest["shape"]},
        models=(MODEL,),
        is_quick=True,
    )
    sha256s = {revision: str(result["sha256"]) for revision, result in found.items()}
    return PublishedBits(case=case, sha256s=sha256s)


def ask_bits(
    target: Target,
    implementation: Implementation,
    published: PublishedBits,
    *,
    claim: int | None = None,
    absent_models: Collection[str] = (),
) -> Bits | None:
    """Ask the target for the logits, and return whose bits they are.

    Args:
        target: A target that has started.
        implementation: What its `start` returned.
        published: The question and the hashes.
        claim: The revision that the user claims for the target, by default the target's own claim.
        absent_models: The names of models that the target does not have.

    Returns:
        None for a target that gives no logits and claims no revision.
    """
    begin = time.perf_counter()
    claimed = implementation.claims_revision if claim is None else claim
    case = published.case
    reply: Reply | None = target.not_applicable(case)
    if reply is None and case.group not in implementation.groups:
        reply = Skipped(f"{implementation.name} does not list {case.group} among its groups")
    if reply is not None and claimed is None:
        return None
    if reply is None and MODEL in absent_models:
        reply = Skipped(f"the target may not have {MODEL}; if it has, add --have {MODEL}")
    if reply is None:
        reply = target.run(case)
    sha256, reason = None, ""
    status: Status = "passed"
    if isinstance(reply, Answer):
        try:
            sha256 = _sha256(reply.result, case.expected["shape"])
        except MalformedAnswer as error:
            status, reason = "error", f"not an answer: {error}"
    elif isinstance(reply, HarnessError):
        status, reason = "error", reply.message
    else:
        status = "skipped" if isinstance(reply, Skipped) else "not applicable"
        reason = reply.reason
    by_sha256 = {each: revision for revision, each in published.sha256s.items()}
    revision = None if sha256 is None else by_sha256.get(sha256)
    bits = Bits(sha256=sha256, revision=revision, claimed=claimed, reason=reason)
    if claimed is None:
        return bits
    difference: Difference | None = None
    findings: tuple[Finding, ...] = ()
    if status == "error":
        findings = (Finding(cause=reason, consequence="no answer", is_recognized=False),)
    right = published.sha256s.get(claimed)
    if sha256 is not None and sha256 != right:
        status = "failed"
        where = f"the SHA-256 of the logits after {len(case.input['token_ids'])} tokens, as float32"
        difference = Difference(where=where, expected=right, got=sha256)
        cause = _cause(claimed, revision, published)
        findings = (Finding(cause=cause, consequence="wrong numbers"),)
    verdict = Verdict(
        case=case,
        status=status,
        reason=reason,
        difference=difference,
        findings=findings,
        seconds=time.perf_counter() - begin,
    )
    return replace(bits, verdict=verdict)


def _sha256(result: Json, shape: Collection[int]) -> str:
    """Return the SHA-256 of a result's logits; raise `MalformedAnswer` where it has others."""
    if "error" in result:
        raise MalformedAnswer(f"the error {': '.join(filter(None, refusal(result)))}")
    logits = array(result, "logits")  # [T, V]
    if list(logits.shape) != list(shape):
        raise MalformedAnswer(
            f"the logits' shape is {list(logits.shape)}, the case asks for {list(shape)}"
        )
    with np.errstate(over="ignore"):
        return hashlib.sha256(logits.astype("<f4").tobytes()).hexdigest()


def _cause(claimed: int, found: int | None, published: PublishedBits) -> str:
    """Return what is wrong with a claim, and what to do."""
    if claimed not in published.sha256s:
        return (
            f"Numerics revision {claimed} is claimed, and this refllm has the bits of revisions "
            f"{published.revisions} only: claim one of these, or use a refllm that has it."
        )
    if found is None:
        return (
            f"Numerics revision {claimed} is claimed, and these are the bits of no published "
            "revision. SPEC.md, section 1 has the rule: look for another order of sums, for sums "
            "in float64, and for library functions such as exp. Or claim no revision."
        )
    return (
        f"Numerics revision {claimed} is claimed, and these are the bits of revision {found}. In "
        f"revision {found} {RULES[found]}; in revision {claimed} {RULES[claimed]}. Compute so, or "
        f"claim revision {found}."
    )
