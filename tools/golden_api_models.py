"""What golden/api has to know of the two models that ship, found without refllm's own code paths.

Tokens are counted by the sentencepiece and tokenizers libraries, fed with the vocabularies that the
gguf package reads; texts and vectors are computed by refllm/oracle.py in float64, in plain NumPy on
weights that the gguf package decoded.

T tokens, V vocabulary, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import gguf
import numpy as np
import sentencepiece
import tokenizers
from numpy.typing import NDArray
from sentencepiece import sentencepiece_model_pb2

from refllm import oracle
from refllm.checkpoints.config import bert_config, llama_config
from refllm.checkpoints.open import open_weights
from refllm.models.bundled import ROOT

__all__ = ["CHAT", "EMBED", "Chat", "Embed", "GreedyAnswer"]

Doubles: TypeAlias = NDArray[np.float64]

CHAT = ROOT / "llama" / "tiny-chat.gguf"
EMBED = ROOT / "bert" / "tiny-embed.gguf"

# The first of these that is answered shortly and without doubt is the one that is asked.
PROMPTS = (
    "[INST] Thank you! [/INST]",
    "[INST] How are you? [/INST]",
    "[INST] Good morning! [/INST]",
    "[INST] Hello! [/INST]",
    "[INST] What is 2 + 3? [/INST]",
    "[INST] What is 4 + 4? [/INST]",
)
LONGEST_ANSWER = 40  # tokens
# Backends that quantize activations differ by up to about 0.2 in a logit (SPEC.md, section 3), so
# by up to twice that in the distance of two.
MARGIN = 1.0
WORDS = ("the", "a", "cat")


@dataclass(frozen=True, slots=True)
class GreedyAnswer:
    """A prompt, the tokens that answer it up to the end token, and what they say."""

    prompt: str
    token_ids: tuple[int, ...]
    text: str
    margin: float  # the smallest distance of the largest logit from the second


class Chat:
    """tiny-chat: its context, its tokens, and an answer that no rounding changes."""

    def __init__(self, path: Path = CHAT) -> None:
        self._path = path
        fields = gguf.GGUFReader(path).fields
        self.n_ctx = int(fields["llama.context_length"].contents())
        self._bos = int(fields["tokenizer.ggml.bos_token_id"].contents())
        self._eos = int(fields["tokenizer.ggml.eos_token_id"].contents())
        self._processor = _sentencepiece(fields)

    def count(self, prompt: str) -> int:
        """The tokens of a prompt, BOS included."""
        return len(self._ids(prompt))

    def filler(self, n_tokens: int) -> str:
        """A prompt of exactly so many tokens, BOS included."""
        return _filler(self.count, n_tokens, n_tokens - 1)

    @cached_property
    def greedy_answer(self) -> GreedyAnswer:
        """The answer to the first prompt that has a short one; ends the program if none has."""
        for prompt in PROMPTS:
            answer = self._answer(prompt)
            if answer is not None and answer.margin >= MARGIN and len(answer.token_ids) > 3:
                return answer
        raise SystemExit(f"{self._path}: no prompt is answered certainly enough; nothing written")

    def text(self, prompt: str, answer: Sequence[int]) -> str:
        """What the tokens add to the text of the prompt."""
        before: str = self._processor.decode(self._ids(prompt))
        whole: str = self._processor.decode([*self._ids(prompt), *answer])
        return whole.removeprefix(before)

    def _ids(self, prompt: str) -> list[int]:
        return [self._bos, *self._processor.encode(prompt)]

    def _answer(self, prompt: str) -> GreedyAnswer | None:
        answer: list[int] = []
        margins: list[float] = []
        while len(answer) < LONGEST_ANSWER:
            logits = self._logits([*self._ids(prompt), *answer])
            second, first = np.sort(logits)[-2:]
            margins.append(float(first - second))
            answer.append(int(logits.argmax()))
            if answer[-1] == self._eos:
                text = self.text(prompt, answer)
                return GreedyAnswer(prompt, tuple(answer), text, min(margins))
        return None

    def _logits(self, token_ids: Sequence[int]) -> Doubles:
        """After the last of the tokens [V]."""
        logits: Doubles = oracle.llama(self._config, self._weights, token_ids)[-1]
        return logits

    @cached_property
    def _config(self) -> Any:
        return llama_config(open_weights(self._path))

    @cached_property
    def _weights(self) -> Mapping[str, Doubles]:
        return _decoded(self._path)


class Embed:
    """tiny-embed: where it cuts texts, its tokens and its vectors."""

    def __init__(self, path: Path = EMBED) -> None:
        self._path = path
        fields = gguf.GGUFReader(path).fields
        self.limit = int(fields["tokenizer.huggingface.truncation.max_length"].contents())
        self.width = int(fields["bert.embedding_length"].contents())
        self._padding = int(fields["tokenizer.ggml.padding_token_id"].contents())
        self._tokenizer = _wordpiece(fields)

    def count(self, text: str) -> int:
        """The tokens of a text as it is cut, special tokens included."""
        return min(len(self._ids(text)), self.limit)

    def filler(self, n_tokens: int) -> str:
        """A text of exactly so many tokens, special tokens included."""
        return _filler(lambda text: len(self._ids(text)), n_tokens, n_tokens - 2)

    def vector(self, text: str, *, n_padding: int = 0) -> Doubles:
        """Its vector of length 1 [D]; the one that a mean over so much padding would give."""
        ids = [*self._ids(text), *[self._padding] * n_padding]
        vector: Doubles = oracle.bert(self._config, self._weights, ids)
        return vector

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    @cached_property
    def _config(self) -> Any:
        return bert_config(open_weights(self._path))

    @cached_property
    def _weights(self) -> Mapping[str, Doubles]:
        return _decoded(self._path)


def _filler(count: Any, n_tokens: int, n_words: int) -> str:
    for word in WORDS:
        text = " ".join([word] * n_words)
        if count(text) == n_tokens:
            return text
    raise SystemExit(f"no word fills {n_tokens} tokens exactly; nothing written")


def _decoded(path: Path) -> dict[str, Doubles]:
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
        for tensor in gguf.GGUFReader(path).tensors
    }


def _sentencepiece(fields: Mapping[str, Any]) -> Any:
    """The library over the vocabulary of a GGUF, with Llama 2's settings."""
    names = ("tokens", "scores", "token_type")
    columns = [fields[f"tokenizer.ggml.{name}"].contents() for name in names]
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    for piece, score, kind in zip(*columns, strict=True):
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


def _wordpiece(fields: Mapping[str, Any]) -> Any:
    """The library over the vocabulary of a GGUF, where "▁" begins what "##" does not."""
    pieces = fields["tokenizer.ggml.tokens"].contents()
    vocabulary = {_bert_piece(piece): i for i, piece in enumerate(pieces)}
    return tokenizers.BertWordPieceTokenizer(vocabulary, lowercase=True)


def _bert_piece(piece: str) -> str:
    if piece.startswith("[") and piece.endswith("]"):
        return piece
    return piece[1:] if piece.startswith("▁") else f"##{piece}"
