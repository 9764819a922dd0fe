"""Wrong backends that compute rightly: what they do to texts, counts and requests is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from refllm.api import InferencingUsage, InvalidInput
from refllm.generate import Chunk, Generation, generate_text
from refllm.models.load import LlamaModel
from refllm.sampling import Step
from refllm.tokenizer.base import TextStream, Tokenizer
from refllm.tokenizer.gguf_keys import GgufKeys, read_special_ids
from refllm.tokenizer.sentencepiece import SentencePieceTokenizer
from refllm.tokenizer.vocabulary import SpecialIds, VocabularyTokenizer
from tests.support.mutants import Mutant

__all__ = ["MUTANTS_OF_TEXTS"]

real_encode = VocabularyTokenizer.encode
real_flag = GgufKeys.flag
real_generate_text = generate_text
real_read_special_ids = read_special_ids
real_token_bytes = SentencePieceTokenizer.token_bytes


def text_with_prompt(
    steps: Iterator[Step], tokenizer: Tokenizer, prompt: Sequence[int]
) -> Iterator[Chunk]:
    yield Chunk(tokenizer.decode(prompt), None)
    yield from real_generate_text(steps, tokenizer, prompt)


def text_with_uncounted_end(
    steps: Iterator[Step], tokenizer: Tokenizer, prompt: Sequence[int]
) -> Iterator[Chunk]:
    for chunk in real_generate_text(steps, tokenizer, prompt):
        is_end = chunk.step is not None and chunk.step.token in tokenizer.eos_ids
        yield Chunk(chunk.text, None if is_end else chunk.step)


def usage_without_bos(prompt: int, generated: int) -> InferencingUsage:
    return InferencingUsage(prompt - 1, generated)


def usage_with_generated(prompt: int, generated: int) -> InferencingUsage:
    return InferencingUsage(prompt + generated, generated)


def generation_without_end(*args: Any, **options: Any) -> Generation:
    return Generation(*args, **{**options, "end_tokens": frozenset()})


def special_ids_without_bos(*args: Any, **options: Any) -> SpecialIds:
    return replace(real_read_special_ids(*args, **options), prefix=())


def special_ids_with_eos(*args: Any, **options: Any) -> SpecialIds:
    special = real_read_special_ids(*args, **options)
    return replace(special, suffix=tuple(sorted(special.eos_ids))[:1])


def no_special_tokens(bos_id: int, eos_ids: frozenset[int], **_: object) -> SpecialIds:
    return SpecialIds(bos_id, eos_ids)


def no_space_prefix(self: GgufKeys, key: str, *, default: bool) -> bool:
    return key != "add_space_prefix" and real_flag(self, key, default=default)


def encode_without_special(self: VocabularyTokenizer, text: str, **options: Any) -> list[int]:
    return real_encode(self, text, **{**options, "parse_special": False})


def bytes_with_special_tokens(self: SentencePieceTokenizer, token_id: int) -> bytes:
    if self.vocabulary.is_special(token_id):
        return self.vocabulary.tokens[token_id].encode()
    return real_token_bytes(self, token_id)


def push_alone(self: TextStream, token_id: int) -> str:
    tokenizer: Tokenizer = self._tokenizer
    inside = tokenizer.token_bytes(token_id)
    written = inside if self._is_open else tokenizer.opening_bytes(token_id)
    self._is_open = self._is_open or bool(inside)
    return written.decode("utf-8", "replace")


def cut_prompt(self: LlamaModel, prompt: str) -> list[int]:
    return self.tokenizer.encode(prompt)[: self.config.n_ctx]


def refuse_no_texts(texts: Sequence[str]) -> None:
    if not texts:
        raise InvalidInput("give at least one text")


def one_token_less(max_tokens: int, n_added: int) -> int:
    return max_tokens - n_added - 1


SENTENCEPIECE = "refllm.tokenizer.sentencepiece.SentencePieceTokenizer"

MUTANTS_OF_TEXTS = (
    Mutant(
        name="prompt in the text",
        groups=("text", "api"),
        changes={"refllm.engine.generate_text": text_with_prompt},
        symptoms=frozenset({"prompt echoed in text"}),
    ),
    Mutant(
        name="BOS not counted",
        groups=("text", "api"),
        changes={"refllm.engine.InferencingUsage": usage_without_bos},
        symptoms=frozenset({"BOS not counted"}),
    ),
    Mutant(
        name="generated tokens counted with the prompt",
        groups=("text",),
        changes={"refllm.engine.InferencingUsage": usage_with_generated},
        symptoms=frozenset({"prompt count with generated"}),
    ),
    Mutant(
        name="end token not counted",
        groups=("text", "api"),
        changes={"refllm.engine.generate_text": text_with_uncounted_end},
        symptoms=frozenset({"end token not counted"}),
    ),
    Mutant(
        name="end token ignored",
        groups=("text",),
        changes={"refllm.engine.Generation": generation_without_end},
        symptoms=frozenset({"end token ignored"}),
    ),
    Mutant(
        name="BOS missing",
        groups=("tokenizer", "text"),
        changes={"refllm.tokenizer.sentencepiece.read_special_ids": special_ids_without_bos},
        symptoms=frozenset({"BOS missing"}),
    ),
    Mutant(
        name="EOS added",
        groups=("tokenizer",),
        changes={"refllm.tokenizer.sentencepiece.read_special_ids": special_ids_with_eos},
        symptoms=frozenset({"EOS added"}),
    ),
    Mutant(
        name="CLS and SEP missing",
        groups=("tokenizer", "embeddings"),
        changes={"refllm.tokenizer.wordpiece.SpecialIds": no_special_tokens},
        symptoms=frozenset({"special tokens not added", "special tokens missing"}),
    ),
    Mutant(
        name="no space before the first word",
        groups=("tokenizer",),
        changes={"refllm.tokenizer.gguf_keys.GgufKeys.flag": no_space_prefix},
        symptoms=frozenset({"space before the first word missing"}),
    ),
    Mutant(
        name="special tokens read as characters",
        groups=("tokenizer",),
        changes={"refllm.tokenizer.vocabulary.VocabularyTokenizer.encode": encode_without_special},
        symptoms=frozenset({"special tokens in text not read"}),
    ),
    Mutant(
        name="special tokens shown",
        groups=("tokenizer",),
        changes={f"{SENTENCEPIECE}.token_bytes": bytes_with_special_tokens},
        symptoms=frozenset({"special tokens kept in text"}),
    ),
    Mutant(
        name="bytes not joined",
        groups=("tokenizer",),
        changes={"refllm.tokenizer.base.TextStream.push": push_alone},
        symptoms=frozenset({"bytes not joined"}),
    ),
    Mutant(
        name="first space kept",
        groups=("tokenizer",),
        changes={
            "refllm.tokenizer.sentencepiece.SentencePieceTokenizer.opening_bytes": real_token_bytes,
        },
        symptoms=frozenset({"first space kept"}),
    ),
    Mutant(
        name="long prompt cut",
        groups=("api",),
        changes={"refllm.models.load.LlamaModel.prompt_tokens": cut_prompt},
        symptoms=frozenset({"long prompt accepted"}),
    ),
    Mutant(
        name="empty list refused",
        groups=("embeddings", "api"),
        changes={"refllm.engine._check_texts": refuse_no_texts},
        symptoms=frozenset({"empty list refused"}),
    ),
    Mutant(
        name="text cut one token early",
        groups=("embeddings",),
        changes={"refllm.tokenizer.vocabulary.room_for_text": one_token_less},
        symptoms=frozenset({"text cut elsewhere"}),
    ),
)
