"""Compare two traces: the first value that differs, what it looks like, and how it grows.

A value differs if it does not follow from its own inputs, as its trace has them, within what
another order of sums can change (`refllm.trace.near`). So a difference that a value only inherits
is not one of its own. Without the model's weights nothing can be computed, and a value differs if
the two traces are further apart than `MAX_SHARE`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from refllm.errors import InvalidInput
from refllm.sampling import Step
from refllm.trace.expected import Formulas, How, Inputs, layer_of
from refllm.trace.faults.bert import ENCODER_FAULTS, TRACED_FAULTS, Encoder
from refllm.trace.faults.formulas import Doubles, gelu_tanh
from refllm.trace.faults.llama import NETWORK_FAULTS, Network
from refllm.trace.metadata import Metadata, RecordedDraw, Text
from refllm.trace.near import Near, half_rounding
from refllm.trace.reader import Trace

__all__ = [
    "MAX_SHARE",
    "Cause",
    "Comparison",
    "DrawDifference",
    "Growth",
    "Setting",
    "TokenDifference",
    "ValueDifference",
    "compare",
]

MAX_SHARE = 1e-3
"""The root mean square of a difference over that of the value, where no bound can be computed."""

PADDING = frozenset(("[PAD]", "<pad>"))
MIN_SHARE = 0.8  # of a difference, for a fault that does not reproduce the value to rounding

Side = Literal["A", "B"]


@dataclass(frozen=True, slots=True)
class Setting:
    """What the two runs were asked to do differently."""

    name: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class TokenDifference:
    """The first given token that differs.

    Attributes:
        text: The index of the text.
        position: The place of the token in it.
        a: The token of A: its id and its spelling; "the end" after the last one.
        b: That of B.
        cause: What it looks like; "" where it looks like no known fault.
    """

    text: int
    position: int
    a: str
    b: str
    cause: str


@dataclass(frozen=True, slots=True)
class Cause:
    """What a difference looks like.

    Attributes:
        name: The fault's name in a few words.
        text: A sentence: what is computed otherwise, and what to do.
        share: How much of the difference it explains; 1 if it reproduces the value to rounding.
        kind: "fault", "numerics" for another rule of rounding, "weights" for another model.
    """

    name: str
    text: str
    share: float
    kind: Literal["fault", "numerics", "weights"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueDifference:
    """A value that does not follow from its inputs.

    Attributes:
        call: The call of the network.
        name: The value's name.
        layer: Its layer; −1 outside the layers.
        wrong: The trace whose value does not follow from its inputs; "AB" for both, "" where
            neither can be computed.
        index: The index, in the array, of the number that is furthest off.
        token: The position in the text of the token that it belongs to.
        a: The number in A; NaN where the shapes differ.
        b: The number in B.
        expected: What it must be, by the formula in float64; NaN where it cannot be computed.
        times: How many times its bound it is off; 0 where there is no bound.
        share: The root mean square of B − A over that of A.
        shapes: The shapes of both arrays, where they differ.
        causes: What it looks like, the likeliest first.
    """

    call: int
    name: str
    layer: int
    wrong: str
    index: tuple[int, ...]
    token: int
    a: float
    b: float
    expected: float
    times: float
    share: float
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    causes: tuple[Cause, ...] = ()


@dataclass(frozen=True, slots=True)
class Growth:
    """How far two values are apart.

    Attributes:
        call: The call of the network.
        name: The value's name.
        share: The root mean square of B − A over that of A.
    """

    call: int
    name: str
    share: float


@dataclass(frozen=True, slots=True)
class DrawDifference:
    """The first draw in which the sampler did something else.

    Attributes:
        draw: The number of the draw, from 0.
        stage: The first stage that left something else, or "token".
        a: What A has.
        b: What B has.
        is_own: Whether the logits before it agree, so that the difference is the sampler's.
    """

    draw: int
    stage: str
    a: str
    b: str
    is_own: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How two traces differ.

    Attributes:
        settings: What the runs were asked to do differently.
        tokens: The first given token that differs; then no value is compared.
        first: The first value that does not follow from its inputs.
        others: The further ones of the same call.
        draw: The first draw that differs.
        growth: How far apart the layers' outputs and the results are, in the order of computation.
        n_values: The number of values in both traces.
        n_equal: The number of values that are equal in every bit.
        n_alone: The number of values that one of the traces lacks.
        n_unbounded: The number of values that are not equal and could not be computed from their
            inputs.
        is_bounded: Whether the bounds were computed with the model's weights.
    """

    settings: tuple[Setting, ...]
    tokens: TokenDifference | None = None
    first: ValueDifference | None = None
    others: tuple[ValueDifference, ...] = ()
    draw: DrawDifference | None = None
    growth: tuple[Growth, ...] = ()
    n_values: int = 0
    n_equal: int = 0
    n_alone: int = 0
    n_unbounded: int = 0
    is_bounded: bool = True

    @property
    def is_different(self) -> bool:
        """Whether anything differs by more than rounding."""
        return self.tokens is not None or self.first is not None or self.draw is not None


def compare(
    a: Trace,
    b: Trace,
    *,
    formulas: Formulas | None,
    b_formulas: Formulas | None = None,
    names: tuple[str, str] | None = None,
) -> Comparison:
    """Return how B differs from A.

    Args:
        a: The trace to compare with.
        b: The other one.
        formulas: The network of A's model; None where its weights are not here.
        b_formulas: That of B's model, where it is another one.
        names: What A and B are called in errors; their paths by default.

    Raises:
        InvalidInput: If the traces have no value in common, are of networks of two kinds, or
            computed their texts in other calls.
        LlmRuntimeError: If an array cannot be read.
    """
    names = (str(a.path), str(b.path)) if names is None else names
    if a.metadata.architecture != b.metadata.architecture:
        raise InvalidInput(
            f"{names[0]} is of a {a.metadata.architecture} and {names[1]} of a "
            f"{b.metadata.architecture}; these networks have no steps in common"
        )
    settings = tuple(_settings(a.metadata, b.metadata))
    tokens = _tokens(a.metadata.texts, b.metadata.texts)
    if tokens is not None:
        return Comparison(settings=settings, tokens=tokens, is_bounded=formulas is not None)
    found: list[ValueDifference] = []
    growth: list[Growth] = []
    draw: DrawDifference | None = None
    n_values = n_equal = n_unbounded = 0
    n_common = min(len(a.metadata.calls), len(b.metadata.calls))
    n_alone = sum(len(call.values) for each in (a, b) for call in each.metadata.calls[n_common:])
    for call in range(n_common):
        _check_calls(a, b, call, names)
        inputs = Inputs(a, call), Inputs(b, call)
        if inputs[0].token_ids != inputs[1].token_ids:
            draw = draw or _drawn(a, b, call, is_own=not found)
            break
        # A model that pools the prompt, and another program, have no length of it.
        inputs[0].n_prompt = inputs[1].n_prompt = max(each.n_prompt for each in inputs)
        values_of_a = a.metadata.calls[call].values
        others = set(b.metadata.calls[call].values)
        n_alone += len(set(values_of_a) ^ others)
        for name in values_of_a:
            if name not in others:
                continue
            values = inputs[0].get(name), inputs[1].get(name)
            assert values[0] is not None
            assert values[1] is not None
            n_values += 1
            is_equal = np.array_equal(values[0].ravel(), values[1].ravel(), equal_nan=True)
            is_equal = is_equal and _is_alike(values[0], values[1])
            n_equal += is_equal
            if layer_of(name)[0] in {"l_out", "result_output", "result_embd"}:
                growth.append(Growth(call, name, _share(values[0], values[1])))
            if not is_equal and (not found or found[0].call == call):
                one, is_bounded = _value(name, (values[0], values[1]), inputs, (a, b), formulas)
                n_unbounded += not is_bounded
                if one is not None and not found:
                    one = _with_causes(one, inputs, (a, b), formulas, b_formulas)
                found += [] if one is None else [one]
        if draw is None:
            draw = _draws(a, b, call, is_own=not found)
    if n_values == 0:
        raise InvalidInput(
            f"{names[0]} and {names[1]} have no value in common; the names are those of llama.cpp, "
            "such as attn_norm-0"
        )
    return Comparison(
        settings=settings,
        first=found[0] if found else None,
        others=tuple(found[1:]),
        draw=draw,
        growth=tuple(growth),
        n_values=n_values,
        n_equal=n_equal,
        n_alone=n_alone,
        n_unbounded=n_unbounded,
        is_bounded=formulas is not None,
    )


# --- What the runs were asked --------------------------------------------------------------------


def _settings(a: Metadata, b: Metadata) -> Iterator[Setting]:
    def both(name: str, left: object, right: object) -> Iterator[Setting]:
        if left != right and left is not None and right is not None:
            yield Setting(name, str(left), str(right))

    program = [f"{each.program.name} {each.program.version}" for each in (a, b)]
    yield from both("program", *program)
    yield from both("model", a.model, b.model)
    yield from both("numerics", a.numerics, b.numerics)
    yield from both("profile", a.profile, b.profile)
    yield from both("seed", a.seed, b.seed)
    for name in a.params:
        yield from both(name, a.params[name], b.params.get(name))
    for name in sorted(a.hyperparameters):
        yield from both(name, a.hyperparameters[name], b.hyperparameters.get(name))


def _check_calls(a: Trace, b: Trace, call: int, names: tuple[str, str]) -> None:
    spans = [
        (each.text, each.first, each.n_tokens)
        for each in (a.metadata.calls[call], b.metadata.calls[call])
    ]
    if spans[0] != spans[1]:
        (text, first, n), (other_text, other_first, other_n) = spans
        raise InvalidInput(
            f"call {call} of {names[0]} computes {n} tokens from position {first} of text {text}, "
            f"that of {names[1]} {other_n} from position {other_first} of text {other_text}",
            "to compare them: compute the same tokens in each call, or give the model instead of "
            "its trace, which then runs with the calls of the other trace",
        )


# --- Tokens --------------------------------------------------------------------------------------


def _tokens(a: Sequence[Text], b: Sequence[Text]) -> TokenDifference | None:
    """Return the first given token that differs."""
    for i, (left, right) in enumerate(zip(a, b, strict=False)):
        ids = [list(each.token_ids[: each.n_given]) for each in (left, right)]
        if ids[0] != ids[1]:
            pairs = enumerate(zip(*ids, strict=False))
            place = next((n for n, (x, y) in pairs if x != y), min(map(len, ids)))
            cause = _token_cause(left, right, ids, place)
            shown = [
                _spelled(each, place) if place < each.n_given else "the end"
                for each in (left, right)
            ]
            return TokenDifference(i, place, shown[0], shown[1], cause)
    if len(a) != len(b):
        n = min(len(a), len(b))
        return TokenDifference(n, 0, f"{len(a)} texts", f"{len(b)} texts", "")
    return None


def _spelled(text: Text, place: int) -> str:
    if place >= len(text.token_ids):
        return "the end"
    piece = f" {text.pieces[place]!r}" if text.pieces else ""
    return f"{text.token_ids[place]}{piece}"


def _token_cause(left: Text, right: Text, ids: Sequence[list[int]], place: int) -> str:
    """Return what differing tokens look like, "" for no known fault."""
    a, b = ids
    n_common = min(len(a), len(b))
    longer = left if len(a) > len(b) else right
    rest = longer.pieces[n_common : longer.n_given]
    if a[:n_common] == b[:n_common] and rest and PADDING.issuperset(rest):
        return (
            "One trace has padding behind the text: leave it out, unless both runs compute it, as "
            "the profile spin-local does."
        )
    if b == a[1:]:
        return (
            "The first token is missing: the tokenizer adds BOS, or [CLS], before a text "
            "(add_bos_token)."
        )
    if b == [a[0], *a] or a == b[1:]:
        return (
            "There is a token more at the beginning: BOS is added once, by the tokenizer or by a "
            "chat template, not by both."
        )
    if b == a[:-1]:
        return "The last token is missing: the tokenizer adds [SEP] after a text."
    if a == b[:-1]:
        return "There is a token more at the end: a text to continue ends without an end token."
    if b == a[1:-1]:
        return "The special tokens around the text are missing: add them ([CLS] and [SEP])."
    if len(b) < len(a) and b == a[: len(b)]:
        return "The text is cut: compare the limits of tokens."
    if left.pieces and right.pieces:
        x, y = ("".join(each.pieces[place : each.n_given]) for each in (left, right))
        for space in ("▁", "Ġ", " "):
            if x.lstrip(space) == y.lstrip(space) and x != y:
                return (
                    "The space before the first word differs: the vocabulary adds one "
                    "(add_space_prefix)."
                )
        if x == y:
            return (
                "The same text is in other tokens: compare the merges or the scores of the "
                "tokenizer, and its pre-tokenizer."
            )
        if x.lower() == y.lower():
            return (
                "Upper and lower case differ: compare the tokenizer's normalizer (do_lower_case)."
            )
    return ""


# --- Values --------------------------------------------------------------------------------------


def _is_alike(a: Doubles, b: Doubles) -> bool:
    """Return whether two arrays have the same rows, though other axes before them."""
    return a.size == b.size and a.shape[-1] == b.shape[-1]


def _share(a: Doubles, b: Doubles) -> float:
    """Return the root mean square of b − a over that of a."""
    if not _is_alike(a, b):
        return float("inf")
    with np.errstate(all="ignore"):
        size = float(np.sqrt(np.mean(a**2)))
        apart = float(np.sqrt(np.mean((b.reshape(a.shape) - a) ** 2)))
    if apart == 0.0:
        return 0.0
    return apart / size if size > 0 and np.isfinite(apart) else float("inf")


def _right(trace: Trace, like: Metadata) -> How:
    """Return how a trace's values are to be computed: by the numerics and the profile of A."""
    products = "int8" if like.numerics == "int8" else "exact"
    spin = like.architecture == "bert" and like.profile == "spin-local"
    encoder = Encoder(activation=gelu_tanh) if spin else Encoder()
    return How(products=products, encoder=encoder, is_mean=spin)


def _value(
    name: str,
    values: tuple[Doubles, Doubles],
    inputs: tuple[Inputs, Inputs],
    traces: tuple[Trace, Trace],
    formulas: Formulas | None,
) -> tuple[ValueDifference | None, bool]:
    """Return the difference of a value, None where rounding or its inputs explain it.

    The second is whether the value could be computed from its inputs.
    """
    a, b = values
    layer = layer_of(name)[1]
    call, share = inputs[0].call, _share(a, b)
    first = ValueDifference(
        call=call,
        name=name,
        layer=layer,
        wrong="",
        index=(),
        token=inputs[0].first,
        a=float("nan"),
        b=float("nan"),
        expected=float("nan"),
        times=0.0,
        share=share,
    )
    if not _is_alike(a, b):
        return replace(first, shapes=(a.shape, b.shape)), False
    b = b.reshape(a.shape)
    nears = [
        None if formulas is None else _expected(formulas, each, name, _right(t, traces[0].metadata))
        for each, t in zip(inputs, traces, strict=True)
    ]
    if any(near is None or near.value.size != a.size for near in nears):
        if share <= MAX_SHARE:
            return None, False
        with np.errstate(all="ignore"):
            off = np.where(np.isfinite(b - a), np.abs(b - a), np.inf)
        return _placed(first, off, a, b, None, inputs[0]), False
    shaped = [near.map(lambda array: array.reshape(a.shape)) for near in nears if near is not None]
    wrong = "".join(
        side
        for side, near, found in zip("AB", shaped, (a, b), strict=True)
        if not near.admits(found)
    )
    if not wrong:
        return None, True
    side = 1 if "B" in wrong else 0
    off = shaped[side].distances((a, b)[side])
    placed = _placed(first, off, a, b, shaped[side], inputs[0])
    return replace(placed, wrong=wrong, times=float(off.max())), True


def _expected(formulas: Formulas, inputs: Inputs, name: str, how: How) -> Near | None:
    """Return what a value must be, within the rounding to the type that it is stored as, too."""
    try:
        near = formulas.expected(inputs, name, how)
    except (ValueError, IndexError):  # arrays of shapes that the formulas do not have
        return None
    if near is None or not inputs.is_half(name):
        return near
    return Near(near.value, near.bound + half_rounding(near.value))


def _placed(
    difference: ValueDifference, off: Doubles, a: Doubles, b: Doubles, near: Near | None, at: Inputs
) -> ValueDifference:
    """Return the difference with the number that is furthest off."""
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(off)), off.shape))
    axis = 1 if difference.name.startswith("kq_soft_max") else 0
    token = index[axis] if len(index) > axis and a.shape[axis] == at.n_tokens else 0
    return replace(
        difference,
        index=index,
        token=at.first + token,
        a=float(a[index]),
        b=float(b[index]),
        expected=float("nan") if near is None else float(near.value[index]),
    )


# --- Causes --------------------------------------------------------------------------------------

NUMERICS: Mapping[str, tuple[How, str]] = {
    "products of int8": (
        How(products="int8"),
        "Activations are quantized before products with quantized weights, as llama.cpp does: "
        "compare with MODEL@int8.",
    ),
    "products of floats": (
        How(products="exact"),
        "Activations are multiplied as floats, and in the other trace as integers: compare with "
        "MODEL@exact.",
    ),
    "products of float16": (
        How(products="float16"),
        "Activations are rounded to float16 before products: take a model of F32, or compute in "
        "float32.",
    ),
    "products of bfloat16": (
        How(products="bfloat16"),
        "Activations are rounded to bfloat16 before products: compute in float32.",
    ),
    "cache of float16": (
        How(rounds_cache=True),
        "Keys and values are stored as float16: choose a key/value cache of float32.",
    ),
}
"""Other rules of numerics, which are no faults."""

POSITIONS: Mapping[str, tuple[Callable[[NDArray[np.int64]], NDArray[np.int64]], str]] = {
    "position one too large": (
        lambda positions: positions + 1,
        "RoPE turns by a position that is one too large: the first token has position 0, the next "
        "one after n tokens position n.",
    ),
    "position one too small": (
        lambda positions: np.maximum(positions - 1, 0),
        "RoPE turns by a position that is one too small: the first token after a prompt of n "
        "tokens has position n; the key/value cache is off by one.",
    ),
    "position begins again": (
        lambda positions: positions - positions[0],
        "RoPE begins with position 0 in each call: add the number of tokens in the key/value "
        "cache.",
    ),
}


def _with_causes(
    found: ValueDifference,
    inputs: tuple[Inputs, Inputs],
    traces: tuple[Trace, Trace],
    formulas: Formulas | None,
    b_formulas: Formulas | None,
) -> ValueDifference:
    """Return the difference with what it looks like: each known fault computes the value."""
    if formulas is None or found.shapes is not None:
        return found
    side = 1 if "B" in found.wrong else 0
    value = inputs[side].get(found.name)
    right = _right(traces[side], traces[0].metadata)
    must = _expected(formulas, inputs[side], found.name, right)
    if value is None or must is None or must.value.size != value.size:
        return found
    value = value.reshape(must.value.shape)
    causes: list[Cause] = []

    def add(
        kind: Literal["fault", "numerics", "weights"], name: str, text: str, near: Near
    ) -> None:
        if near.value.shape != value.shape or must.admits(near.value):
            return  # it changes nothing here
        with np.errstate(all="ignore"):
            size = float(np.sqrt(np.mean((value - must.value) ** 2)))
            rest = float(np.sqrt(np.mean((value - near.value) ** 2)))
        share = 1.0 - rest / size if size > 0 else 0.0
        if np.isfinite(share) and share >= MIN_SHARE:
            causes.append(Cause(name, text, 1.0 if near.admits(value) else share, kind))

    for kind, name, text, how in _hypotheses(right, traces[0].metadata.architecture):
        near = _expected(formulas, inputs[side], found.name, how)
        if near is not None:
            add(kind, name, text, near)
    if side == 1 and b_formulas is not None:
        near = _expected(b_formulas, inputs[1], found.name, right)
        if near is not None:
            text = f"The value follows from the weights of {traces[1].metadata.model}."
            add("weights", "other weights", text, near)
    # What reproduces the value to rounding is before what explains most of it; else the
    # catalogue's order.
    causes.sort(key=lambda cause: -cause.share if cause.share < 1 else -1.0)
    return replace(found, causes=tuple(causes))


def _hypotheses(
    right: How, architecture: str
) -> Iterator[tuple[Literal["fault", "numerics"], str, str, How]]:
    for name, (how, text) in NUMERICS.items():
        if how.products != right.products or how.rounds_cache:
            products = right.products if how.rounds_cache else how.products
            yield (
                "numerics",
                name,
                text,
                replace(right, products=products, rounds_cache=how.rounds_cache),
            )
    if architecture == "bert":
        for encoder_fault in (*TRACED_FAULTS, *ENCODER_FAULTS):
            how = replace(right, encoder=encoder_fault.encoder)
            yield "fault", encoder_fault.name, encoder_fault.cause, how
        return
    for network_fault in NETWORK_FAULTS:
        how = replace(right, network=network_fault.network)
        yield "fault", network_fault.name, network_fault.cause, how
    yield (
        "fault",
        "RoPE layout of GGUF",
        "RoPE turns the pairs (2i, 2i + 1) of a head where the file's rows are in the order for "
        "(i, i + R/2): Hugging Face's files have halves for pairs, GGUF's llama has neighbors.",
        replace(right, turns_neighbors_of_halves=True),
    )
    for name, (positions, text) in POSITIONS.items():
        yield "fault", name, text, replace(right, network=Network(positions=positions))


# --- Draws ---------------------------------------------------------------------------------------


def _draws(a: Trace, b: Trace, call: int, *, is_own: bool) -> DrawDifference | None:
    """Return how the draw after a call differs; None without one in both traces."""
    numbers = [
        next((i for i, draw in enumerate(each.metadata.draws) if draw.call == call), None)
        for each in (a, b)
    ]
    if numbers[0] is None or numbers[1] is None:
        return None
    draw = numbers[0]
    left, right = a.metadata.draws[draw], b.metadata.draws[numbers[1]]

    def differs(stage: str, describe: Callable[[RecordedDraw, Step], str]) -> DrawDifference:
        shown = (describe(each, step) for each, step in zip((left, right), steps, strict=True))
        return DrawDifference(draw, stage, next(shown), next(shown), is_own)

    steps = a.step(draw), b.step(numbers[1])
    if is_own and left.stages != right.stages:
        return differs("stages", lambda each, _step: " → ".join(each.stages))
    if is_own:
        for i, stage in enumerate(left.stages):
            ids = [sorted(step.stages[i].candidates.ids) for step in steps]
            if ids[0] != ids[1]:
                shown = [_counted(step, stage) for step in steps]
                return DrawDifference(draw, stage, shown[0], shown[1], is_own)
    if left.token_id != right.token_id:
        return differs(
            "token", lambda each, _s: f"{each.token_id} {each.piece!r}, u = {each.u:.6f}"
        )
    return None


def _drawn(a: Trace, b: Trace, call: int, *, is_own: bool) -> DrawDifference:
    """Return the difference of the tokens of a call that were drawn."""
    texts = [each.metadata.texts[each.metadata.calls[call].text] for each in (a, b)]
    ids = [text.token_ids for text in texts]
    place = next(i for i, (x, y) in enumerate(zip(*ids, strict=False)) if x != y)
    shown = [_spelled(text, place) for text in texts]
    return DrawDifference(place - texts[0].n_given, "token", shown[0], shown[1], is_own)


def _counted(step: Step, stage: str) -> str:
    return f"{step.counts[stage]} candidates"
