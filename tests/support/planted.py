"""Traces of networks with a planted fault, computed in float64 and rounded to float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from refllm.conform.faults.faulty_bert import embeddings
from refllm.conform.faults.faulty_llama import logits
from refllm.conform.faults.float64_models import (
    tiny_chat_tokenizer,
    tiny_chat_weights,
    tiny_embed_tokenizer,
    tiny_embed_weights,
)
from refllm.trace import Call, Metadata, Program, Text, Trace, open_trace
from refllm.trace.faults.bert import Encoder
from refllm.trace.faults.llama import Network
from refllm.trace.metadata import METADATA_KEY
from refllm.trace.writer import array_file

__all__ = ["planted_bert", "planted_llama", "write_trace"]

Values = dict[str, NDArray[np.float64]]
PROGRAM = Program(name="planted", version="1")


def write_trace(to: Path, calls: Sequence[Values], **fields: object) -> Trace:
    """Write the values of each call; `fields` are those of `Metadata` besides the calls."""
    texts: tuple[Text, ...] = fields["texts"]  # type: ignore[assignment]
    is_llama = fields["architecture"] == "llama"
    spans = []
    first = 0
    for i, values in enumerate(calls):
        n_tokens = len(values["inp_embd"]) if is_llama else len(texts[i].token_ids)
        call = Call(
            text=0 if is_llama else i,
            first=first if is_llama else 0,
            n_tokens=n_tokens,
            values=tuple(values),
        )
        spans.append(call)
        first += n_tokens
    with array_file(to, overwrite=True) as writer:
        for i, values in enumerate(calls):
            for name, value in values.items():
                writer.add(f"calls/{i}/{name}", value.astype(np.float32))
        metadata = Metadata(calls=tuple(spans), program=PROGRAM, numerics="exact", **fields)  # type: ignore[arg-type]
        writer.metadata = {METADATA_KEY: metadata.to_json()}
    return open_trace(to)


def planted_llama(
    to: Path, token_ids: Sequence[int], network: Network, *, n_prompt: int | None = None
) -> Trace:
    """Trace tiny-chat with this network: the prompt in one call, each further token in one."""
    n_prompt = len(token_ids) if n_prompt is None else n_prompt
    whole: Values = {}

    def tap(name: str, value: NDArray[np.float64]) -> None:
        whole[f"{name}#2" if name in whole else name] = value.copy()

    with np.errstate(all="ignore"):
        logits(tiny_chat_weights(), token_ids, network, tap=tap)
    calls = []
    for first, last in [(0, n_prompt), *((i, i + 1) for i in range(n_prompt, len(token_ids)))]:
        calls.append(
            {
                name: value[:, first:last, :last]
                if name.startswith("kq_soft_max")
                else value[first:last]
                for name, value in whole.items()
            }
        )
    pieces = tuple(map(tiny_chat_tokenizer().piece, token_ids))
    text = Text(text=None, token_ids=tuple(token_ids), pieces=pieces, n_given=n_prompt)
    return write_trace(to, calls, architecture="llama", model="tiny-chat", texts=(text,))


def planted_bert(to: Path, token_ids: Sequence[int], encoder: Encoder) -> Trace:
    """Trace tiny-embed with this encoder."""
    values: Values = {}

    def tap(name: str, value: NDArray[np.float64]) -> None:
        values[name] = value[0] if value.ndim > 2 else value

    with np.errstate(all="ignore"):
        embeddings(tiny_embed_weights(), [token_ids], encoder, tap=tap)
    pieces = tuple(map(tiny_embed_tokenizer().piece, token_ids))
    text = Text(text=None, token_ids=tuple(token_ids), pieces=pieces, n_given=len(token_ids))
    return write_trace(to, [values], architecture="bert", model="tiny-embed", texts=(text,))
