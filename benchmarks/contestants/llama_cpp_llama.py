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
MAX_BATCH = 512  # tokens of one call
SEQUENCE_CONTEXT = 256  # tokens of each of several sequences
QUANTIZATIONS = {
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
}


class Contestant:
    """One model, and one context, of one sequence or of several."""

    def __init__(self) -> None:
        self.log = llama_cpp.llama_log_callback(_ignore)
        llama_cpp.llama_log_set(self.log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.sampler = llama_cpp.llama_sampler_init_greedy()
        self.model: Any = None
        self.context: Any = None
        self.threads = 1
        self.kept: Sequence[int] = ()
        self.prompts: Sequence[Sequence[int]] = ()

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

    def fill(self, prompts: Sequence[Sequence[int]]) -> Mapping[str, Any]:
        """Make one sequence of each prompt, for `continue_together`, in a context of their own."""
        llama_cpp.llama_free(self.context)
        self._new_context(len(prompts) * SEQUENCE_CONTEXT, n_sequences=len(prompts))
        self.prompts = prompts
        tokens = [
            (token_id, position, sequence)
            for sequence, prompt in enumerate(prompts)
            for position, token_id in enumerate(prompt[:-1])
        ]
        for start in range(0, len(tokens), MAX_BATCH):
            self._compute(tokens[start : start + MAX_BATCH], with_logits=False)
        return {}

    def continue_together(self, n_tokens: int) -> Mapping[str, Any]:
        """Continue all filled sequences by the likeliest tokens, afterwards forgotten.

        The first token of each, which ends its prompt, is not timed. The answer are the logits that
        the last sequence's first token is drawn from.
        """
        memory_ = llama_cpp.llama_get_memory(self.context)
        for sequence, prompt in enumerate(self.prompts):
            llama_cpp.llama_memory_seq_rm(memory_, sequence, len(prompt) - 1, -1)
        n_before = [len(prompt) - 1 for prompt in self.prompts]
        drawn = self._step_together([prompt[-1] for prompt in self.prompts], n_before)
        logits = llama_cpp.llama_get_logits_ith(self.context, len(drawn) - 1)
        answer = [logits[i] for i in range(ANSWER)]
        n_drawn = 0

        def continue_all() -> None:
            nonlocal drawn, n_drawn
            for i in range(n_tokens):
                drawn = self._step_together(drawn, [n + 1 + i for n in n_before])
                n_drawn += len(drawn)

        seconds, _ = timed(continue_all)
        return {"seconds": [seconds], "answer": answer, "n_tokens": n_drawn}

    def first_token(
        self, token_ids: Sequence[int], is_kept: bool, repeat: int = 1
    ) -> Mapping[str, Any]:
        """Draw the token after a prompt; without `is_kept`, no prompt is kept beforehand.

        As in `llama_cpp.Llama.generate`, the context keeps the tokens that the prompt before had in
        common, and the last one is computed in any case.
        """
        seconds = []
        for _ in range(repeat):
            if not is_kept:
                self._clear()
                self.kept = ()
            each, n_computed = timed(lambda: self._first_token(token_ids))
            seconds.append(each)
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        answer = [logits[i] for i in range(ANSWER)]
        return {"seconds": seconds, "answer": answer, "n_tokens": n_computed}

    def _first_token(self, token_ids: Sequence[int]) -> int:
        """Return how many tokens were computed."""
        n_kept = 0
        while n_kept < min(len(self.kept), len(token_ids) - 1):
            if self.kept[n_kept] != token_ids[n_kept]:
                break
            n_kept += 1
        memory_ = llama_cpp.llama_get_memory(self.context)
        llama_cpp.llama_memory_seq_rm(memory_, 0, n_kept, -1)
        rest = token_ids[n_kept:]
        for start in range(0, len(rest), MAX_BATCH):
            self._decode(rest[start : start + MAX_BATCH])
        llama_cpp.llama_sampler_sample(self.sampler, self.context, -1)
        self.kept = token_ids
        return len(rest)

    def _load(self, path: str, threads: int, n_ctx: int) -> None:
        self.model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError(f"llama.cpp could not load {path}")
        self.threads = threads
        self._new_context(n_ctx, n_sequences=1)

    def _new_context(self, n_ctx: int, *, n_sequences: int) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_seq_max = n_sequences
        params.n_batch = params.n_ubatch = MAX_BATCH
        params.n_threads = params.n_threads_batch = self.threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp could not make a context of {n_ctx} tokens")

    def _clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def _logits(self, token_ids: Sequence[int]) -> list[float]:
        """The first of the logits [V] after the last token."""
        self._decode(token_ids)
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return [logits[i] for i in range(ANSWER)]

    def _decode(self, token_ids: Sequence[int]) -> None:
        """Compute the next tokens of the only sequence, with logits after the last one."""
        array = (llama_cpp.llama_token * len(token_ids))(*token_ids)
        batch = llama_cpp.llama_batch_get_one(array, len(token_ids))
        if llama_cpp.llama_decode(self.context, batch) != 0:
            raise RuntimeError("llama.cpp could not decode")

    def _step_together(self, token_ids: Sequence[int], positions: Sequence[int]) -> list[int]:
        """Compute a token of each sequence at its position, and draw the next of each."""
        sequences = range(len(token_ids))
        self._compute(list(zip(token_ids, positions, sequences, strict=True)), with_logits=True)
        return [
            llama_cpp.llama_sampler_sample(self.sampler, self.context, sequence)
            for sequence in sequences
        ]

    def _compute(self, tokens: Sequence[tuple[int, int, int]], *, with_logits: bool) -> None:
        """Compute tokens of several sequences, each a token id, a position and a sequence."""
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for i, (token_id, position, sequence) in enumerate(tokens):
                batch.token[i] = token_id
                batch.pos[i] = position
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = sequence
                batch.logits[i] = with_logits
            if llama_cpp.llama_decode(self.context, batch) != 0:
                raise RuntimeError(f"llama.cpp could not decode {len(tokens)} sequences together")
        finally:
            llama_cpp.llama_batch_free(batch)


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
            "fill": contestant.fill,
            "continue_together": contestant.continue_together,
            "first_token": contestant.first_token,
            "quantize": quantize,
        }
    )
