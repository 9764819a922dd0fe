"""How fast the small models learn, step by step."""

from __future__ import annotations

import math

__all__ = ["warmed_cosine", "warmed_plateau"]


def warmed_cosine(step: int, *, steps: int, warm_up: int, peak: float, last: float) -> float:
    """The learning rate of a step: up to `peak` in a line, then down to `last` as a cosine.

    Source: Loshchilov and Hutter 2016, arXiv:1608.03983.
    """
    if step < warm_up:
        return peak * (step + 1) / warm_up
    progress = (step - warm_up) / max(steps - warm_up, 1)
    return last + (peak - last) * (1 + math.cos(math.pi * progress)) / 2


def warmed_plateau(
    step: int, *, steps: int, warm_up: int, cool_down: int, peak: float, last: float
) -> float:
    """The learning rate of a step: up to `peak` in a line, level, down to `last` in a line.

    The last `cool_down` steps lead down. Until they begin, a training need not know its length.

    Source: Hu et al. 2024, arXiv:2404.06395, section 4 (warmup, stable, decay).
    """
    if step < warm_up:
        return peak * (step + 1) / warm_up
    left = min(max(steps - step, 0) / cool_down, 1.0)
    return last + (peak - last) * left
