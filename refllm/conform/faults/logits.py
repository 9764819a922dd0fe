"""Faults inside a llama: each computes the case's logits itself, in float64.

A backend's logits are compared as differences: what a fault changes, by a float64 network with it
and one without, against what is different from the case's logits. So activations that are quantized
on both sides, or matrices in another type than the network here has, do not matter.

T tokens, V vocabulary, P positions whose logits the case has.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from refllm.conform.case import Case, Json
from refllm.conform.compare.numbers import Doubles, array
from refllm.conform.faults.catalog import Faults, explained_share
from refllm.conform.faults.faulty_llama import Network, logits
from refllm.conform.faults.float64_models import tiny_chat_weights
from refllm.trace.faults.llama import NETWORK_FAULTS

__all__ = ["LOGITS", "network_logits"]

LOGITS = Faults("logits")

# Several cases have the same tokens: enough rows for every fault in some of them.
MAX_KEPT = 256


def network_logits(name: str | None, token_ids: tuple[int, ...]) -> Doubles:
    """Return the logits [T, V] of tiny-chat with the fault of that name, or with none."""
    network = Network() if name is None else LOGITS.named(name).wrong
    with np.errstate(all="ignore"):
        return logits(tiny_chat_weights(), token_ids, network)


@lru_cache(MAX_KEPT)
def _rows(name: str | None, token_ids: tuple[int, ...], positions: tuple[int, ...]) -> Doubles:
    """Return the logits at these positions, [P, V]."""
    return network_logits(name, token_ids)[list(positions)]


def _network(name: str, cause: str, network: Network, *, op: str = "") -> None:
    """Add a fault of the network; `op` is the operation that shows it alone."""

    def evidence(case: Case, got: Json) -> float:
        if not case.input["model"].startswith("tiny-chat"):
            return 0.0
        positions = tuple(map(int, case.expected["positions"]))
        asked = tuple(map(int, case.input["token_ids"])), positions
        difference = array(got, "logits")[list(positions)] - array(case.expected, "rows")  # [P, V]
        return explained_share(difference, _rows(name, *asked) - _rows(None, *asked))

    LOGITS.add(name, cause, evidence, is_slow=True, wrong=network, op=op)


for _fault in NETWORK_FAULTS:
    _network(_fault.name, _fault.cause, _fault.network, op=_fault.op)
