"""Answers bound to a grammar: the tokens that may come next, by the library llguidance.

A token may come next where the text so far with the token's bytes begins a text of the grammar, and
an end token where the text so far is one. That is the mask of the next draw: it comes before every
stage of the sampler. vLLM does the same (its bitmask changes the logits before its sampler).
llama.cpp draws without the mask first, and draws again with the mask in front where the token does
not fit (common/sampling.cpp), so that tokens which are likely without it, too, come more often.

Where a text is forced, llguidance by default allows the one token that a tokenizer would choose.
Here the model chooses among all that fit (`no_forcing`), so that the rule above is the whole rule,
and holds for tokenizers that put a space before a text.

A JSON text has no whitespace around it, and inside at each place at most as much as in llama.cpp's
grammars: one space, or one or two line feeds and an indent. So a model cannot write whitespace for
ever, and a schema of finitely many values ends.

Sources: JSON Schema 2020-12; llguidance (docs/json_schema.md has what it reads); llama.cpp's
common/json-schema-to-grammar.cpp.

V tokens in the vocabulary.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from refllm.errors import InvalidInput, LlmError, LlmRuntimeError, ModelNotSupported, how_to_install
from refllm.tokenizer.base import Tokenizer
from refllm.tokenizer.native_messages import hold_native_messages

if TYPE_CHECKING:
    from llguidance import LLMatcher

__all__ = [
    "JSON_OBJECT",
    "MAX_BYTES",
    "MAX_DEPTH",
    "Grammar",
    "Matcher",
    "has_library",
    "json_grammar",
    "matcher_of",
    "try_grammar",
]

LIBRARY = "llguidance"
TRIAL = "refllm.tokenizer.grammar_trial"

# Of a schema. OpenAI's own limits are 120,000 characters and 10 levels.
MAX_BYTES = 2**17
MAX_DEPTH = 64
MAX_COMPILED = 8  # grammars that are kept for a tokenizer
MAX_TRIED = 256  # grammars that are known to compile
MAX_TRIALS = 2  # at the same time; further threads block
TRIAL_SECONDS = 60.0  # wall time, for a busy machine; the limit of CPU time is the trial's own
MAX_WORDS = 300  # characters of the library's message

OPTIONS = "x-guidance"  # a key of llguidance's own in a schema
WHITESPACE = r" |\n{1,2}[ \t]{0,20}"
JSON_OBJECT: Mapping[str, object] = {"type": "object"}


@dataclass(frozen=True, slots=True)
class Grammar:
    """A grammar in llguidance's language; `json_grammar` makes one."""

    text: str


class Matcher:
    """The tokens that may come next in one text bound to a grammar; see `matcher_of`."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def allowed(self) -> NDArray[np.bool_]:
        """Return of each token whether it may come next, bool [V]; at least one may.

        Raises:
            InvalidInput: if no token of the vocabulary fits, or a limit is reached.
        """
        with _library_errors(InvalidInput, "the grammar has no next token"):
            words = self._matcher.compute_bitmask()  # a bit of each token, the lowest first
            self._check()
        bits = np.unpackbits(np.frombuffer(words, np.uint8), bitorder="little")
        return bits.astype(np.bool_)

    def advance(self, token_id: int) -> None:
        """Append a token that is allowed.

        Raises:
            InvalidInput: as `allowed`.
        """
        with _library_errors(InvalidInput, "the grammar has no next token"):
            self._matcher.consume_token(token_id)
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            words = _words(self._matcher.get_error())
            if words == "NoExtensionBias":
                words = "none of this model's can continue the text as it demands"
            raise InvalidInput(f"the grammar has no next token: {words}")


def has_library() -> bool:
    """Return whether llguidance is installed."""
    return importlib.util.find_spec(LIBRARY) is not None


def json_grammar(schema: Mapping[str, object]) -> Grammar:
    """Return the grammar of the JSON texts that a schema describes.

    Names that `additionalProperties` or `patternProperties` allow may come several times; those of
    `properties` come once, in the schema's order.

    Args:
        schema: A JSON schema, as an object.

    Raises:
        InvalidInput: for a schema that is no JSON, too long or too deep, or has a key that is
            llguidance's own. What the library itself refuses is found by `matcher_of`.

    Example:
        >>> json_grammar({"type": "boolean"}).text.splitlines()[0]
        '%llguidance {"no_forcing": true}'
    """
    _check_depth(schema)
    if OPTIONS in schema:
        raise InvalidInput(f"the schema has the key {OPTIONS}, which is not JSON Schema's")
    options = {"whitespace_pattern": WHITESPACE}
    try:
        text = json.dumps({**schema, OPTIONS: options}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"the schema must be what JSON can hold: {error}") from error
    if len(text) > MAX_BYTES:
        raise InvalidInput(f"the schema has {len(text)} bytes, and may have {MAX_BYTES}")
    return Grammar(f'%llguidance {{"no_forcing": true}}\nstart: %json {text}')


def _check_depth(schema: Mapping[str, object]) -> None:
    level: list[Any] = [schema]  # objects and lists
    for _ in range(MAX_DEPTH):
        level = [
            inside
            for value in level
            for inside in (value.values() if isinstance(value, Mapping) else value)
            if isinstance(inside, Mapping | list | tuple)
        ]
        if not level:
            return
    raise InvalidInput(f"the schema is nested deeper than {MAX_DEPTH} levels")


def matcher_of(tokenizer: Tokenizer, grammar: Grammar) -> Matcher:
    """Return the beginning of a text that is bound to a grammar, in a model's tokens.

    The tokenizer's vocabulary is read once, and kept for as long as the tokenizer is.

    Args:
        tokenizer: The model's.
        grammar: The answer's.

    Raises:
        InvalidInput: for a grammar that llguidance refuses, with its reason.
        ModelNotSupported: for a model without an end token.
        LlmRuntimeError: if llguidance is not installed.

    Example:
        >>> from refllm.models.bundled import ROOT
        >>> from refllm.models.load import load
        >>> tokenizer = load(ROOT / "llama" / "tiny-chat.gguf").tokenizer
        >>> matcher = matcher_of(tokenizer, json_grammar({"type": "boolean"}))
        >>> first = np.flatnonzero(matcher.allowed())
        >>> sorted({tokenizer.token_bytes(token_id)[:1] for token_id in first})
        [b'f', b't']
    """
    if not has_library():
        raise LlmRuntimeError(
            f"grammars need {LIBRARY}, which is not installed", how_to_install("grammar")
        )
    with _lock:
        if tokenizer not in _vocabularies:
            _vocabularies[tokenizer] = _Vocabulary(tokenizer)
        return _vocabularies[tokenizer].matcher(grammar)


class _Vocabulary:
    """A tokenizer's tokens as llguidance reads them, and the grammars compiled for them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        from llguidance import LLTokenizer, TokenizerWrapper

        eos_ids = sorted(tokenizer.eos_ids)
        if not eos_ids:
            raise ModelNotSupported(
                "the model has no end token, and an answer that is bound to a grammar ends with one"
            )
        with (
            _library_errors(LlmRuntimeError, "llguidance cannot read the model's vocabulary"),
            hold_native_messages(),
        ):
            tokens = TokenizerWrapper(_Tokens(tokenizer, eos_ids[0]))
            self._tokens = LLTokenizer(tokens, eos_token=eos_ids)
        self._compiled = functools.lru_cache(MAX_COMPILED)(self._compile)

    def matcher(self, grammar: Grammar) -> Matcher:
        """Return a matcher of its own, at the beginning."""
        return Matcher(self._compiled(grammar).deep_copy())

    def _compile(self, grammar: Grammar) -> LLMatcher:
        from refllm.tokenizer.grammar_trial import compiled

        with _library_errors(InvalidInput, "the grammar cannot be used"), hold_native_messages():
            matcher = compiled(grammar.text, self._tokens)
            if matcher.is_error():
                raise InvalidInput(f"the grammar cannot be used: {_words(matcher.get_error())}")
        return matcher


class _Tokens:
    """Each token's bytes, in the form of `llguidance.TokenizerWrapper`.

    A token that writes nothing is special, and no part of a text; nor is any end token.
    """

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, eos_id: int) -> None:
        self.eos_token_id = eos_id
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.n_vocab)]
        self.special_token_ids = [
            i for i, written in enumerate(self.tokens) if not written or i in tokenizer.eos_ids
        ]

    def __call__(self, text: bytes) -> list[int]:
        """Only forced text is cut into tokens, and none is (`no_forcing`)."""
        raise NotImplementedError


_lock = threading.Lock()
_vocabularies: weakref.WeakKeyDictionary[Tokenizer, _Vocabulary] = weakref.WeakKeyDictionary()


@functools.lru_cache(MAX_TRIED)
def try_grammar(grammar: Grammar) -> None:
    """Compile a grammar in a process of its own, with limits of time and memory.

    A server does so before it compiles a client's grammar itself, because a thread that compiles
    cannot be ended. A grammar that was tried is not tried again.

    Raises:
        InvalidInput: for a grammar that llguidance refuses, with its reason, or that reaches a
            limit of `refllm.tokenizer.grammar_trial`.
    """
    with _trials:
        try:
            ended = subprocess.run(
                [sys.executable, "-m", TRIAL],
                input=grammar.text.encode(),
                capture_output=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                timeout=TRIAL_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise _too_complex() from None
    if ended.returncode != 0:
        raise _too_complex()
    if ended.stdout:
        raise InvalidInput(_words(ended.stdout.decode()))


_trials = threading.BoundedSemaphore(MAX_TRIALS)


def _too_complex() -> InvalidInput:
    return InvalidInput("it is too complex to be compiled within this server's limits; simplify it")


@contextmanager
def _library_errors(kind: type[LlmError], failed: str) -> Iterator[None]:
    """Turn every error of llguidance into one of that kind."""
    try:
        yield
    except (LlmError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        raise kind(f"{failed}: {_words(str(error)) or type(error).__name__}") from error


def _words(message: str) -> str:
    """Return llguidance's own words of an error, without the place in the grammar's text."""
    words = re.sub(r"^at \d+\(\d+\): failed to compile JSON schema: ", "", message)
    words = words.split("\n   1 | %llguidance")[0].removesuffix("<non-verbose/>")
    return " ".join(words.split())[:MAX_WORDS]
