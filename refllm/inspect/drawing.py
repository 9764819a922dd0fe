"""The draws of a generation with all that each depended on.

V tokens in the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from refllm.engine import LocalEngine
from refllm.generate import Generation, steps_of
from refllm.interface import InferencingParams
from refllm.models.load import LlamaModel
from refllm.sampling import Step, sample, uniform

__all__ = ["Draw", "draws_of"]


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """One draw and its arguments, so that it can be repeated with others.

    Attributes:
        step: What the stages did.
        logits: float32 [V], without the rows of a padded vocabulary.
        previous_tokens: The tokens of the prompt and of the text before this draw.
        params: The interface's parameters.
        seed: The seed of the random numbers.
    """

    step: Step
    logits: NDArray[np.float32]
    previous_tokens: tuple[int, ...]
    params: InferencingParams
    seed: int

    def again(self, params: InferencingParams, *, seed: int, profile: str) -> Draw:
        """Return the draw from the same logits after the same tokens, with other arguments.

        Raises:
            InvalidInput: For an unusable parameter, seed or profile.
            LlmRuntimeError: As `refllm.sampling.sample`.
        """
        i = self.step.step
        u = uniform(seed, i)
        step = sample(self.logits, params, self.previous_tokens, u, step=i, profile=profile)
        return replace(self, step=step, params=params, seed=seed)


def draws_of(
    engine: LocalEngine, llama: LlamaModel, generation: Generation, params: InferencingParams
) -> Iterator[Draw]:
    """Yield the draws of a generation as they are computed.

    Args:
        engine: Computes; its lock is held during each step.
        llama: The model.
        generation: From `engine.open`, with the engine's seed and without options beyond `params`.
        params: The generation's parameters.

    Raises:
        InvalidInput: As `refllm.generate.generate`.
        LlmRuntimeError: As `refllm.generate.generate`.
    """
    steps = steps_of(llama.network, generation)
    while True:
        with engine.computing():
            step = next(steps, None)
        if step is None:
            return
        assert generation.logits is not None
        logits = generation.logits[: step.n_vocab].copy()  # [V]
        yield Draw(step, logits, tuple(generation.tokens[:-1]), params, engine.seed)
