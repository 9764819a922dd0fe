"""The most probable tokens, without sorting the vocabulary.

V vocabulary.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refllm.jit.compile import jit

__all__ = ["topk"]


@jit
def topk(scores: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Return the ids of the k largest scores.

    An insertion sort that drops what falls behind the k-th place. It is fast where k is far below
    V, because few scores are inserted at all.

    Args:
        scores: float64 [V].
        k: 0 < k <= V.

    Returns:
        int64 [k], by descending score, then ascending id; of equal scores the lower ids are kept.
    """
    ids = np.empty(k, np.int64)  # [k]
    best = np.full(k, -np.inf)  # [k], the scores of `ids`
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
