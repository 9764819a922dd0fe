"""BERT as textbooks have it: texts padded to one length, and a mask over the padding.

refllm computes texts end to end, without padding; this computes them the other way, in plain NumPy,
with weights that the gguf package decoded and token ids from the tokenizers library's own BERT
tokenizer. It shares no code with refllm, so that the golden vectors are another program's.
`Mistakes` makes it wrong on purpose, to see by how much a wrong backend's vectors are off. The page
to read is `refllm.plain.bert`: one text, no padding; tests/networks/test_plain.py compares the two.

N texts, S tokens of the longest one, D model width, H heads, E head width, F feed-forward width.
Source: Devlin et al. 2018, arXiv:1810.04805; pooling: Reimers and Gurevych 2019, arXiv:1908.10084.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import gguf
import numpy as np
from numpy.typing import NDArray
from tokenizers import BertWordPieceTokenizer

__all__ = ["Mistakes", "PlainBert", "bert_of_gguf"]

Array: TypeAlias = NDArray[Any]

PADDING = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistakes:
    """What is done wrong; nothing by default."""

    tanh_gelu: bool = False
    attends_to_padding: bool = False
    pools_padding: bool = False
    pools_first_token: bool = False
    keeps_length: bool = False


RIGHT = Mistakes()


@dataclass(frozen=True, slots=True)
class PlainBert:
    """Hyperparameters, tensors by GGUF's names, and the tokenizer."""

    n_layers: int
    n_heads: int
    epsilon: float
    tensors: Mapping[str, Array]
    tokenizer: BertWordPieceTokenizer
    text_limit: int | None = None

    def token_ids(self, text: str, *, max_tokens: int | None = None) -> list[int]:
        """Of one text, special tokens included; a longer text loses what is before its [SEP].

        Without `max_tokens` the limit is the file's, if it has one.
        """
        ids = list(self.tokenizer.encode(text).ids)
        limit = self.text_limit if max_tokens is None else max_tokens
        if limit is None or len(ids) <= limit:
            return ids
        return [*ids[: limit - 1], ids[-1]]

    def vectors(
        self, texts: Sequence[Sequence[int]], dtype: type = np.float64, mistakes: Mistakes = RIGHT
    ) -> Array:
        """One vector for each text of token ids, all in one padded batch: [N, D]."""
        w: dict[str, Array] = {name: values.astype(dtype) for name, values in self.tensors.items()}
        longest = max(map(len, texts))
        ids = np.array([[*text, *[PADDING] * (longest - len(text))] for text in texts])  # [N, S]
        is_real = np.arange(longest) < np.array([len(text) for text in texts])[:, None]  # [N, S]
        seen = np.ones_like(is_real) if mistakes.attends_to_padding else is_real
        x = w["token_embd.weight"][ids] + w["position_embd.weight"][:longest]  # [N, S, D]
        x = self._norm(w, "token_embd_norm", x + w["token_types.weight"][0])
        for i in range(self.n_layers):
            attended = self._attention(w, f"blk.{i}", x, seen)
            x = self._norm(w, f"blk.{i}.attn_output_norm", x + attended)
            up = _affine(w, f"blk.{i}.ffn_up", x)  # [N, S, F]
            active = _tanh_gelu(up) if mistakes.tanh_gelu else _gelu(up)
            down = _affine(w, f"blk.{i}.ffn_down", active)
            x = self._norm(w, f"blk.{i}.layer_output_norm", x + down)
        weights = (np.ones_like(is_real) if mistakes.pools_padding else is_real)[..., None]
        pooled = (x * weights).sum(axis=1) / weights.sum(axis=1)  # [N, D]
        if mistakes.pools_first_token:
            pooled = x[:, 0]
        length = 1.0 if mistakes.keeps_length else np.linalg.norm(pooled, axis=1, keepdims=True)
        result: Array = pooled / length
        return result

    def _attention(self, w: Mapping[str, Array], layer: str, x: Array, seen: Array) -> Array:
        """What each token [N, S, D] takes from those that are `seen` [N, S]."""
        n_texts, n_tokens, width = x.shape
        q, k, v = (
            _affine(w, f"{layer}.attn_{part}", x)
            .reshape(n_texts, n_tokens, self.n_heads, -1)
            .transpose(0, 2, 1, 3)  # [N, H, S, E]
            for part in "qkv"
        )
        scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(width // self.n_heads)  # [N, H, S, S]
        scores = np.where(seen[:, None, None, :], scores, -np.inf)
        e = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (e / e.sum(axis=-1, keepdims=True)) @ v  # [N, H, S, E]
        return _affine(w, f"{layer}.attn_output", mixed.transpose(0, 2, 1, 3).reshape(x.shape))

    def _norm(self, w: Mapping[str, Array], name: str, x: Array) -> Array:
        centered = x - x.mean(axis=-1, keepdims=True)
        deviation = np.sqrt((centered**2).mean(axis=-1, keepdims=True) + self.epsilon)
        result: Array = centered / deviation * w[f"{name}.weight"] + w[f"{name}.bias"]
        return result


def _affine(w: Mapping[str, Array], name: str, x: Array) -> Array:
    result: Array = x @ w[f"{name}.weight"].T + w[f"{name}.bias"]
    return result


def _gelu(x: Array) -> Array:
    error_function = np.vectorize(math.erf, otypes=[np.float64])
    result: Array = (0.5 * x * (1.0 + error_function(x / math.sqrt(2.0)))).astype(x.dtype)
    return result


def _tanh_gelu(x: Array) -> Array:
    result: Array = 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    return result


def bert_of_gguf(path: Path) -> PlainBert:
    """The BERT in a GGUF file, read by the gguf package."""
    reader = gguf.GGUFReader(path)

    def value(key: str) -> Any:
        return reader.fields[key].contents()

    pieces, types = value("tokenizer.ggml.tokens"), value("tokenizer.ggml.token_type")
    vocabulary = {
        _as_bert_spells(piece, is_word=kind == gguf.TokenType.NORMAL): number
        for number, (piece, kind) in enumerate(zip(pieces, types, strict=True))
    }
    limit = reader.fields.get("tokenizer.huggingface.truncation.max_length")
    return PlainBert(
        n_layers=value("bert.block_count"),
        n_heads=value("bert.attention.head_count"),
        epsilon=value("bert.attention.layer_norm_epsilon"),
        tensors={
            tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            for tensor in reader.tensors
        },
        tokenizer=BertWordPieceTokenizer(vocabulary, lowercase=True),
        text_limit=None if limit is None else limit.contents(),
    )


def _as_bert_spells(piece: str, *, is_word: bool) -> str:
    """GGUF marks where a word begins, BERT where it goes on."""
    if not is_word:
        return piece
    return piece.removeprefix("▁") if piece.startswith("▁") else f"##{piece}"
