"""What a failed run shows of the backend: a catalogue of known faults, and which of them fit.

    catalog.py        what a known fault is, and how one is added
    tokenizer.py …    the faults of each group: name, wrong formula, and the sentence of the report
    formulas.py       the networks' formulas in float64, with the options that make them wrong
    faulty_….py       a sampler, a llama, a BERT and a writer of texts, of which a part can be wrong
    causes.py         from all verdicts of a run to the likely cause of each failed case
    breakdowns.py     cases without an answer, and errors that repeat
    diagnosis.py      from all verdicts of a run to all that each failed case shows

A fault is computed where that is possible, not guessed from names: the target's answer must be the
one that a backend with this fault gives. The same formulas make refllm wrong in its own tests, and
prove that the tolerances of the goldens exclude them.
"""

from __future__ import annotations

from refllm.conform.faults.catalog import Fault, Faults
from refllm.conform.faults.causes import FAULTS, fault_named, likely_cause
from refllm.conform.faults.diagnosis import findings_of

__all__ = ["FAULTS", "Fault", "Faults", "fault_named", "findings_of", "likely_cause"]
