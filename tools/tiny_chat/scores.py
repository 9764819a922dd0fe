"""What tiny-chat is asked after it has learned, and how well it answers.

Questions are made from seeds that training did not use. Those of facts and moods, and the stories
whose beginnings are to be continued, were not in the training text; nor were the requests of
unseen.py.
"""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from refllm.api import InferencingParams
from refllm.generate import generate, generate_text
from refllm.llama import Segment
from refllm.models.load import LlamaModel
from tools.tiny_chat.corpus import asked_again, held_out, samples
from tools.tiny_chat.sample import Sample, prompt_of
from tools.tiny_chat.stories import keeps_to_its_own, lexicon
from tools.tiny_chat.unseen import LEXICONS, unseen, words_in

__all__ = ["ASKED", "PARAMETERS", "Answer", "Score", "questions_of_training", "scores"]

MAX_TOKENS = 200
CHATS = ("told-story", "fact", "sentiment", "arithmetic", "greeting", "joke", "code")
# The kinds that have so many questions that most are new. Of the others training had nearly all.
UNSEEN = ("fact", "sentiment")

# The least that the model card promises; the others are there to be known.
ASKED = {
    "sentiment label right": 0.95,
    "fact right": 0.90,
    "word of a story in the lexicon": 0.99,
    "chat ended within 200 tokens": 0.95,
    "unseen plain request answered in words of its kind": 0.95,
    "unseen chat request answered in words of its kind": 0.95,
    "median entropy of a story's next token": 0.8,
}
PARAMETERS = {
    "as Spin's defaults": InferencingParams(max_tokens=MAX_TOKENS),
    "most likely token": InferencingParams(
        max_tokens=MAX_TOKENS, temperature=0.0, repeat_penalty=1.0
    ),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """The prompt and the text after it, their tokens, and whether the model ended it by itself."""

    prompt: str
    text: str
    prompt_tokens: Sequence[int]
    tokens: Sequence[int]
    has_ended: bool


@dataclass(frozen=True, slots=True)
class Score:
    """A share of n, 0 … 1, or a number of nats that was measured at n tokens."""

    name: str
    value: float
    n: int
    unit: str = "share"

    def __str__(self) -> str:
        value = f"{self.value:.1%}" if self.unit == "share" else f"{self.value:.2f} {self.unit}"
        return f"{self.name}: {value} of {self.n}"


def questions_of_training(seed: int, n: int) -> frozenset[str]:
    """The questions, and the stories, of the first n samples that training saw."""
    return frozenset(sample.question or sample.answer for sample in islice(samples(seed), n))


def scores(
    model: LlamaModel,
    params: InferencingParams,
    *,
    n: int,
    seed: int,
    known: Collection[str],
) -> Iterator[Score]:
    """Each score, of n questions of each kind."""
    asked = {kind: held_out(kind, n, seed=seed, known=known) for kind in UNSEEN}
    asked |= {kind: asked_again(kind, n, seed=seed) for kind in CHATS if kind not in UNSEEN}
    answers = {
        kind: [
            answer_of(model, prompt_of(sample.question or "", system=sample.system), params, i)
            for i, sample in enumerate(asked[kind])
        ]
        for kind in CHATS
    }
    yield _right("sentiment label right", asked["sentiment"], answers["sentiment"])
    yield _right("fact right", asked["fact"], answers["fact"])
    yield _right("arithmetic right", asked["arithmetic"], answers["arithmetic"])
    begun = [_beginning(story.answer) for story in held_out("story", n, seed=seed, known=known)]
    told = answers["told-story"]
    plain = [answer_of(model, text, params, i) for i, text in enumerate(begun)]
    stories = [*(answer.text for answer in told), *(each.prompt + each.text for each in plain)]
    known_words = lexicon()
    spoken = [word for text in stories for word in re.findall(r"[a-z]+", text.lower())]
    yield _share("word of a story in the lexicon", [word in known_words for word in spoken])
    everything = [answer for kind in CHATS for answer in answers[kind]]
    yield _share("chat ended within 200 tokens", [answer.has_ended for answer in everything])
    yield _share("story with one hero and one thing", [keeps_to_its_own(s) for s in stories])
    yield from _of_unseen(model, params, n=n // len(CHATS), seed=seed)
    nats = [value for answer in (*told, *plain) for value in entropies(model, answer)]
    median = statistics.median(nats)
    yield Score("median entropy of a story's next token", median, len(nats), "nats")


def _of_unseen(
    model: LlamaModel, params: InferencingParams, *, n: int, seed: int
) -> Iterator[Score]:
    """Whether requests that training never had are answered, plainly and in chats: n of a kind."""
    requests = unseen(n, seed=seed)
    any_kind = frozenset(word for words in LEXICONS.values() for word in words)
    for form, asked in (("plain", [each.plainly() for each in requests]), ("chat", requests)):
        words = [
            words_in(answer_of(model, sample.prompt, params, i).text)
            for i, sample in enumerate(asked)
        ]
        pairs = list(zip(asked, words, strict=True))
        yield _share(
            f"unseen {form} request answered in known words",
            [bool(said) and any_kind.issuperset(said) for said in words],
        )
        yield _share(
            f"unseen {form} request answered in words of its kind",
            [bool(said) and LEXICONS[sample.kind].issuperset(said) for sample, said in pairs],
        )


def answer_of(model: LlamaModel, prompt: str, params: InferencingParams, seed: int) -> Answer:
    """What the model says after the prompt."""
    tokens = model.prompt_tokens(prompt)
    room = model.config.n_ctx - len(tokens)
    params = dataclasses.replace(params, max_tokens=min(params.max_tokens, room))
    end_tokens = model.tokenizer.eos_ids
    steps = generate(model.network, tokens, params, end_tokens=end_tokens, seed=seed)
    text, said = "", []
    for chunk in generate_text(steps, model.tokenizer, tokens):
        text += chunk.text
        if chunk.step is not None:
            said.append(chunk.step.token)
    return Answer(prompt, text, tokens, said, bool(said) and said[-1] in end_tokens)


def entropies(model: LlamaModel, answer: Answer) -> Sequence[float]:
    """The entropy of the distribution that each token was drawn from, at temperature 1, in nats."""
    network = model.network
    tokens = [*answer.prompt_tokens, *answer.tokens]
    logits = network.forward([Segment(tokens[:-1], network.new_cache())])[0].astype(np.float64)
    logits = logits[len(answer.prompt_tokens) - 1 :]  # [answer's tokens, V]
    logits -= logits.max(axis=1, keepdims=True)
    weights = np.exp(logits)
    total = weights.sum(axis=1)
    nats: Sequence[float] = (np.log(total) - (weights * logits).sum(axis=1) / total).tolist()
    return nats


def _beginning(story: str) -> str:
    """The first two sentences, which training did not have in this way."""
    return ". ".join(story.split(". ")[:2]) + "."


def _right(name: str, asked: Sequence[Sample], answers: Sequence[Answer]) -> Score:
    pairs = zip(asked, answers, strict=True)
    return _share(name, [sample.is_right(answer.text) for sample, answer in pairs])


def _share(name: str, are_right: Sequence[bool]) -> Score:
    return Score(name, sum(are_right) / len(are_right), len(are_right))
