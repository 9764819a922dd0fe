"""Mistakes in how a text was written: in the tokenizer, the network, its cache, or the sampler.

Each is put to the text by `mistaken_writer`. So a server that shows nothing but texts can be told
what is wrong inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from refllm.conform.symptoms.mistaken_llama import Network, causal
from refllm.conform.symptoms.mistaken_writer import (
    Writer,
    can_be_drawn,
    would_write_otherwise,
    writes,
)
from refllm.conform.symptoms.mistakes_in_sampling import RULES
from refllm.conform.symptoms.of_logits import NETWORKS
from refllm.conform.symptoms.of_tokenizer import TOKENIZER_CAUSES
from refllm.conform.symptoms.symptom import Symptom

__all__ = ["WRITTEN_TEXT"]

# Of a prompt that is read at once, and then continued token by token.
OF_A_PROMPT = {"causal mask missing"}


def _later_positions(n_prompt: int, shift: int) -> Network:
    """Generated tokens turned as if they stood elsewhere."""
    return Network(positions=lambda p: np.where(p >= n_prompt, np.maximum(p + shift, 0), p))


def _hidden_from_later(n_prompt: int, hidden: Callable[[int], slice]) -> Network:
    """Generated tokens that do not see some of the tokens before them."""

    def mask(n_tokens: int) -> NDArray[np.bool_]:
        visible = causal(n_tokens)
        for t in range(n_prompt, n_tokens):
            visible[t, hidden(t)] = False
        return visible

    return Network(mask=mask)


def _one_behind(n_prompt: int) -> Network:
    """Generated tokens that take the position, and see the tokens, of the one before them."""
    hidden = _hidden_from_later(n_prompt, lambda t: slice(t, t + 1))
    return replace(_later_positions(n_prompt, -1), mask=hidden.mask)


def _unmasked_prompt(n_prompt: int) -> Network:
    """The prompt's tokens see all of it; what is generated later they cannot see."""

    def mask(n_tokens: int) -> NDArray[np.bool_]:
        visible = causal(n_tokens)
        visible[:n_prompt, :n_prompt] = True
        return visible

    return Network(mask=mask)


# Mistakes that only generated tokens show, because they come from the key/value cache one by one.
CACHES: tuple[tuple[str, str, Callable[[int], Network]], ...] = (
    (
        "KV cache off by one",
        "A generated token takes the position before its own, and does not attend to itself: the "
        "key/value cache is off by one.",
        _one_behind,
    ),
    (
        "KV cache position one too small",
        "Generated tokens have positions that are one too small: the first one after a prompt of n "
        "tokens has position n.",
        partial(_later_positions, shift=-1),
    ),
    (
        "KV cache position one too large",
        "Generated tokens have positions that are one too large: the first one after a prompt of n "
        "tokens has position n.",
        partial(_later_positions, shift=1),
    ),
    (
        "KV cache lacks the newest token",
        "A generated token does not attend to itself: the key/value cache is off by one.",
        partial(_hidden_from_later, hidden=lambda t: slice(t, t + 1)),
    ),
    (
        "KV cache lacks the token before",
        "A generated token does not attend to the one before it: the key/value cache is off by "
        "one, so that the newest token overwrites it.",
        partial(_hidden_from_later, hidden=lambda t: slice(t - 1, t)),
    ),
    (
        "KV cache lacks the first token",
        "Generated tokens do not attend to the prompt's first token: the key/value cache is off "
        "by one.",
        partial(_hidden_from_later, hidden=lambda _t: slice(0, 1)),
    ),
    (
        "KV cache lacks the prompt",
        "Generated tokens attend only to themselves: what was read before is not kept.",
        partial(_hidden_from_later, hidden=lambda t: slice(0, t)),
    ),
)


def _whatever_the_prompt(network: Network) -> Callable[[int], Network]:
    return lambda _n_prompt: network


def _written(name: str, cause: str, writer: Writer) -> Symptom:
    return Symptom(
        name=name,
        cause=cause,
        groups=frozenset({"text"}),
        evidence=partial(writes, writer),
        would_fail=partial(would_write_otherwise, writer),
        is_slow=True,
    )


WRITERS: tuple[tuple[str, str, Writer], ...] = (
    *((name, cause, Writer(rule=rule)) for name, cause, rule in RULES if name != "profile ignored"),
    (
        "penalty without the prompt",
        "The repeat penalty looks at generated tokens only: the prompt's belong to its window.",
        Writer(penalizes_prompt=False),
    ),
    (
        "BOS missing",
        TOKENIZER_CAUSES["BOS missing"],
        Writer(tokenizer={"add_bos_token": False}),
    ),
    (
        "space before the first word missing",
        TOKENIZER_CAUSES["space before the first word missing"],
        Writer(tokenizer={"add_space_prefix": False}),
    ),
    *(
        (name, cause, Writer(network=_whatever_the_prompt(network)))
        for name, cause, network in NETWORKS
        if name not in OF_A_PROMPT
    ),
    *(
        (name, cause, Writer(network=_unmasked_prompt))
        for name, cause, _ in NETWORKS
        if name in OF_A_PROMPT
    ),
    *((name, cause, Writer(network=network)) for name, cause, network in CACHES),
)
WRITTEN_TEXT: tuple[Symptom, ...] = (
    *(_written(*writer) for writer in WRITERS),
    Symptom(
        name="other random numbers",
        cause="Every token could have been drawn, but other ones should have been: the random "
        "numbers are not those of the seed. Draw i takes output i of SplitMix64; or say that the "
        "backend does not draw as refllm.",
        groups=frozenset({"text"}),
        evidence=can_be_drawn,
        is_slow=True,
        is_vague=True,
    ),
)
