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

from refllm.conform.case import Case
from refllm.conform.faults.mistaken_llama import Network, causal
from refllm.conform.faults.mistaken_writer import (
    Writer,
    can_be_drawn,
    is_drawn_for_greedy,
    is_of_another,
    would_write_otherwise,
    writes,
)
from refllm.conform.faults.mistakes_in_sampling import RULES
from refllm.conform.faults.of_logits import NETWORKS
from refllm.conform.faults.of_tokenizer import TOKENIZER_CAUSES
from refllm.conform.faults.symptom import Symptom

__all__ = ["WRITTEN_TEXT"]

LONG = 16  # tokens
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
        "chat template around the prompt",
        "A chat template is put around the prompt: infer and completions read the prompt as it is, "
        "with BOS and nothing else.",
        Writer(prompt_of="[INST] {} [/INST]".format),
    ),
    (
        "default repeat penalty",
        "A repeat penalty of 1.1 is applied, whatever the request says: take it from the request, "
        "and none where the protocol has none.",
        Writer(params={"repeat_penalty": 1.1, "repeat_penalty_last_n_token_count": 64}),
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


def _is_long_and_greedy(case: Case) -> bool:
    """Whether a text that passed would be another one if it were drawn."""
    params = case.input["params"]
    is_greedy = bool(params["temperature"] <= 0 or params["top_k"] == 1)
    return is_greedy and len(case.expected["token_ids"]) >= LONG


WRITTEN_TEXT: tuple[Symptom, ...] = (
    *(_written(*writer) for writer in WRITERS),
    Symptom(
        name="greedy text is drawn",
        cause="The text is drawn where it must be the most likely one: temperature 0 (or top_k 1) "
        "of the request is ignored. Take the options from the request, not defaults.",
        groups=frozenset({"text"}),
        evidence=is_drawn_for_greedy,
        would_fail=_is_long_and_greedy,
        is_slow=True,
    ),
    Symptom(
        name="text of another model",
        cause="The text is not one that the model writes after this prompt, drawn or not: another "
        "model answers, or reads another prompt, or is computed otherwise. The groups tokenizer "
        "and logits tell which.",
        groups=frozenset({"text"}),
        evidence=is_of_another,
        is_slow=True,
        is_vague=True,
    ),
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
