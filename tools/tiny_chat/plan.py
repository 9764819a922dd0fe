"""How long tiny-chat learns, and how fast."""

from __future__ import annotations

from dataclasses import dataclass

from tools.schedule import warmed_plateau

__all__ = ["Plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long and how fast to learn.

    The learning rate rises for `warm_up` steps, and falls to a fiftieth in the last `cool_down`.
    """

    seed: int = 1
    steps: int = 400
    batch: int = 64
    learning_rate: float = 8e-4
    warm_up: int = 100
    cool_down: int = 250
    weight_decay: float = 0.1
    largest_gradient: float = 1.0

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return warmed_plateau(
            step,
            steps=self.steps,
            warm_up=self.warm_up,
            cool_down=self.cool_down,
            peak=self.learning_rate,
            last=self.learning_rate / 50,
        )
