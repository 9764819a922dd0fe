"""An earlier tiny-chat as the beginning of a new one, whose vocabulary may be another.

What was learned before need not be learned again: finding a word of the prompt above all, which
takes longest. Vocabularies differ where texts do, so the embedding of a piece is that of the same
piece in the earlier model; a piece that is new begins as the mean of the earlier pieces that spell
it.

V vocabulary, D model width.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import gguf
import numpy as np
import sentencepiece
import torch

from tools.tiny_chat.network import TinyLlama

__all__ = ["begin_as"]

EMBEDDING = "token_embd.weight"


@torch.no_grad()  # type: ignore[untyped-decorator]
def begin_as(
    earlier: Path, network: TinyLlama, processor: sentencepiece.SentencePieceProcessor
) -> None:
    """Copy the earlier model's weights into a network of the same shape."""
    reader = gguf.GGUFReader(earlier)
    tensors = {
        tensor.name: torch.from_numpy(
            np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
        )
        for tensor in reader.tensors
    }
    pieces = reader.fields["tokenizer.ggml.tokens"].contents()
    ids = {piece: i for i, piece in enumerate(pieces)}
    for name, parameter in network.named_parameters():
        if name != EMBEDDING:
            parameter.copy_(tensors[name])
    for i, row in enumerate(network.token_embd.weight):
        spelled = [ids[piece] for piece in _spelled(processor.id_to_piece(i), ids)]
        row.copy_(tensors[EMBEDDING][spelled].mean(dim=0))


def _spelled(text: str, pieces: Collection[str]) -> Iterator[str]:
    """The longest of the pieces that the text begins with, and so on; else its bytes' pieces."""
    while text:
        longest = next((text[:n] for n in range(len(text), 0, -1) if text[:n] in pieces), None)
        if longest is None:
            yield from (f"<0x{byte:02X}>" for byte in text[0].encode())
        else:
            yield longest
        text = text[len(longest or text[0]) :]
