"""The metadata of a trace: frozen dataclasses, and the JSON that a trace's file has of them.

`trace.schema.json` beside this file describes the JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from refllm.errors import LlmRuntimeError
from refllm.files.reading import parse_json_object

__all__ = ["METADATA_KEY", "VERSION", "Call", "Metadata", "Program", "RecordedDraw", "Text"]

VERSION = 1
"""The version of the schema. A reader refuses a larger one."""

METADATA_KEY = "refllm.trace"
"""The key of the JSON in a safetensors file's `__metadata__`."""

FORMAT = "refllm trace"
ARCHITECTURES = ("llama", "bert")
MAX_VALUES = 2**21  # of the JSON: a llama of 22 layers has 355 names in each call


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """The program that computed a trace, and the versions of the libraries that it used."""

    name: str
    version: str
    libraries: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """One sequence of tokens.

    Attributes:
        text: What was tokenized; None where the program was given token ids.
        token_ids: All tokens, drawn ones included.
        pieces: The vocabulary's spelling of each token; empty where the program does not have it.
        n_given: The number of tokens that were given; the tokens after them were drawn.
        n_prompt: How many of the first tokens are those of an embedding model's prompt, which it
            leaves out of pooling; 0 where they count.
    """

    text: str | None
    token_ids: tuple[int, ...]
    pieces: tuple[str, ...] = ()
    n_given: int
    n_prompt: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of the network.

    Attributes:
        text: The index of the sequence in `Metadata.texts`.
        first: The position of the call's first token in the sequence.
        n_tokens: The number of tokens that it computed.
        values: The names of the values that are recorded, in the order of computation. The second
            value of one name is "NAME#2".
    """

    text: int
    first: int
    n_tokens: int
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedDraw:
    """One draw of the sampler, as `refllm.sampling.Step`.

    Attributes:
        call: The index of the call whose last logits were drawn from.
        token_id: The token that was drawn.
        piece: The vocabulary's spelling of the token.
        u: The random number in [0, 1).
        n_vocab: The number of tokens that could be drawn.
        stages: The names of the stages, in the order in which they ran.
    """

    call: int
    token_id: int
    piece: str
    u: float
    n_vocab: int
    stages: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """All that a trace has besides its arrays.

    Attributes:
        program: What computed it.
        model: The model's name or path, as the program was given it.
        architecture: "llama" or "bert".
        hyperparameters: Those of `LlamaConfig` or `BertConfig`; empty in other programs' traces
            that do not have them.
        numerics: "exact" or "int8"; other programs name their own.
        numerics_revision: The revision of refllm's rule of numerics; None in other programs'.
        texts: The sequences.
        calls: The calls of the network, in the order of computation.
        only: The patterns of `record`, of which a value's name matches one; empty for all values.
        profile: The order of the sampling stages; None where nothing is sampled.
        seed: The seed of the random numbers; None where nothing is sampled.
        params: The interface's parameters by their names; empty where nothing is sampled.
        draws: The draws of the sampler.
    """

    program: Program
    model: str
    architecture: str
    numerics: str
    texts: tuple[Text, ...]
    calls: tuple[Call, ...]
    numerics_revision: int | None = None
    hyperparameters: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    only: tuple[str, ...] = ()
    profile: str | None = None
    seed: int | None = None
    params: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    draws: tuple[RecordedDraw, ...] = ()

    def to_json(self) -> str:
        """Return the JSON for the file."""
        fields = {
            name: dict(value) if isinstance(value, Mapping) else value
            for name in self.__slots__
            if (value := getattr(self, name)) is not None and name not in {"program", "calls"}
        }
        program = {"name": self.program.name, "version": self.program.version}
        value = {
            "format": FORMAT,
            "version": VERSION,
            "program": {**program, "libraries": dict(self.program.libraries)},
            **fields,
            "texts": [asdict(text) for text in self.texts],
            "calls": [asdict(call) for call in self.calls],
            "draws": [asdict(draw) for draw in self.draws],
        }
        return json.dumps(value, ensure_ascii=False)

    @staticmethod
    def from_json(text: str, *, path: Path) -> Metadata:
        """Return the metadata that a file's JSON has. Keys that this version lacks are ignored.

        Args:
            text: The JSON.
            path: The file, for error messages.

        Raises:
            LlmRuntimeError: With the file and the key, if the JSON is not as the schema has it, or
                of a newer version.
        """
        found = _Object(parse_json_object(text, path=path, max_values=MAX_VALUES), path, "")
        if found.text("format") != FORMAT:
            raise found.wrong("format", f"the text {FORMAT!r}")
        version = found.integer("version")
        if version > VERSION:
            raise LlmRuntimeError(
                f"{path}: the trace has version {version} of the schema, and this refllm reads "
                f"versions to {VERSION}",
                "to read it: update refllm",
            )
        program = found.object("program")
        if found.text("architecture") not in ARCHITECTURES:
            raise found.wrong("architecture", " or ".join(map(repr, ARCHITECTURES)))
        return Metadata(
            program=Program(
                name=program.text("name"),
                version=program.text("version"),
                libraries=_libraries(program),
            ),
            model=found.text("model"),
            architecture=found.text("architecture"),
            numerics=found.text("numerics"),
            numerics_revision=found.integer_or_none("numerics_revision"),
            hyperparameters=found.mapping_or_empty("hyperparameters"),
            texts=tuple(_text(each) for each in found.some_objects("texts")),
            calls=_calls(found),
            only=found.texts("only") if "only" in found.value else (),
            profile=found.text_or_none("profile"),
            seed=found.integer_or_none("seed"),
            params=found.mapping_or_empty("params"),
            draws=_draws(found) if "draws" in found.value else (),
        )


def _libraries(program: _Object) -> Mapping[str, str]:
    libraries = program.mapping_or_empty("libraries")
    if not all(isinstance(version, str) for version in libraries.values()):
        raise program.wrong("libraries", "an object of texts")
    return libraries


def _text(found: _Object) -> Text:
    token_ids = found.integers("token_ids")
    pieces = found.texts("pieces") if "pieces" in found.value else ()
    if pieces and len(pieces) != len(token_ids):
        raise found.wrong("pieces", f"one text for each of the {len(token_ids)} token_ids")
    n_given = found.integer("n_given")
    if n_given > len(token_ids):
        raise found.wrong("n_given", f"at most {len(token_ids)}, the number of token_ids")
    n_prompt = found.integer("n_prompt") if "n_prompt" in found.value else 0
    if n_prompt >= max(1, len(token_ids)):
        raise found.wrong("n_prompt", f"below {len(token_ids)}, the number of token_ids")
    return Text(
        text=found.text_or_none("text"),
        token_ids=token_ids,
        pieces=pieces,
        n_given=n_given,
        n_prompt=n_prompt,
    )


def _calls(found: _Object) -> tuple[Call, ...]:
    calls = []
    lengths = [len(text.integers("token_ids")) for text in found.objects("texts")]
    for each in found.some_objects("calls"):
        call = Call(
            text=each.integer("text"),
            first=each.integer("first"),
            n_tokens=each.integer("n_tokens"),
            values=each.texts("values"),
        )
        if call.text >= len(lengths):
            raise each.wrong("text", f"below {len(lengths)}, the number of texts")
        if call.n_tokens == 0 or call.first + call.n_tokens > lengths[call.text]:
            raise each.wrong(
                "n_tokens", f"from 1 to the end of the text of {lengths[call.text]} tokens"
            )
        if len(set(call.values)) < len(call.values):
            raise each.wrong("values", "a list of different names")
        calls.append(call)
    return tuple(calls)


def _draws(found: _Object) -> tuple[RecordedDraw, ...]:
    n_calls = len(found.objects("calls"))
    draws = []
    for each in found.objects("draws"):
        draw = RecordedDraw(
            call=each.integer("call"),
            token_id=each.integer("token_id"),
            piece=each.text("piece"),
            u=each.number("u"),
            n_vocab=each.integer("n_vocab"),
            stages=each.texts("stages"),
        )
        if draw.call >= n_calls:
            raise each.wrong("call", f"below {n_calls}, the number of calls")
        draws.append(draw)
    return tuple(draws)


@dataclass(frozen=True, slots=True)
class _Object:
    """A JSON object in a file's metadata, and where it is there, for error messages."""

    value: Mapping[str, Any]
    path: Path
    where: str

    def wrong(self, key: str, expected: str) -> LlmRuntimeError:
        got = f"is {self.value[key]!r:.80}" if key in self.value else "is missing"
        return LlmRuntimeError(
            f"{self.path}: key {self.where}{key} of the trace's metadata {got}; it must be "
            f"{expected}"
        )

    def text(self, key: str) -> str:
        value = self.value.get(key)
        if not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value

    def text_or_none(self, key: str) -> str | None:
        return None if self.value.get(key) is None else self.text(key)

    def integer(self, key: str) -> int:
        value = self.value.get(key)
        if not _is_natural(value):
            raise self.wrong(key, "a whole number of at least 0")
        assert isinstance(value, int)
        return value

    def integer_or_none(self, key: str) -> int | None:
        return None if self.value.get(key) is None else self.integer(key)

    def number(self, key: str) -> float:
        value = self.value.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.wrong(key, "a number")
        return float(value)

    def integers(self, key: str) -> tuple[int, ...]:
        value = self.value.get(key)
        if not isinstance(value, list) or not all(map(_is_natural, value)):
            raise self.wrong(key, "a list of whole numbers of at least 0")
        return tuple(value)

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.value.get(key)
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self.wrong(key, "a list of texts")
        return tuple(value)

    def mapping_or_empty(self, key: str) -> Mapping[str, Any]:
        value = self.value.get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return MappingProxyType(value)

    def object(self, key: str) -> _Object:
        value = self.value.get(key)
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return _Object(value, self.path, f"{self.where}{key}.")

    def objects(self, key: str) -> list[_Object]:
        value = self.value.get(key)
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            raise self.wrong(key, "a list of objects")
        return [
            _Object(each, self.path, f"{self.where}{key}[{i}].") for i, each in enumerate(value)
        ]

    def some_objects(self, key: str) -> list[_Object]:
        found = self.objects(key)
        if not found:
            raise self.wrong(key, "a list of at least one object")
        return found


def _is_natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
