"""Trace: every named value of a run, in one safetensors file.

    run.safetensors
      calls/0/inp_embd            float32 [T, D]      the network's values, by llama.cpp's names
      calls/0/Qcur-0              float32 [T, H, E]   before RoPE
      calls/0/Qcur-0#2            float32 [T, H, E]   the same name again: after RoPE
      …
      draws/0/softmax/ids         int64 [C]           what each stage of sampling left
      draws/0/top_k/ids           int64 [C]
      …
      __metadata__                {"refllm.trace": JSON}: tokens, parameters, versions, and the
                                  order of computation; `trace.schema.json` describes it

A *call* is one call of the network. A llama's first call computes the prompt (a very long prompt
takes several), and each further one the token that was drawn before it; an encoder's call i
computes text i. T tokens of a call, C candidates of a draw; other letters are those of
`refllm.llama`.

`recorder.py` writes such a file, `reader.py` reads one, of refllm or of another program. Of two of
them `compare.py` finds the first value that differs: `expected.py` computes each value from its own
inputs, by the formulas of `near.py`, which have bounds, and with the known faults of `faults/`. May
import `refllm.engine` and every package below it.
"""

from __future__ import annotations

from refllm.trace.metadata import Call, Metadata, Program, RecordedDraw, Text
from refllm.trace.reader import Trace, open_trace
from refllm.trace.recorder import record

__all__ = [
    "Call",
    "Metadata",
    "Program",
    "RecordedDraw",
    "Text",
    "Trace",
    "open_trace",
    "record",
]
