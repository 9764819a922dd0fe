"""A llama whose kernels are compiled by other processes, side by side.

Compiling takes seconds, on the first run on a machine. A small llama computes its first tokens in
NumPy meanwhile (`refllm.models.numpy_llama`), with the same bits, and changes to the kernels
between two tokens, as soon as they are on disk. With a large llama or a long prompt NumPy would
take longer than compiling, and the request waits.

T tokens, V vocabulary.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from refllm.errors import LlmRuntimeError
from refllm.jit.compile import Missing, stand_in
from refllm.jit.disk_cache import keeps_kernels
from refllm.jit.workers import COMPILE_HERE
from refllm.kernels import math64
from refllm.kernels.topk import topk
from refllm.llama import Llama, LlamaConfig, Segment
from refllm.models import numpy_llama
from refllm.models.compiling import Compilation, Step, missing_of_llama
from refllm.models.numpy_llama import DecodedParameters
from refllm.parameters import Parameters
from refllm.tap import Tap, ignore

__all__ = ["MAX_PRODUCTS", "MAX_WEIGHTS", "StartingLlama"]

Floats = NDArray[np.float32]

# NumPy multiplies a weight in about 12 ns, and kernels are compiled in 6 to 10 s.
MAX_WEIGHTS = 16_000_000  # a fifth of a second for a token
MAX_PRODUCTS = 250_000_000  # three seconds for a prompt

# A text usually has no more tokens than this; those beyond may need another kernel for attention.
USUAL_TOKENS = 128


class StartingLlama(Llama):
    """A llama that starts without compiled kernels, and then is a `Llama`."""

    def __init__(self, config: LlamaConfig, parameters: Parameters) -> None:
        """Take the weights from `parameters`; errors as `Llama`."""
        p = parameters
        self._parameters = p
        self._n_weights = sum(math.prod(tensor.shape) for tensor in p.tensors.values())
        self._is_in_numpy = p.numerics == "exact" and self._n_weights <= MAX_WEIGHTS
        self._compilation = Compilation(p.path, p.numerics)
        self._is_first_step = True
        self._sizes: set[tuple[int, int]] = set()  # of the steps whose kernels are there
        self._awaited: list[Missing] = []
        decoded = DecodedParameters(
            p.path, p.tensors, asked=p.asked, others=p.others, spelling=p.spelling
        )
        super().__init__(config, decoded)
        if not self._is_in_numpy:
            # The processes compile while this one packs the weights.
            self._start([(1, 1)])
            self._compilation.wait(missing_of_llama(config, p, []))
            super().__init__(config, p)

    def logits(self, hidden: Floats, *, tap: Tap = ignore) -> Floats:
        """Return the score of every vocabulary entry, [T, V]; as `Llama.logits`."""
        if not self._is_in_numpy:
            return super().logits(hidden, tap=tap)
        with np.errstate(all="ignore"):
            result = numpy_llama.linear(hidden, self.output)  # [T, V]
        if not np.isfinite(result).all():
            raise LlmRuntimeError(f"{self.path}: the output layer's logits are not finite")
        tap("result_output", result)
        return result

    def _layers(self, segments: Sequence[Segment], tap: Tap) -> Floats:
        """Return `result_norm` [T, D]; as `Llama._layers`."""
        n_tokens = sum(len(segment.token_ids) for segment in segments)
        n_before = max(segment.cache.length for segment in segments)
        size = (n_tokens.bit_length(), (n_before + n_tokens).bit_length())
        if self._is_first_step:
            self._is_first_step = False
            self._start_first_step(n_tokens, n_before)
            self._sizes |= set() if self._is_in_numpy else {size}
        # NumPy computes one sequence, and shows no intermediate values.
        if self._is_in_numpy and (
            tap is not ignore
            or len(segments) > 1
            or n_tokens * self._n_weights > MAX_PRODUCTS
            or self._is_compiled()
        ):
            self._use_kernels()
        if self._is_in_numpy:
            return numpy_llama.hidden(self, segments[0])
        # Kernels are chosen by the amount of work, and the first step has asked for those of one
        # token. A size in between may need another one, which this process then compiles.
        if n_tokens > 1 and size not in self._sizes:
            self._sizes.add(size)
            self._start([(n_tokens, n_before)])
        if self._awaited:
            self._compilation.wait(self._awaited)
            self._awaited = []
        return super()._layers(segments, tap)

    def _start_first_step(self, n_tokens: int, n_before: int) -> None:
        """Start compiling, and decide whether NumPy computes meanwhile."""
        n_then = n_before + n_tokens
        prompt, token, later = (n_tokens, n_before), (1, n_then), (1, n_then + USUAL_TOKENS)
        if not self._is_in_numpy:
            self._start([prompt, token], [later])
            return
        is_complete = not missing_of_llama(self.config, self._parameters, [prompt, token])
        if os.environ.get("REFLLM_COMPILE") == COMPILE_HERE or (is_complete and keeps_kernels()):
            self._use_kernels()
        elif n_tokens * self._n_weights <= MAX_PRODUCTS:
            self._start([token], [prompt, later])
            stand_in(math64.softmax, numpy_llama.softmax)
            stand_in(topk, numpy_llama.topk)
        else:
            self._start([prompt, token], [later])
            self._use_kernels()

    def _start(self, steps: list[Step], later: list[Step] | None = None) -> None:
        """Start processes for the kernels that are not on disk.

        Args:
            steps: The steps that the next request of kernels waits for.
            later: Further steps, for which no request waits.
        """
        p, later = self._parameters, later or []
        self._awaited = missing_of_llama(self.config, p, steps)
        missing = [*self._awaited, *missing_of_llama(self.config, p, later)]
        self._compilation.start(
            missing,
            "compile_steps",
            steps=steps,
            later=later,
            is_in_background=self._is_in_numpy,
        )

    def _is_compiled(self) -> bool:
        """Return whether processes have compiled the kernels of the next step."""
        return keeps_kernels() and all(each.is_kept for each in self._awaited)

    def _use_kernels(self) -> None:
        """Change to the kernels: pack the weights, and compute every later step with kernels."""
        self._compilation.wait(self._awaited)
        packed = Llama(self.config, self._parameters)
        # From here on nothing fails: an interrupted packing leaves a llama that computes in NumPy.
        vars(self).update(vars(packed))
        stand_in(math64.softmax, None)
        stand_in(topk, None)
        self._is_in_numpy = False
        if self._parameters.kept is not None:
            self._parameters.kept.write()
