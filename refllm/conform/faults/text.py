"""Faults of texts: seen in the text and its counts, or computed by writing the text with the fault.

What writes a text is the tokenizer, the network, its cache and the sampler. `faulty_writer` applies
the faults of each to a whole text. So a server that shows nothing but texts gets a cause inside.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from refllm.conform.case import Case, Json
from refllm.conform.faults.catalog import Faults
from refllm.conform.faults.faulty_llama import Network
from refllm.conform.faults.faulty_writer import (
    Writer,
    can_be_drawn,
    is_drawn_for_greedy,
    is_of_another,
    would_write_otherwise,
    writes,
)
from refllm.conform.faults.logits import LOGITS
from refllm.conform.faults.sampling import SAMPLING
from refllm.conform.faults.tokenizer import REPLACEMENT, TOKENIZER, without_special_tokens
from refllm.trace.faults.formulas import Mask, causal

__all__ = ["TEXT", "with_text"]

TEXT = Faults("text", TOKENIZER, SAMPLING)

CONTEXT = 512  # tokens, of tiny-chat
# A shorter text may be the beginning of another by chance.
MIN_CHARACTERS = 8
LONG = 16  # tokens


# --- Seen in the text and its counts -------------------------------------------------------------


def with_text(got: Json, text: str) -> Json:
    """Return the answer with another text, and without the tokens of the first."""
    return {**{key: got[key] for key in got if key != "token_ids"}, "text": text}


def _with_count(name: str) -> Callable[[Case, Json], Json]:
    """Return the repair of the count of that name."""
    return lambda case, got: {**got, "usage": {**got["usage"], name: case.expected["usage"][name]}}


def _text(name: str, cause: str, sees: Callable[[str, str], bool], **options: Any) -> None:
    """Add a fault that the expected and the found text show."""
    TEXT.seen(name, cause, **options)(lambda case, got: sees(case.expected["text"], got["text"]))


def _counts(usage: Json) -> tuple[int, int]:
    return int(usage["prompt_token_count"]), int(usage["generated_token_count"])


def _off(case: Case, got: Json) -> tuple[int, int]:
    """Return by how much the two counts are too large."""
    (prompt, generated), (p, g) = _counts(case.expected["usage"]), _counts(got["usage"])
    return p - prompt, g - generated


def _is_only_off_by(case: Case, got: Json, prompt: int, generated: int) -> bool:
    is_right = bool(case.expected["certified"]) and got["text"] == case.expected["text"]
    return is_right and _off(case, got) == (prompt, generated)


def _max_tokens(case: Case) -> int:
    return int(case.input["params"].get("max_tokens", 100))


def _ends_by_itself(case: Case) -> bool:
    return _counts(case.expected["usage"])[1] < _max_tokens(case)


def _fills_the_context(case: Case) -> bool:
    return sum(_counts(case.expected["usage"])) == CONTEXT + 1


def without_prompt(case: Case, got: Json) -> Json:
    """Return the answer without the prompt that its text begins with."""
    prompt = str(case.input.get("prompt") or case.expected["text_does_not_begin_with"])
    text = str(got["text"])
    if text.startswith(prompt):
        return with_text(got, text.removeprefix(prompt))
    return with_text(got, text.lstrip().removeprefix(prompt.lstrip()))


@TEXT.seen(
    "prompt echoed in text",
    "The text begins with the prompt: return only what was generated.",
    repair=without_prompt,
)
def _prompt_echoed(case: Case, got: Json) -> bool:
    """The text begins with the prompt, white space aside, and should not."""
    prompt, text, expected = case.input["prompt"], got["text"], case.expected["text"]
    is_echo = bool(prompt.strip()) and text.lstrip().startswith(prompt.lstrip())
    return is_echo and not expected.lstrip().startswith(prompt.lstrip())


TEXT.seen(
    "BOS not counted",
    "The prompt's count is one too small: BOS belongs to the prompt.",
    repair=_with_count("prompt_token_count"),
)(partial(_is_only_off_by, prompt=-1, generated=0))
TEXT.seen(
    "BOS counted twice",
    "The prompt's count is one too large: BOS is counted twice.",
    repair=_with_count("prompt_token_count"),
)(partial(_is_only_off_by, prompt=1, generated=0))


@TEXT.seen(
    "prompt count with generated",
    "The prompt's count has the generated tokens in it: count the prompt alone.",
    repair=_with_count("prompt_token_count"),
)
def _prompt_count_with_generated(case: Case, got: Json) -> bool:
    n_generated = case.expected["usage"]["generated_token_count"]
    return _off(case, got) == (n_generated, 0) != (0, 0)


TEXT.seen(
    "end token not counted",
    "The generated count lacks the end token: it was drawn, so count it.",
    repair=_with_count("generated_token_count"),
)(lambda case, got: _is_only_off_by(case, got, 0, -1) and _ends_by_itself(case))


@TEXT.seen(
    "special tokens kept in text",
    repair=lambda _case, got: with_text(got, without_special_tokens(str(got["text"]))),
)
def _special_tokens_kept(case: Case, got: Json) -> bool:
    """The text is right once what spells a special token is left out."""
    text, expected = got["text"], case.expected["text"]
    plain = without_special_tokens(text)
    return text not in (plain, expected) and plain.strip() == expected.strip()


@TEXT.seen("bytes not joined")
def _bytes_not_joined(case: Case, got: Json) -> bool:
    """A replacement character takes the place of one that is not ASCII."""
    text, expected = got["text"], case.expected["text"]
    place = text.find(REPLACEMENT)
    is_broken = 0 <= place < len(expected) and text[:place] == expected[:place]
    return is_broken and not expected[place].isascii() and REPLACEMENT not in expected


_text(
    "first space of the text lost",
    "The text lacks the space before its first word: it continues a prompt, so the space is part "
    "of it.",
    lambda expected, text: text != expected and text == expected.removeprefix(" "),
    repair=lambda _case, got: with_text(got, f" {got['text']}"),
)
_text(
    "text stripped",
    "White space at the ends of the text is lost: it was generated, so return it.",
    lambda expected, text: text != expected and text == expected.strip(),
)
_text(
    "space before the text",
    "A space stands before the text that no token wrote.",
    lambda expected, text: text == f" {expected}",
    repair=lambda _case, got: with_text(got, str(got["text"]).removeprefix(" ")),
)


@TEXT.seen("context overrun", "The text goes on where the context is full: stop there.")
def _context_overrun(case: Case, got: Json) -> bool:
    text, expected = got["text"], case.expected["text"]
    return _fills_the_context(case) and text != expected and text.startswith(expected)


@TEXT.seen("end token ignored", "The text goes on after the end token: stop there.")
def _end_token_ignored(case: Case, got: Json) -> bool:
    """The expected text ends by itself, and this one goes on."""
    if _fills_the_context(case) or not _ends_by_itself(case):
        return False
    drawn, right = got.get("token_ids"), list(case.expected["token_ids"])
    if drawn is not None:
        return list(drawn) != right == list(drawn[: len(right)])
    text, expected = got["text"], case.expected["text"]
    is_longer = len(without_special_tokens(text)) > len(expected) >= MIN_CHARACTERS
    return is_longer and text.startswith(expected)


@TEXT.seen("one token too many", "One token more than max_tokens is generated.")
def _one_token_too_many(case: Case, got: Json) -> bool:
    is_longer = got["text"].startswith(case.expected["text"]) and _off(case, got)[1] == 1
    return is_longer and not _ends_by_itself(case)


@TEXT.seen(
    "max_tokens ignored",
    "More tokens are generated than max_tokens allows: take it from the request, and not a "
    "default.",
)
def _max_tokens_ignored(case: Case, got: Json) -> bool:
    return _counts(got["usage"])[1] > _max_tokens(case) and not _one_token_too_many(case, got)


@TEXT.seen(
    "text ends too early",
    "The text ends before max_tokens and before the end token: take max_tokens from the request, "
    "not a default, and stop at nothing else.",
)
def _text_ends_too_early(case: Case, got: Json) -> bool:
    text, expected = got["text"], case.expected["text"]
    return 0 < len(text) < len(expected) and expected.startswith(text) and _off(case, got)[1] < -1


@TEXT.seen("one token too few", "One token less than max_tokens is generated.")
def _one_token_too_few(case: Case, got: Json) -> bool:
    is_shorter = case.expected["text"].startswith(got["text"]) and _off(case, got)[1] == -1
    return is_shorter and not _ends_by_itself(case)


TEXT.seen(
    "prompt cut",
    "The prompt's count is too small: a long prompt is cut, or read by another tokenizer. Refuse a "
    "prompt that does not fit the context, and read any other whole.",
)(lambda case, got: _off(case, got)[0] < -1 and len(case.input["prompt"]) > 0)
TEXT.seen("top-k 0 refused")(
    lambda case, got: "error" in got and case.input["params"].get("top_k") == 0
)
TEXT.seen(
    "empty prompt refused",
    "An empty prompt is refused: it is BOS alone where the tokenizer has one.",
)(lambda case, got: "error" in got and case.input["prompt"] == "")


# --- Computed by writing the text ----------------------------------------------------------------


def _written(name: str, cause: str, writer: Writer) -> None:
    TEXT.add(
        name,
        cause,
        partial(writes, writer),
        would_fail=partial(would_write_otherwise, writer),
        is_slow=True,
        wrong=writer,
    )


for _fault in SAMPLING:
    if _fault.wrong is not None and _fault.name != "profile ignored":
        _written(_fault.name, _fault.cause, Writer(rule=_fault.wrong))

_written(
    "penalty without the prompt",
    "The repeat penalty looks at generated tokens only: the prompt's belong to its window.",
    Writer(penalizes_prompt=False),
)
_written(
    "chat template around the prompt",
    "A chat template is put around the prompt: infer and completions read the prompt as it is, "
    "with BOS and nothing else.",
    Writer(prompt_of="[INST] {} [/INST]".format),
)
_written(
    "default repeat penalty",
    "A repeat penalty of 1.1 is applied, whatever the request says: take it from the request, and "
    "none where the protocol has none.",
    Writer(params={"repeat_penalty": 1.1, "repeat_penalty_last_n_token_count": 64}),
)
_written("BOS missing", "", Writer(tokenizer={"add_bos_token": False}))
_written("space before the first word missing", "", Writer(tokenizer={"add_space_prefix": False}))


def _unmasked_prompt(n_prompt: int) -> Network:
    """Return the network in which the prompt, read at once, is seen whole by each of its tokens.

    What is generated later comes one by one, so the prompt's tokens do not see it.
    """

    def mask(n_tokens: int, n_seen: int) -> Mask:
        visible = causal(n_tokens, n_seen)
        visible[:n_prompt, :n_prompt] = True
        return visible

    return Network(mask=mask)


for _fault in LOGITS:
    if _fault.name != "causal mask missing":
        _written(_fault.name, _fault.cause, Writer(network=_fault.wrong))
_written(
    "causal mask missing",
    LOGITS.named("causal mask missing").cause,
    Writer(network=_unmasked_prompt),
)


# Faults that only generated tokens show, because these come from the key/value cache one by one.


def _later(
    n_prompt: int, shift: int = 0, hides: Callable[[int], slice] = lambda _t: slice(0)
) -> Network:
    """Return a network whose generated tokens have other positions, or do not see some tokens."""

    def mask(n_tokens: int, n_seen: int) -> Mask:
        visible = causal(n_tokens, n_seen)
        for t in range(n_prompt, n_tokens):
            visible[t, hides(t)] = False
        return visible

    return Network(
        positions=lambda p: np.where(p >= n_prompt, np.maximum(p + shift, 0), p), mask=mask
    )


_written(
    "KV cache off by one",
    "A generated token takes the position before its own, and does not attend to itself: the "
    "key/value cache is off by one.",
    Writer(network=partial(_later, shift=-1, hides=lambda t: slice(t, t + 1))),
)
_written(
    "KV cache position one too small",
    "Generated tokens have positions that are one too small: the first one after a prompt of n "
    "tokens has position n.",
    Writer(network=partial(_later, shift=-1)),
)
_written(
    "KV cache position one too large",
    "Generated tokens have positions that are one too large: the first one after a prompt of n "
    "tokens has position n.",
    Writer(network=partial(_later, shift=1)),
)
_written(
    "KV cache lacks the newest token",
    "A generated token does not attend to itself: the key/value cache is off by one.",
    Writer(network=partial(_later, hides=lambda t: slice(t, t + 1))),
)
_written(
    "KV cache lacks the token before",
    "A generated token does not attend to the one before it: the key/value cache is off by one, "
    "so that the newest token overwrites it.",
    Writer(network=partial(_later, hides=lambda t: slice(t - 1, t))),
)
_written(
    "KV cache lacks the first token",
    "Generated tokens do not attend to the prompt's first token: the key/value cache is off by "
    "one.",
    Writer(network=partial(_later, hides=lambda _t: slice(0, 1))),
)
_written(
    "KV cache lacks the prompt",
    "Generated tokens attend only to themselves: what was read before is not kept.",
    Writer(network=partial(_later, hides=lambda t: slice(0, t))),
)


def _is_long_and_greedy(case: Case) -> bool:
    """Return whether a text that passed would be another one if it were drawn."""
    params = case.input["params"]
    is_greedy = bool(params["temperature"] <= 0 or params["top_k"] == 1)
    return is_greedy and len(case.expected["token_ids"]) >= LONG


TEXT.add(
    "greedy text is drawn",
    "The text is drawn where it must be the most likely one: temperature 0 (or top_k 1) of the "
    "request is ignored. Take the options from the request, not defaults.",
    is_drawn_for_greedy,
    would_fail=_is_long_and_greedy,
    is_slow=True,
)
TEXT.add(
    "text of another model",
    "The text is not one that the model writes after this prompt, drawn or not: another model "
    "answers, or reads another prompt, or is computed otherwise. The groups tokenizer and logits "
    "tell which.",
    is_of_another,
    is_slow=True,
    is_vague=True,
)
TEXT.add(
    "other random numbers",
    "Every token could have been drawn, but other ones should have been: the random numbers are "
    "not those of the seed. Draw i takes output i of SplitMix64; or say that the backend does not "
    "draw as refllm.",
    can_be_drawn,
    is_slow=True,
    is_vague=True,
)
