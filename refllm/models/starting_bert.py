"""An encoder whose kernels are compiled by other processes, side by side, on the first run.

Which kernels a request needs depends on the numbers of tokens of its texts. So nothing is packed
or compiled before the first request where kernels are missing; then the processes get one list,
and the request waits for it.

T tokens, K width of a text's vector.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from refllm.bert import Activation, Bert, BertConfig
from refllm.jit.compile import Missing, is_single, recorded
from refllm.kernels.elementwise import gelu
from refllm.models.compiling import Compilation, ShapedParameters, result_of
from refllm.parameters import Parameters
from refllm.pooling import MEAN_NORMALIZED, SentenceHead
from refllm.tap import Tap, ignore

__all__ = ["StartingBert"]

Floats = NDArray[np.float32]


class StartingBert(Bert):
    """An encoder that starts without compiled kernels, and then is a `Bert`."""

    def __init__(self, config: BertConfig, parameters: Parameters) -> None:
        """Take the weights from `parameters`; errors as `Bert`."""
        p = parameters
        self._parameters = p
        self._compilation = Compilation(p.path, p.numerics)
        self._lock = threading.Lock()
        # Of the groups of texts whose kernels are there, as in `_prepare`.
        self._sizes: set[tuple[bool, int, int, bool]] = set()
        shaped = ShapedParameters(
            p.path, p.tensors, p.numerics, asked=p.asked, others=p.others, spelling=p.spelling
        )
        with recorded(result_of) as missing, np.errstate(all="ignore"):
            super().__init__(config, shaped)
        self._missing_to_pack = list(missing.values())
        self._is_packed = not missing
        if self._is_packed:
            super().__init__(config, p)

    def embed(
        self,
        texts: Sequence[Sequence[int]],
        *,
        head: SentenceHead = MEAN_NORMALIZED,
        n_prompt: int = 0,
        activation: Activation = gelu,
        tap: Tap = ignore,
    ) -> Floats:
        """Return each text's vector, [N, K]; as `Bert.embed`."""
        self._prepare(texts, activation, head)
        return super().embed(texts, head=head, n_prompt=n_prompt, activation=activation, tap=tap)

    def hidden(
        self,
        texts: Sequence[Sequence[int]],
        *,
        activation: Activation = gelu,
        tap: Tap = ignore,
    ) -> Floats:
        """Return the last layer of all texts' tokens, end to end, [T, D]; as `Bert.hidden`."""
        self._prepare(texts, activation, None)
        return super().hidden(texts, activation=activation, tap=tap)

    def _prepare(
        self, texts: Sequence[Sequence[int]], activation: Activation, head: SentenceHead | None
    ) -> None:
        """Pack, and wait until other processes have compiled what the texts need."""
        for token_ids in texts:
            self._check(token_ids)
        lengths = [len(token_ids) for token_ids in texts]
        # Kernels are chosen by the amount of work. A size in between may need another one, which
        # this process then compiles.
        size = (is_single(), sum(lengths).bit_length(), max(lengths).bit_length())
        with self._lock:  # several threads can compute texts
            if (*size, True) in self._sizes or (*size, head is not None) in self._sizes:
                return
            with recorded(result_of) as found, np.errstate(all="ignore"):
                hidden = self._layers([[0] * n for n in lengths], activation, ignore)  # [T, D]
                if head is not None:
                    head(hidden, np.cumsum([0, *lengths]).tolist())
            missing: list[Missing] = [*self._missing_to_pack, *found.values()]
            if missing:
                self._compilation.start(missing, "compile_texts", lengths=lengths)
                self._compilation.wait(missing)
            if not self._is_packed:
                packed = Bert(self.config, self._parameters)
                # From here on nothing fails: after an interrupted packing the next texts pack.
                vars(self).update(vars(packed))
                self._is_packed, self._missing_to_pack = True, []
                if self._parameters.kept is not None:
                    self._parameters.kept.write()
            self._sizes.add((*size, head is not None))
