"""The two networks as a textbook prints them: NumPy, float64, one text, no cache.

Here are `llama.py`, from token ids to logits, and `bert.py`, from token ids to a vector. Start with
`forward` in either one: it is the whole network, and each function that it calls is one formula.
Both import NumPy and nothing of refllm, so a reader needs no other file. `refllm.oracle` computes
the same formulas in float32 to the last bit, `refllm.llama` and `refllm.bert` compute them fast.
"""

from __future__ import annotations

__all__: list[str] = []
