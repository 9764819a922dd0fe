"""Who writes a text with one mistake: would it have written this one?

A text is read once, prompt and all, by the mistaken network, and every token must be the one that
the sampler draws from the logits before it. That takes one reading for each mistake, and no
generating. A target that shows no tokens has its text tokenized again, which fails where a network
writes no words; such a text's beginning is generated.

T tokens of prompt and text, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from refllm.conform.case import Case, Json
from refllm.conform.compare.numbers import Doubles
from refllm.conform.faults.mistaken_llama import Network, logits
from refllm.conform.faults.mistaken_sampler import Rule, answer
from refllm.conform.faults.of_logits import tiny_chat_weights
from refllm.conform.faults.of_tokenizer import REPLACEMENT, tiny_chat_tokenizer
from refllm.sampling import uniform

__all__ = [
    "RIGHT",
    "Writer",
    "can_be_drawn",
    "is_drawn_for_greedy",
    "is_of_another",
    "would_write_otherwise",
    "writes",
]

Ids = tuple[int, ...]

SAME_WEIGHTS = frozenset({"tiny-chat", "tiny-chat-F32"})
# Longer texts take long, and say no more; those that passed are many, so only short ones are read.
MOST_TOKENS = 200
MOST_TOKENS_PASSED = 64
# So many tokens must be drawn again: fewer could be chance.
FEWEST_DRAWN = 4
# So much is generated after so short a prompt.
OPENING = 8
SHORT_PROMPT = 16
NO_PARAMS: Mapping[str, float] = {}
# Natural logarithms of probabilities: the mean over tokens that the network draws, and over those
# of another text (tokens of tiny-chat that are all alike are at -7.6); and by how much less likely
# than the best a token is that no rounding would take, of which a drawn text has some.
LIKELY = -2.0
UNLIKELY = -5.0
GAP = 0.1
FEWEST_OTHERS = 2
DRAWN_EVIDENCE = 0.3
KEPT = 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Writer:
    """How a text is written: tokenizer, network and sampler, each as it should be or mistaken.

    `tokenizer` are other values of `tokenizer.ggml.` keys; `network` makes the network from the
    number of the prompt's tokens. `prompt_of` is what becomes of the prompt before it is read, and
    `params` are parameters that take the place of the request's.
    """

    tokenizer: Mapping[str, bool] = field(default_factory=dict)
    network: Callable[[int], Network] | None = None
    rule: Rule = field(default_factory=Rule)
    penalizes_prompt: bool = True
    prompt_of: Callable[[str], str] = str
    params: Mapping[str, float] = field(default_factory=dict)

    def prompt(self, case: Case) -> Ids:
        """The prompt's tokens."""
        return _encoded(self.prompt_of(case.input["prompt"]), **self.tokenizer)

    def read(self, prompt: Ids, drawn: Ids) -> Doubles:
        """The logits that each of the drawn tokens was drawn from, [drawn, V]."""
        if self.network is None:
            return _read_rightly(prompt, drawn)
        return _read(self.network(len(prompt)), prompt, drawn)

    def draws(self, case: Case, prompt: Ids, before: Ids, row: Doubles) -> int | None:
        """The token after these, from its logits [V]."""
        previous = [*(prompt if self.penalizes_prompt else ()), *before]
        u = uniform(int(case.input["seed"]), len(before))
        question = _question(case, previous, row, u, self.params)
        answered = answer(question, self.rule)
        return None if answered is None else int(answered["token"])


RIGHT = Writer()


def writes(writer: Writer, case: Case, got: Json) -> float:
    """1 where the writer writes the target's text, and a right one does not, else 0."""
    if not _is_known(case) or "error" in got:
        return 0.0
    prompt, drawn = writer.prompt(case), _drawn(case, got)
    if prompt and list(drawn) != list(case.expected["token_ids"]):
        is_fit = len(drawn) >= FEWEST_DRAWN and len(prompt) + len(drawn) <= MOST_TOKENS
        if is_fit and _draws_again(writer, case, prompt, drawn):
            return float(not _draws_again(RIGHT, case, RIGHT.prompt(case), drawn))
    return float(_begins_so(writer, case, got))


def would_write_otherwise(writer: Writer, case: Case) -> bool:
    """Whether the writer would not have written the expected text; False for a long one."""
    prompt, drawn = writer.prompt(case), tuple(map(int, case.expected["token_ids"]))
    n_tokens = len(prompt) + len(drawn)
    is_fit = _is_known(case) and bool(prompt and drawn) and n_tokens <= MOST_TOKENS_PASSED
    return is_fit and case.expected["certified"] and not _draws_again(writer, case, prompt, drawn)


def can_be_drawn(case: Case, got: Json) -> float:
    """1 where the text is another, but random numbers could have drawn each token; else 0."""
    params = case.input["params"]
    is_drawn = params["temperature"] > 0 and params["top_k"] != 1 and params["max_tokens"] > 0
    if not is_drawn or not _is_known(case) or "error" in got:
        return 0.0
    prompt, drawn = RIGHT.prompt(case), _drawn(case, got)
    is_fit = len(drawn) >= FEWEST_DRAWN and len(prompt) + len(drawn) <= MOST_TOKENS
    if not is_fit or list(drawn) == list(case.expected["token_ids"]):
        return 0.0
    rows = RIGHT.read(prompt, drawn)
    steps = range(len(drawn))
    return float(all(drawn[i] in _candidates(case, prompt, drawn[:i], rows[i]) for i in steps))


def is_drawn_for_greedy(case: Case, got: Json) -> float:
    """Return more than 0 where a text is likely, but of tokens that are not the most likely ones.

    It is less than what a mistake that writes this very text gets.
    """
    params = case.input["params"]
    is_greedy = params["temperature"] <= 0 or params["top_k"] == 1
    gaps, likelihood = _read_again(case, got)
    is_drawn = is_greedy and likelihood > LIKELY and sum(gap > GAP for gap in gaps) >= FEWEST_OTHERS
    return DRAWN_EVIDENCE * is_drawn


def is_of_another(case: Case, got: Json) -> float:
    """Return 1 where the network would hardly ever draw this text, else 0."""
    gaps, likelihood = _read_again(case, got)
    return float(len(gaps) >= FEWEST_DRAWN and likelihood < UNLIKELY)


def _read_again(case: Case, got: Json) -> tuple[Sequence[float], float]:
    """By how much each drawn token is less likely than the best, and the mean log probability.

    Nothing and 0 of what cannot be read.
    """
    if not _is_known(case) or "error" in got or case.input["params"]["repeat_penalty"] != 1.0:
        return (), 0.0
    prompt, drawn = RIGHT.prompt(case), _drawn(case, got)
    if len(drawn) < FEWEST_DRAWN or len(prompt) + len(drawn) > MOST_TOKENS:
        return (), 0.0
    rows = RIGHT.read(prompt, drawn)  # [T, V]
    shifted = rows - rows.max(axis=1, keepdims=True)
    own = shifted[np.arange(len(drawn)), list(drawn)]  # [T], 0 for the most likely
    log_probabilities = own - np.log(np.exp(shifted).sum(axis=1))
    return (-own).tolist(), float(log_probabilities.mean())


def _is_known(case: Case) -> bool:
    return case.input["model"] in SAME_WEIGHTS


@lru_cache(KEPT)
def _encoded(text: str, **tokenizer: bool) -> Ids:
    return tuple(tiny_chat_tokenizer(**tokenizer).encode(text))


def _drawn(case: Case, got: Json) -> Ids:
    """The text's tokens, as the target says or as the tokenizer reads prompt and text."""
    if got.get("token_ids") is not None:
        return tuple(map(int, got["token_ids"]))
    prompt = _encoded(case.input["prompt"])
    whole = _encoded(case.input["prompt"] + got["text"])
    return whole[len(prompt) :] if whole[: len(prompt)] == prompt else ()


@lru_cache(KEPT)
def _read_rightly(prompt: Ids, drawn: Ids) -> Doubles:
    return _read(Network(), prompt, drawn)


def _read(network: Network, prompt: Ids, drawn: Ids) -> Doubles:
    with np.errstate(all="ignore"):
        rows = logits(tiny_chat_weights(), [*prompt, *drawn[:-1]], network)
    return rows[len(prompt) - 1 :, : tiny_chat_tokenizer().n_vocab]


def _draws_again(writer: Writer, case: Case, prompt: Ids, drawn: Ids) -> bool:
    """Whether the writer draws all of these tokens."""
    rows = writer.read(prompt, drawn)
    if not np.isfinite(rows).all():
        return False
    places = enumerate(zip(drawn, rows, strict=True))
    return all(writer.draws(case, prompt, drawn[:i], row) == token for i, (token, row) in places)


def _begins_so(writer: Writer, case: Case, got: Json) -> bool:
    """Whether the writer's first tokens are the target's text, of which no tokens are known."""
    prompt = writer.prompt(case)
    is_greedy = case.input["params"]["temperature"] <= 0
    is_fit = is_greedy and 0 < len(prompt) <= SHORT_PROMPT and writer.network is not None
    if not is_fit or got.get("token_ids") is not None or got["text"] == case.expected["text"]:
        return False
    drawn: Ids = ()
    opening = ""
    while len(drawn) < OPENING:
        row = writer.read(prompt, (*drawn, 0))[-1]
        token = writer.draws(case, prompt, drawn, row) if np.isfinite(row).all() else None
        if token is None or token in tiny_chat_tokenizer().eos_ids:
            return False
        drawn = (*drawn, token)
        opening = tiny_chat_tokenizer().decode_continuation(prompt, drawn).rstrip(REPLACEMENT)
        if not got["text"].startswith(opening):
            return False
    return not case.expected["text"].startswith(opening)


def _candidates(case: Case, prompt: Ids, before: Ids, row: Doubles) -> Sequence[int]:
    """What the next token can be."""
    answered = answer(_question(case, [*prompt, *before], row, 0.0), RIGHT.rule)
    return () if answered is None else answered["stages"][-1]["ids"]


def _question(
    case: Case,
    previous_tokens: Sequence[int],
    row: Doubles,
    u: float,
    params: Mapping[str, float] = NO_PARAMS,
) -> Json:
    return {
        "profile": "contract",
        "logits": row,
        "params": {**case.input["params"], **params},
        "previous_tokens": list(previous_tokens),
        "u": u,
    }
