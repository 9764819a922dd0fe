"""Texts that are bound to a JSON schema: the tokens that may come next, and what is written."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from refllm.api import InferencingParams, InvalidInput, LlmRuntimeError, ModelNotSupported
from refllm.engine import LocalEngine
from refllm.generate import Chunk, GenerationOptions
from refllm.models.load import load_tokenizer
from refllm.sampling import PROFILES, Adjustments
from refllm.tokenizer import grammar as grammar_module
from refllm.tokenizer import grammar_trial, tokenizer_from_gguf
from refllm.tokenizer.base import Tokenizer
from refllm.tokenizer.grammar import (
    JSON_OBJECT,
    MAX_BYTES,
    MAX_DEPTH,
    Grammar,
    json_grammar,
    matcher_of,
    try_grammar,
)
from tests.conftest import DATA
from tests.support.vocabularies import CONTROL, bpe_metadata, trained_bpe

llguidance = pytest.importorskip("llguidance", reason="the extra grammar is not installed")

STORIES = DATA / "stories260K" / "stories260K.gguf"
HELLO = "[INST] Hello! [/INST]"
# Words that begin like each other, so that a text may end where another one goes on.
WORDS = ["a", "ab", "the", "the cat", "them", "zz zz"]
LONG_NAME = "zq" * 30  # more characters than three tokens have


class Toy(Tokenizer):
    """A vocabulary of given tokens, the last one of which ends a text."""

    def __init__(self, tokens: Sequence[bytes], *, has_end: bool = True) -> None:
        self.tokens = tokens
        self.n_vocab = len(tokens)
        self.bos_id = None
        self.eos_ids = frozenset({len(tokens) - 1} if has_end else ())
        self.longest_token = 0
        self.n_read = 0

    def encode(self, text: str, **_: Any) -> list[int]:
        raise NotImplementedError

    def piece(self, token_id: int) -> str:
        return repr(self.tokens[token_id])

    def token_bytes(self, token_id: int) -> bytes:
        self.n_read += 1
        return self.tokens[token_id]


def bpe() -> Tokenizer:
    eos_id = trained_bpe().get_vocab_size()
    metadata = bpe_metadata(("<|end|>", CONTROL), eos_token_id=eos_id)
    return tokenizer_from_gguf(metadata, path=Path("trained.gguf"))


@pytest.fixture(params=["tiny-chat", "stories260K", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "bpe":
        return bpe()
    if request.param == "tiny-chat":
        return LocalEngine().inferencing_model("tiny-chat").tokenizer
    return load_tokenizer(request.getfixturevalue("data_dir") / "stories260K/stories260K.gguf")


def answered(
    schema: dict[str, object],
    *,
    model: str | Path = "tiny-chat",
    seed: int = 0,
    profile: str = "contract",
    max_tokens: int = 400,
    **generation_options: Any,
) -> list[Chunk]:
    engine = LocalEngine(seed=seed, profile=profile)
    params = InferencingParams(max_tokens=max_tokens, temperature=1.0)
    chunks = engine.stream(
        model,
        HELLO,
        params,
        generation_options=GenerationOptions(grammar=json_grammar(schema), **generation_options),
    )
    return [chunk for chunk in chunks if chunk.step is not None]


def text_of(chunks: Sequence[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks).strip()


# Which tokens may come next


@pytest.mark.parametrize("seed", range(6))
def test_a_token_may_come_where_a_text_of_the_grammar_begins_so(
    seed: int, tokenizer: Tokenizer
) -> None:
    texts = [json.dumps(value).encode() for value in (*WORDS, None, True)]
    random = np.random.default_rng(seed)
    matcher = matcher_of(tokenizer, json_grammar({"enum": [*WORDS, None, True]}))
    written = b""
    while True:
        fits = [
            (written in texts)
            if i in tokenizer.eos_ids
            else bool(token) and any(text.startswith(written + token) for text in texts)
            for i, token in enumerate(map(tokenizer.token_bytes, range(tokenizer.n_vocab)))
        ]
        assert matcher.allowed().tolist()[: tokenizer.n_vocab] == fits
        token_id = int(random.choice(np.flatnonzero(fits)))
        if token_id in tokenizer.eos_ids:
            break
        matcher.advance(token_id)
        written += tokenizer.token_bytes(token_id)
    assert written in texts


def test_where_a_text_can_only_end_only_end_tokens_are_left(tokenizer: Tokenizer) -> None:
    matcher = matcher_of(tokenizer, json_grammar({"const": "a"}))
    while not matcher.allowed()[sorted(tokenizer.eos_ids)].any():
        matcher.advance(int(np.argmax(matcher.allowed())))
    assert set(np.flatnonzero(matcher.allowed()).tolist()) == tokenizer.eos_ids


def test_matchers_of_one_grammar_go_their_own_ways(tokenizer: Tokenizer) -> None:
    one, other = (matcher_of(tokenizer, json_grammar({"type": "boolean"})) for _ in "ab")
    before = other.allowed().tolist()
    one.advance(int(np.argmax(one.allowed())))
    assert other.allowed().tolist() == before
    assert one.allowed().tolist() != before


def test_an_end_token_that_writes_something_is_no_part_of_a_text() -> None:
    toy = Toy([b'"', b"a", b"<end>"])
    matcher = matcher_of(toy, json_grammar({"type": "string"}))
    assert matcher.allowed().tolist()[:3] == [True, False, False]
    matcher.advance(0)
    assert matcher.allowed().tolist()[:3] == [True, True, False]
    matcher.advance(0)
    assert matcher.allowed().tolist()[:3] == [False, False, True]


def test_a_vocabulary_that_cannot_write_the_text_is_refused_at_that_token() -> None:
    matcher = matcher_of(Toy([b'"', b"a", b""]), json_grammar({"const": "ab"}))
    matcher.advance(0)
    matcher.advance(1)
    with pytest.raises(InvalidInput, match="no next token: none of this model's can continue"):
        matcher.allowed()


def test_a_model_without_an_end_token_is_refused() -> None:
    with pytest.raises(ModelNotSupported, match="the model has no end token"):
        matcher_of(Toy([b"a"], has_end=False), json_grammar(dict(JSON_OBJECT)))


def test_a_vocabulary_is_read_once_and_kept_as_long_as_its_tokenizer() -> None:
    toy = Toy([b'"', b"a", b""])
    matcher_of(toy, json_grammar({"type": "string"}))
    n_read = toy.n_read
    assert n_read >= 3
    matcher_of(toy, json_grammar({"type": "null"}))
    assert toy.n_read == n_read
    known = weakref.ref(toy)
    del toy
    gc.collect()
    assert known() is None


# What is written


LEAVES = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda low, width: {"type": "integer", "minimum": low, "maximum": low + width},
        st.integers(-200, 200),
        st.integers(0, 300),
    ),
    st.builds(lambda n: {"type": "string", "maxLength": n}, st.integers(0, 6)),
    st.builds(lambda n: {"type": "string", "pattern": f"^[a-f]{{{n}}}$"}, st.integers(1, 4)),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.sampled_from([*WORDS, "é", 'a"b', 7, None, False]), min_size=1, unique_by=repr),
    ),
)


def _array(items: object, low: int, more: int) -> dict[str, object]:
    return {"type": "array", "items": items, "minItems": low, "maxItems": low + more}


def _object(properties: dict[str, object], required: list[str]) -> dict[str, object]:
    wanted = [name for name in required if name in properties]
    return {
        "type": "object",
        "properties": properties,
        "required": wanted,
        "additionalProperties": False,
    }


NAMES = ["a", "name", "first name", "é"]
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(_array, inner, st.integers(0, 1), st.integers(0, 2)),
        st.builds(
            _object,
            st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
            st.lists(st.sampled_from(NAMES), unique=True),
        ),
        st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=2)),
    ),
    max_leaves=4,
)


def without_whitespace(model: str | Path) -> Adjustments:
    """A bias by which an unlikely text of much whitespace does not fill the context."""
    tokenizer = LocalEngine().inferencing_model(model).tokenizer
    return Adjustments(
        bias={
            i: -100.0
            for i in range(tokenizer.n_vocab)
            if tokenizer.token_bytes(i) and not tokenizer.token_bytes(i).strip()
        }
    )


@pytest.mark.parametrize(
    "model",
    [
        "tiny-chat",
        pytest.param(
            STORIES, marks=pytest.mark.skipif(not STORIES.exists(), reason="no public files")
        ),
    ],
)
@settings(max_examples=40)
@given(schema=SCHEMAS, seed=st.integers(0, 2**32))
def test_a_generated_json_is_valid_by_its_schema(
    model: str | Path, schema: dict[str, object], seed: int
) -> None:
    Draft202012Validator.check_schema(schema)
    chunks = answered(schema, model=model, seed=seed, adjustments=without_whitespace(model))
    assert chunks[-1].step is not None
    assert chunks[-1].step.token in LocalEngine().inferencing_model(model).tokenizer.eos_ids
    Draft202012Validator(schema).validate(json.loads(text_of(chunks)))


@pytest.mark.parametrize("profile", sorted(PROFILES))
@pytest.mark.parametrize(
    "schema",
    [
        {
            "$defs": {"n": {"type": ["null", "integer"], "maximum": 9, "minimum": 0}},
            "$ref": "#/$defs/n",
        },
        {"oneOf": [{"type": "boolean"}, {"const": "maybe"}]},
        {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 50, "multipleOf": 7}]},
        {"type": "string", "format": "date"},
        {
            "type": "object",
            "properties": {"mood": {"enum": ["glad", "sad"]}},
            "required": ["mood"],
            "additionalProperties": False,
        },
    ],
)
def test_each_profile_writes_what_the_schema_allows(
    schema: dict[str, object], profile: str
) -> None:
    for seed in range(3):
        text = text_of(answered(schema, profile=profile, seed=seed))
        assert Draft202012Validator(schema).is_valid(json.loads(text))


def test_whitespace_at_one_place_is_short() -> None:
    tokenizer = bpe()
    matcher = matcher_of(tokenizer, json_grammar({"type": "array", "items": {"type": "null"}}))
    space = [i for i in range(tokenizer.n_vocab) if tokenizer.token_bytes(i) == b" "]
    line = [i for i in range(tokenizer.n_vocab) if tokenizer.token_bytes(i) == b"\n"]
    opening = [i for i in range(tokenizer.n_vocab) if tokenizer.token_bytes(i) == b"["]
    matcher.advance(opening[0])
    for token_id in (*line, *line, *space * 20):
        assert matcher.allowed()[token_id]
        matcher.advance(token_id)
    assert not matcher.allowed()[space + line].any()


def test_the_same_seed_writes_the_same_text_and_other_seeds_other_texts() -> None:
    schema: dict[str, object] = {"type": "string", "minLength": 30, "maxLength": 30}
    texts = [text_of(answered(schema, seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_infer_returns_what_stream_writes() -> None:
    grammar = json_grammar({"enum": ["glad", "sad"]})
    result = LocalEngine(seed=3).infer(
        "tiny-chat", HELLO, generation_options=GenerationOptions(grammar=grammar)
    )
    chunks = LocalEngine(seed=3).stream(
        "tiny-chat", HELLO, generation_options=GenerationOptions(grammar=grammar)
    )
    assert result.text == "".join(chunk.text for chunk in chunks)
    assert json.loads(result.text) in ("glad", "sad")


@pytest.mark.parametrize("generation_options", [{"min_tokens": 100}, {"ignore_eos": True}])
def test_a_text_that_can_only_end_ends_whatever_else_is_asked_for(
    generation_options: dict[str, Any],
) -> None:
    assert text_of(answered({"type": "boolean"}, **generation_options)) in ("true", "false")


def test_min_tokens_holds_where_the_text_can_go_on() -> None:
    chunks = answered({"type": "integer"}, min_tokens=30)
    assert len(chunks) >= 30
    assert len(text_of(chunks)) >= 30


def test_at_max_tokens_the_text_is_as_far_as_it_came() -> None:
    schema: dict[str, object] = {"type": "object", "required": [LONG_NAME]}
    chunks = answered(schema, max_tokens=3)
    assert len(chunks) == 3
    assert ('{"' + LONG_NAME).startswith("".join(text_of(chunks).split()))


def test_the_probabilities_are_normalized_over_the_allowed_tokens() -> None:
    [first, *_] = answered({"type": "boolean"})
    assert first.step is not None
    tokenizer = LocalEngine().inferencing_model("tiny-chat").tokenizer
    whole = first.step.stages[0].candidates
    assert {tokenizer.token_bytes(i)[:1] for i in whole.ids.tolist()} == {b"t", b"f"}
    assert whole.probabilities.sum() == pytest.approx(1)


# What is refused


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "strin"}, "Invalid type: strin"),
        ({"not": {"type": "null"}}, 'Unimplemented keys: \\["not"\\]'),
        ({"type": "array", "uniqueItems": True}, 'Unimplemented keys: \\["uniqueItems"\\]'),
        ({"type": "string", "enum": [1]}, "Unsatisfiable schema"),
        ({"type": "string", "pattern": "(?=a)"}, "look-around"),
        ({"$ref": "https://example.com/schema"}, "https://example.com/schema"),
        ({"type": "string", "format": "iri"}, "Unknown format: iri"),
    ],
)
def test_a_schema_that_the_library_does_not_compute_is_refused_with_its_reason(
    schema: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message) as refused:
        try_grammar(json_grammar(schema))
    assert "%llguidance" not in str(refused.value)
    with pytest.raises(InvalidInput, match=f"^the grammar cannot be used: .*{message}"):
        matcher_of(Toy([b'"', b""]), json_grammar(schema))


def nested(depth: int) -> dict[str, object]:
    """A schema with so many levels of objects."""
    schema: dict[str, object] = {}
    for _ in range(depth - 1):
        schema = {"items": schema}
    return schema


def test_a_schema_that_is_too_deep_is_refused() -> None:
    try_grammar(json_grammar(nested(MAX_DEPTH)))
    for depth in (MAX_DEPTH + 1, 100_000):
        with pytest.raises(InvalidInput, match=f"nested deeper than {MAX_DEPTH} levels"):
            json_grammar(nested(depth))


def test_a_schema_that_is_too_long_is_refused() -> None:
    with pytest.raises(
        InvalidInput, match=f"the schema has [0-9]+ bytes, and may have {MAX_BYTES}"
    ):
        json_grammar({"enum": ["x" * MAX_BYTES]})


def test_a_schema_with_options_of_the_library_is_refused() -> None:
    with pytest.raises(InvalidInput, match="has the key x-guidance"):
        json_grammar({"type": "null", "x-guidance": {"lenient": True}})


@pytest.mark.parametrize("value", [float("nan"), b"bytes", {1, 2}])
def test_a_schema_that_is_no_json_is_refused(value: object) -> None:
    with pytest.raises(InvalidInput, match="the schema must be what JSON can hold"):
        json_grammar({"const": value})


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"max_grammar_size": 20}, "the grammar cannot be used: .*too big"),
        ({"initial_lexer_fuel": 20}, "the grammar cannot be used: .*too big"),
        ({"step_max_items": 1}, "the grammar has no next token: .*Too many items"),
        ({"step_lexer_fuel": 1}, "the grammar has no next token: .*too many expressions"),
        ({"max_lexer_states": 3}, "the grammar has no next token: .*too many states"),
    ],
)
def test_a_grammar_that_reaches_a_limit_of_the_library_is_refused(
    limit: dict[str, int], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_trial, "LIMITS", llguidance.LLParserLimits(**limit))
    word = {"type": "string", "pattern": "^([a-f]{2,30}|zz)$"}
    grammar = json_grammar({"anyOf": [word, {"type": "object", "properties": {"word": word}}]})
    tokenizer = bpe()
    [quote] = tokenizer.encode('"')

    def begin() -> None:
        matcher = matcher_of(tokenizer, grammar)
        matcher.allowed()
        matcher.advance(quote)
        matcher.allowed()

    with pytest.raises(InvalidInput, match=message):
        begin()


def test_a_grammar_whose_process_does_not_end_well_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grammar_module, "TRIAL", "json.tool")  # ends with 1: its input is no JSON
    with pytest.raises(InvalidInput, match="too complex to be compiled"):
        try_grammar(Grammar("no JSON"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of CPU time")
def test_the_process_of_a_trial_is_ended_at_its_limit_of_time() -> None:
    program = "from refllm.tokenizer.grammar_trial import *; limit_resources(1)\nwhile True: pass"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode < 0


def test_without_the_library_the_error_has_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grammar_module, "LIBRARY", "a_package_that_is_not_there")
    with pytest.raises(LlmRuntimeError, match=r"pip install '\.\[grammar\]'"):
        matcher_of(Toy([b"a", b""]), json_grammar(dict(JSON_OBJECT)))
