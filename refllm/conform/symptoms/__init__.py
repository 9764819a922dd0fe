"""What a failed run says about the backend: a table of known mistakes, and which of them fit.

    symptom.py        what a symptom is
    causes.py         from all verdicts of a run to the likely cause of each failed case
    of_sampling.py …  the mistakes of each group, with the sentence that a person reads
    mistaken_….py     a sampler, a llama and a BERT of which one part can be replaced by a mistake

A mistake is not guessed from names where it can be computed: its answer to the case is, and the
target's answer must be that one.
"""

from __future__ import annotations

from refllm.conform.symptoms.causes import SYMPTOMS, likely_cause, symptom_named
from refllm.conform.symptoms.symptom import Symptom

__all__ = ["SYMPTOMS", "Symptom", "likely_cause", "symptom_named"]
