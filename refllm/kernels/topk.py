"""The most probable of V tokens, without sorting all of them.

V scores, K of them kept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refllm.jit.compile import jit

__all__ = ["ids_of_largest"]


@jit
def ids_of_largest(scores: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Ids int64 [K] of the k largest of scores [V], 0 < k <= V.

    Ordered by descending score, then ascending id. On a tie for the last place the lower ids win.
    An insertion sort that forgets what falls behind the k-th place: where k is far below V, few
    scores come in at all.
    """
    ids = np.empty(k, np.int64)  # [K]
    best = np.full(k, -np.inf)  # [K], the scores of `ids`
    for i in range(scores.size):
        place = min(i, k)
        if place == k and scores[i] <= best[k - 1]:
            continue
        place = min(place, k - 1)
        while place > 0 and best[place - 1] < scores[i]:
            ids[place], best[place] = ids[place - 1], best[place - 1]
            place -= 1
        ids[place], best[place] = i, scores[i]
    return ids
