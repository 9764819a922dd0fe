"""Known faults of the networks: each is a step of a network that is computed otherwise.

`formulas.py` has the formulas in float64 with the options that make each of them wrong, `llama.py`
and `bert.py` the faults with their names and causes. `refllm diff` and `refllm conform` recognize
them.
"""

from __future__ import annotations

__all__: list[str] = []
