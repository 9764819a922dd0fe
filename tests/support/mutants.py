"""Backends that are wrong in one place each: refllm, with a known fault applied to it.

A mutant is what another program's bug looks like from outside. The suite must fail each of them,
and `refllm.conform.faults` must name its fault. What the catalogue can compute is applied from
there: each part of a sampler, a network or an encoder has its place in refllm. What it recognizes
by an answer alone is made here.

T tokens, D model width, H heads, E head width, F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar, cast
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from refllm import llama, sampling
from refllm.api import InferencingParams, InferencingUsage, InvalidInput
from refllm.conform.case import Group
from refllm.conform.faults.embeddings import EMBEDDINGS
from refllm.conform.faults.faulty_bert import Encoder
from refllm.conform.faults.faulty_llama import Network
from refllm.conform.faults.faulty_sampler import Rule
from refllm.conform.faults.logits import LOGITS
from refllm.conform.faults.quant import QUANT, Decode
from refllm.conform.faults.sampling import SAMPLING
from refllm.generate import Chunk, Generation, generate_text
from refllm.interface import as_f32
from refllm.kernels.elementwise import rms_norm, rope_table
from refllm.kernels.kv_attention import Caches
from refllm.kernels.linear import Matrix
from refllm.kernels.packed.panels import pack
from refllm.llama import LlamaLayer, Segment
from refllm.models.load import BertModel, LlamaModel
from refllm.parameters import Parameters
from refllm.quant import FORMATS, Tensor
from refllm.rope import rope_frequencies
from refllm.sampling import Candidates, Penalties, Stage, Step
from refllm.tap import Tap
from refllm.tokenizer.base import TextStream, Tokenizer
from refllm.tokenizer.gguf_keys import GgufKeys, read_special_ids
from refllm.tokenizer.sentencepiece import SentencePieceTokenizer
from refllm.tokenizer.vocabulary import SpecialIds, VocabularyTokenizer
from refllm.trace.faults import formulas
from refllm.trace.faults.bert import mean

__all__ = ["MUTANTS", "Mutant", "applied"]

Changes = Mapping[str, Any]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]
F = TypeVar("F")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A wrong backend.

    `changes` are the replacements of functions, by the dotted name below `refllm.` where each is
    used. `groups` are those that are asked. `faults` are the names of the faults that the diagnosis
    may give, and no others. A mutant that `reloads` changes a model as it is loaded.
    """

    name: str
    groups: tuple[Group, ...]
    changes: Changes
    faults: frozenset[str]
    reloads: bool

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


MUTANTS: list[Mutant] = []


@contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """While refllm is this mutant. A model that was loaded before keeps what loading made."""
    with ExitStack() as stack:
        for place, replacement in mutant.changes.items():
            stack.enter_context(mock.patch(f"refllm.{place}", replacement))
        yield


def add(name: str, groups: str, changes: Changes, *faults: str, reloads: bool = False) -> None:
    MUTANTS.append(
        Mutant(
            name=name,
            groups=cast("tuple[Group, ...]", tuple(groups.split())),
            changes=changes,
            faults=frozenset(faults or (name,)),
            reloads=reloads,
        )
    )


def mutant(
    name: str, groups: str, place: str, *faults: str, reloads: bool = False
) -> Callable[[F], F]:
    """Decorate the function that takes the place of refllm's; its fault is named like the mutant
    where no others are given.
    """

    def register(function: F) -> F:
        add(name, groups, {place: function}, *faults, reloads=reloads)
        return function

    return register


# --- Texts, counts and requests ------------------------------------------------------------------

real_encode = VocabularyTokenizer.encode
real_flag = GgufKeys.flag
real_token_bytes = SentencePieceTokenizer.token_bytes
SENTENCEPIECE = "tokenizer.sentencepiece.SentencePieceTokenizer"


@mutant("prompt in the text", "text api", "engine.generate_text", "prompt echoed in text")
def text_with_prompt(
    steps: Iterator[Step], tokenizer: Tokenizer, prompt: Sequence[int]
) -> Iterator[Chunk]:
    yield Chunk(tokenizer.decode(prompt), None)
    yield from generate_text(steps, tokenizer, prompt)


@mutant("BOS not counted", "text api", "engine.InferencingUsage")
def usage_without_bos(prompt: int, generated: int) -> InferencingUsage:
    return InferencingUsage(prompt - 1, generated)


@mutant("prompt count with generated", "text", "engine.InferencingUsage")
def usage_with_generated(prompt: int, generated: int) -> InferencingUsage:
    return InferencingUsage(prompt + generated, generated)


@mutant("end token not counted", "text api", "engine.generate_text")
def text_with_uncounted_end(
    steps: Iterator[Step], tokenizer: Tokenizer, prompt: Sequence[int]
) -> Iterator[Chunk]:
    for chunk in generate_text(steps, tokenizer, prompt):
        is_end = chunk.step is not None and chunk.step.token in tokenizer.eos_ids
        yield Chunk(chunk.text, None if is_end else chunk.step)


@mutant("end token ignored", "text", "engine.Generation")
def generation_without_end(*args: Any, **options: Any) -> Generation:
    return Generation(*args, **{**options, "end_tokens": frozenset()})


@mutant("BOS missing", "tokenizer text", "tokenizer.sentencepiece.read_special_ids", reloads=True)
def special_ids_without_bos(*args: Any, **options: Any) -> SpecialIds:
    return replace(read_special_ids(*args, **options), prefix=())


@mutant("EOS added", "tokenizer", "tokenizer.sentencepiece.read_special_ids", reloads=True)
def special_ids_with_eos(*args: Any, **options: Any) -> SpecialIds:
    special = read_special_ids(*args, **options)
    return replace(special, suffix=tuple(sorted(special.eos_ids))[:1])


@mutant(
    "CLS and SEP missing",
    "tokenizer embeddings",
    "tokenizer.wordpiece.SpecialIds",
    "special tokens not added",
    "special tokens missing",
    reloads=True,
)
def no_special_tokens(bos_id: int, eos_ids: frozenset[int], **_: object) -> SpecialIds:
    return SpecialIds(bos_id, eos_ids)


@mutant(
    "space before the first word missing",
    "tokenizer",
    "tokenizer.gguf_keys.GgufKeys.flag",
    reloads=True,
)
def no_space_prefix(self: GgufKeys, key: str, *, default: bool) -> bool:
    return key != "add_space_prefix" and real_flag(self, key, default=default)


@mutant(
    "special tokens in text not read",
    "tokenizer",
    "tokenizer.vocabulary.VocabularyTokenizer.encode",
)
def encode_without_special(self: VocabularyTokenizer, text: str, **options: Any) -> list[int]:
    return real_encode(self, text, **{**options, "parse_special": False})


@mutant("special tokens kept in text", "tokenizer", f"{SENTENCEPIECE}.token_bytes")
def bytes_with_special_tokens(self: SentencePieceTokenizer, token_id: int) -> bytes:
    if self.vocabulary.is_special(token_id):
        return self.vocabulary.tokens[token_id].encode()
    return real_token_bytes(self, token_id)


@mutant("bytes not joined", "tokenizer", "tokenizer.base.TextStream.push")
def push_alone(self: TextStream, token_id: int) -> str:
    tokenizer: Tokenizer = self._tokenizer
    inside = tokenizer.token_bytes(token_id)
    written = inside if self._is_open else tokenizer.opening_bytes(token_id)
    self._is_open = self._is_open or bool(inside)
    return written.decode("utf-8", "replace")


add("first space kept", "tokenizer", {f"{SENTENCEPIECE}.opening_bytes": real_token_bytes})


@mutant("long prompt cut", "api", "models.load.LlamaModel.prompt_tokens", "long prompt accepted")
def cut_prompt(self: LlamaModel, prompt: str) -> list[int]:
    return self.tokenizer.encode(prompt)[: self.config.n_ctx]


@mutant("empty list refused", "embeddings api", "engine._check_texts")
def refuse_no_texts(texts: Sequence[str]) -> None:
    if not texts:
        raise InvalidInput("give at least one text")


@mutant("text cut elsewhere", "embeddings", "tokenizer.vocabulary.room_for_text")
def one_token_less(max_tokens: int, n_added: int) -> int:
    return max_tokens - n_added - 1


# --- The sampler ---------------------------------------------------------------------------------


def places_of(parts: Mapping[str, Callable[[Any], Changes]], wrong: Any) -> Changes:
    """The changes of refllm that do what the changed parts of a rule or a network do."""
    right = type(wrong)()
    changed = {f.name for f in fields(wrong)}
    changed = {name for name in changed if getattr(wrong, name) != getattr(right, name)}
    return {place: new for name in changed for place, new in parts[name](wrong).items()}


real_apply_penalty = sampling.apply_penalty
real_softmax = sampling.softmax
real_top_k = sampling.top_k


def penalty_by(rule: Rule) -> Changes:
    def apply_penalty(
        logits: Floats, previous_tokens: Sequence[int], *, penalty: float, last_n: int
    ) -> tuple[Doubles, Penalties]:
        window = list(rule.window(previous_tokens, last_n))
        n = max(len(window), min(last_n, 1))
        penalized, right = real_apply_penalty(logits, window, penalty=penalty, last_n=n)
        after = [
            rule.penalize(float(logit), as_f32(penalty), window.count(token))
            for token, logit in zip(right.ids.tolist(), right.before, strict=True)
        ]
        penalized[right.ids] = after
        return penalized, Penalties(right.ids, right.before, np.array(after))

    return {"sampling.apply_penalty": apply_penalty}


SAMPLER: Mapping[str, Callable[[Rule], Changes]] = {
    "order": lambda rule: {
        "sampling._temperature_first": (
            top_p_before_top_k if rule.order[-1] == "top_k" else sampling._temperature_last
        )
    },
    "as_float32": lambda rule: {"sampling.as_f32": rule.as_float32},
    "window": penalty_by,
    "penalize": penalty_by,
    "keep_k": lambda rule: {
        "sampling.top_k": lambda scores, k: real_top_k(scores, rule.keep_k(k, len(scores)))
    },
    "keep_p": lambda rule: {
        "sampling.top_p": lambda probabilities, p: rule.keep_p(probabilities, as_f32(p))
    },
    "draw": lambda rule: {"sampling.draw": lambda p, u: min(rule.draw(p, u), len(p) - 1)},
    "highest_on_greedy_ties": lambda _rule: {
        "sampling.argmax": lambda logits: len(logits) - 1 - int(np.argmax(logits[::-1]))
    },
}


def top_p_before_top_k(logits: Doubles, params: InferencingParams) -> tuple[Stage, ...]:
    probabilities = real_softmax(sampling.apply_temperature(logits, params.temperature))
    whole = Candidates(np.arange(len(logits)), probabilities)
    ids = real_top_k(probabilities, 0)
    ordered = Candidates(ids, probabilities[ids])
    nucleus = ordered.first(sampling.top_p(ordered.probabilities, params.top_p))
    likely = nucleus.first(params.top_k or len(nucleus))
    return Stage("softmax", whole), Stage("top_p", nucleus), Stage("top_k", likely)


for name in (
    *("temperature last", "top-p before top-k", "top-p without the crossing token"),
    *("penalty per occurrence", "penalty divides all", "penalty window one short"),
    *("penalty misses the newest token", "greedy ties to the highest id", "top-k 0 is greedy"),
    *("parameters not rounded", "draw not scaled"),
):
    add(name, "sampling", places_of(SAMPLER, SAMPLING.named(name).wrong))


@mutant("softmax overflows", "sampling", "sampling.softmax")
def overflowing_softmax(logits: Doubles) -> Doubles:
    with np.errstate(all="ignore"):
        powers = np.exp(logits)
        return np.asarray(powers / np.add.accumulate(powers)[-1])


@mutant(
    "parameters not checked",
    "sampling api",
    "api.InferencingParams.check",
    *("parameters not checked", "penalty not checked"),
)
def check_nothing(_params: InferencingParams) -> None:
    pass


@mutant("penalty without the prompt", "text", "generate.sample")
def sample_without_prompt(
    logits: Floats,
    params: InferencingParams,
    previous_tokens: Sequence[int],
    u: float,
    *,
    step: int,
    **options: Any,
) -> Step:
    drawn = previous_tokens[len(previous_tokens) - step :]
    return sampling.sample(logits, params, drawn, u, step=step, **options)


@mutant("other random numbers", "text", "generate.uniform")
def other_random_numbers(seed: int, step: int) -> float:
    return sampling.uniform((seed + 12345) % 2**64, step)


# --- Blocks --------------------------------------------------------------------------------------


def decoded_by(name: str, place: str, decode: Decode) -> Changes:
    """The format's decoder replaced, by one that can use the right one."""
    right = FORMATS[name]._decode_blocks

    def decode_blocks(blocks: Bytes, out: Floats) -> None:
        with mock.patch(f"refllm.{place}", staticmethod(right)):
            out[...] = decode(name, blocks).reshape(out.shape)

    return {place: staticmethod(decode_blocks)}


for format_name, module, faults in (
    ("Q4_0", "blocks", ("nibbles interleaved",)),
    ("Q8_0", "blocks", ("unsigned", "subnormal scale flushed")),
    ("Q4_K", "superblocks", ("minimum added", "6-bit scales without upper bits")),
):
    for fault in faults:
        decode = QUANT.named(f"{format_name} {fault}").wrong
        place = f"ggml.{module}.{format_name}._decode_blocks"
        add(f"{format_name} {fault}", "quant", decoded_by(format_name, place, decode))


# --- The llama -----------------------------------------------------------------------------------

real_feed_forward = llama._feed_forward
real_matrix = Parameters.matrix
real_positions = llama._positions
last_input: list[Floats] = []


def in_float32(formula: Callable[..., Any]) -> Callable[..., Floats]:
    """A formula in float64 with arguments and result in float32."""

    def widened(argument: Any) -> Any:
        return argument.astype(np.float64) if isinstance(argument, np.ndarray) else argument

    def compute(*args: Any, **named: Any) -> Floats:
        by_name = {name: widened(argument) for name, argument in named.items()}
        return np.ascontiguousarray(formula(*map(widened, args), **by_name), np.float32)

    return compute


def norm_by(n: Network) -> Changes:
    return {
        "llama.rms_norm": in_float32(
            lambda x, weight, eps: n.norm(x, weight, eps if n.eps is None else n.eps)
        )
    }


def gated_by(activate: Callable[[Doubles, Doubles], Doubles]) -> Changes:
    """Gate and up [T, F] made one by the function."""
    return {"llama.swiglu": in_float32(lambda gate_up: activate(*np.split(gate_up, 2, axis=1)))}


def turned_in_halves(x: Floats, table: Floats, n_heads: int) -> Floats:
    angles = np.arctan2(*table[::-1].astype(np.float64))[:, None]  # [T, 1, R/2]
    turned = formulas.rotate(x[:, :n_heads].astype(np.float64), angles, halves=True)
    return np.concatenate([turned.astype(np.float32), x[:, n_heads:]], axis=1)


def attention_by(n: Network) -> Changes:
    def attention(
        query: Floats, caches: Caches, n_visible: Ints, *, n_heads: int, layer: int = 0
    ) -> Floats:
        out = np.empty((len(query), n_heads, query.shape[2]), np.float32)
        for place, (keys, values) in zip(caches.descriptors, caches.buffers, strict=True):
            n_seen = place["n_before"] + place["n_new"]
            rows = slice(place["first"], place["first"] + place["n_new"])
            visible = np.arange(n_seen) < n_visible[rows, None]
            out[rows] = formulas.attention(
                query[rows, :n_heads].astype(np.float64),
                keys[layer, ..., :n_seen].transpose(2, 0, 1).astype(np.float64),
                values[layer, :, :n_seen].swapaxes(0, 1).astype(np.float64),
                visible if n.mask is None else n.mask(int(place["n_new"]), int(n_seen)),
                kv_head=n.kv_head,
            )
        return out

    return {"llama.attention": attention}


def transposed(n: Network) -> Changes:
    def matrix(self: Parameters, name: str, n_rows: int, n_columns: int) -> Matrix:
        if name.split(".")[-2] not in n.transposed:
            return real_matrix(self, name, n_rows, n_columns)
        self.asked.add(name)
        turned = np.ascontiguousarray(self.tensors[name].array().T)
        return pack(Tensor(name, FORMATS["F32"], turned.shape, turned.view(np.uint8)))

    return {"parameters.Parameters.matrix": matrix}


def remembering_rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    last_input[:] = [x]
    return rms_norm(x, weight, eps)


def feed_forward_without_residual(layer: LlamaLayer, h: Floats, show: Tap) -> Floats:
    return np.asarray(real_feed_forward(layer, h, show) - last_input[0])


LLAMA: Mapping[str, Callable[[Network], Changes]] = {
    "eps": norm_by,
    "norm": norm_by,
    "activation": lambda n: gated_by(lambda gate, up: n.activation(gate) * up),
    "renamed": lambda _n: gated_by(lambda gate, up: formulas.silu(up) * gate),
    "rope_swaps_layout": lambda _n: {"llama.apply_rope": turned_in_halves},
    "rope_base": lambda n: {
        "llama.rope_frequencies": lambda *, base, **options: rope_frequencies(
            base=n.rope_base or base, **options
        )
    },
    "scale": lambda n: {
        f"kernels.{module}.attention_scale": lambda head_dim: np.float32(n.scale(head_dim))
        for module in ("attention", "kv_attention")
    },
    "kv_head": attention_by,
    "mask": attention_by,
    "transposed": transposed,
    "adds_feed_forward": lambda _n: {
        "llama.rms_norm": remembering_rms_norm,
        "llama._feed_forward": feed_forward_without_residual,
    },
}

for name, groups in (
    ("RMSNorm epsilon 1e-06", "ops logits"),
    ("RMSNorm with mean subtracted", "ops logits"),
    ("scores not scaled", "ops logits embeddings"),
    ("GQA heads by modulo", "ops logits"),
    ("causal mask missing", "ops logits"),
    ("RoPE layout swapped", "ops logits"),
    ("RoPE base 500000", "ops logits"),
    ("GELU for SiLU", "ops logits"),
    ("ReLU for SiLU", "ops logits"),
    ("gate and up exchanged", "ops logits"),
    ("residual missing at feed-forward", "logits"),
    ("attn_output transposed", "ops logits"),
):
    reloads = name in ("RoPE base 500000", "attn_output transposed")
    add(name, groups, places_of(LLAMA, LOGITS.named(name).wrong), reloads=reloads)


@mutant("RoPE position one too large", "ops logits", "llama.rope_table")
def rope_one_further(positions: Ints, frequencies: Doubles, magnitude: float) -> Floats:
    return rope_table(positions + 1, frequencies, magnitude)


@mutant("KV cache off by one", "logits text", "llama._positions")
def positions_one_behind(segment: Segment) -> Ints:
    positions = real_positions(segment)
    return positions if segment.cache.length == 0 else positions - 1


# --- The BERT ------------------------------------------------------------------------------------

real_embed_groups = BertModel.embed_groups

ENCODER: Mapping[str, Callable[[Encoder], Changes]] = {
    "activation": lambda e: {"engine.gelu": in_float32(e.activation)},
    "eps": lambda e: {
        "bert.layer_norm": in_float32(
            lambda x, weight, bias, eps, *, residual=None: e.norm(
                x if residual is None else x + residual, weight, bias, e.eps or eps
            )
        )
    },
    "pool": lambda e: {
        "pooling.mean_rows": in_float32(
            lambda x: (e.pool or mean)(x[None], np.ones((1, len(x)), bool))[0]
        )
    },
    "normalize": lambda e: {"pooling.l2_normalize": in_float32(e.normalize)},
}

for name in ("tanh GELU", "CLS pooling", "embeddings not normalized", "LayerNorm epsilon 1e-05"):
    add(name, "ops embeddings", places_of(ENCODER, EMBEDDINGS.named(name).wrong))


@mutant("padded mean pooling", "embeddings", "models.load.BertModel.embed_groups")
def embed_padded(
    self: BertModel, texts: Sequence[Sequence[int]], **options: Any
) -> Iterator[Floats]:
    longest = max(map(len, texts), default=0)
    padded = [[*text, *[0] * (longest - len(text))] for text in texts]
    return real_embed_groups(self, padded, **options)
