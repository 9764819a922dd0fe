"""llama.cpp, through the low-level functions of llama-cpp-python: logits for the last token only.

V vocabulary.

llama.cpp keeps its own choices wherever it has any (flash attention, repacked weights, a float16
KV cache); only threads and batch sizes are set.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import llama_cpp

from benchmarks.contestants.serve import memory, serve, timed, versions

ANSWER = 64  # logits of the last token that are sent back, to be compared
QUANTIZATIONS = {
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
}


class Contestant:
    """One model, one context, one sequence."""

    def __init__(self) -> None:
        self.log = llama_cpp.llama_log_callback(_ignore)
        llama_cpp.llama_log_set(self.log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model: Any = None
        self.context: Any = None

    def load(self, path: str, threads: int, n_ctx: int) -> Mapping[str, Any]:
        """Load the model at `path` and make its context."""
        before = memory()
        seconds, _ = timed(lambda: self._load(path, threads, n_ctx))
        system = llama_cpp.llama_print_system_info().decode()
        return {
            "seconds": [seconds],
            "before": before,
            "after": memory(),
            "versions": versions("llama_cpp_python") | {"llama.cpp": system.strip(" |")},
        }

    def prefill(self, token_ids: Sequence[int]) -> Mapping[str, Any]:
        """Compute a prompt in an empty context."""
        self._clear()
        seconds, answer = timed(lambda: self._logits(token_ids))
        return {"seconds": [seconds], "answer": answer, "memory": memory()}

    def decode(self, prompt: Sequence[int], token_ids: Sequence[int]) -> Mapping[str, Any]:
        """After a prompt, compute tokens one at a time; the prompt is not timed."""
        self._clear()
        self._logits(prompt)
        seconds, answers = timed(lambda: [self._logits([token_id]) for token_id in token_ids])
        return {"seconds": [seconds], "answer": answers[-1]}

    def _load(self, path: str, threads: int, n_ctx: int) -> None:
        self.model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError(f"llama.cpp could not load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp could not make a context of {n_ctx} tokens")

    def _clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def _logits(self, token_ids: Sequence[int]) -> list[float]:
        """The first of the logits [V] after the last token."""
        array = (llama_cpp.llama_token * len(token_ids))(*token_ids)
        batch = llama_cpp.llama_batch_get_one(array, len(token_ids))
        if llama_cpp.llama_decode(self.context, batch) != 0:
            raise RuntimeError("llama.cpp could not decode")
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return [logits[i] for i in range(ANSWER)]


def quantize(source: str, target: str, type_name: str) -> Mapping[str, Any]:
    """Write a quantized copy of a GGUF file, as llama.cpp's own tool does."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = QUANTIZATIONS[type_name]
    status = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
    if status != 0:
        raise RuntimeError(f"llama.cpp could not quantize {source} to {type_name}")
    return {}


def _ignore(level: int, text: bytes, user_data: object) -> None:
    """A log that drops its records."""


if __name__ == "__main__":
    contestant = Contestant()
    serve(
        {
            "load": contestant.load,
            "prefill": contestant.prefill,
            "decode": contestant.decode,
            "quantize": quantize,
        }
    )
