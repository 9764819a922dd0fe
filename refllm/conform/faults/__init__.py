"""What a failed run says about the backend: a table of known mistakes, and which of them fit.

    symptom.py        what a symptom is
    diagnosis.py      from all verdicts of a run to all that each failed case shows
    causes.py         from all verdicts of a run to the likely cause of each failed case
    breakdowns.py     cases without an answer, and errors that repeat
    second_faults.py  an answer without a fault that is known
    of_sampling.py …  the mistakes of each group, with the sentence that a person reads
    mistaken_….py     a sampler, a llama and a BERT of which one part can be replaced by a mistake

A mistake is not guessed from names where it can be computed: its answer to the case is, and the
target's answer must be that one.
"""

from __future__ import annotations

from refllm.conform.faults.causes import SYMPTOMS, likely_cause, symptom_named
from refllm.conform.faults.diagnosis import findings_of
from refllm.conform.faults.symptom import Symptom

__all__ = ["SYMPTOMS", "Symptom", "findings_of", "likely_cause", "symptom_named"]
