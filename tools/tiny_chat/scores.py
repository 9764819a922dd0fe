"""What tiny-chat is asked after it has learned, and how well it answers.

Questions are made from seeds that training did not use. Those of facts and moods, and the stories
whose beginnings are to be continued, were not in the training text.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from refllm.api import InferencingParams
from refllm.generate import generate, generate_text
from refllm.loading import LlamaModel
from tools.tiny_chat.corpus import asked_again, held_out, samples
from tools.tiny_chat.sample import Sample, prompt_of
from tools.tiny_chat.stories import lexicon

__all__ = ["ASKED", "PARAMETERS", "Answer", "Score", "questions_of_training", "scores"]

MOST_TOKENS = 200
CHATS = ("told-story", "fact", "sentiment", "arithmetic", "greeting", "joke", "code")
# The kinds that have so many questions that most are new. Of the others training had nearly all.
UNSEEN = ("fact", "sentiment")

# The least that the model card promises; the others are there to be known.
ASKED = {
    "sentiment label right": 0.95,
    "fact right": 0.90,
    "word of a story in the lexicon": 0.99,
    "chat ended within 200 tokens": 0.95,
}
PARAMETERS = {
    "as Spin's defaults": InferencingParams(max_tokens=MOST_TOKENS),
    "most likely token": InferencingParams(
        max_tokens=MOST_TOKENS, temperature=0.0, repeat_penalty=1.0
    ),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """The text, and whether the model ended it by itself."""

    text: str
    has_ended: bool


@dataclass(frozen=True, slots=True)
class Score:
    """How many of how many were right."""

    name: str
    right: int
    n: int

    @property
    def share(self) -> float:
        """0 … 1."""
        return self.right / self.n


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
    told = [answer.text for answer in answers["told-story"]]
    begun = [_beginning(story.answer) for story in held_out("story", n, seed=seed, known=known)]
    plain = [text + answer_of(model, text, params, i).text for i, text in enumerate(begun)]
    known_words = lexicon()
    spoken = [word for text in told + plain for word in re.findall(r"[a-z]+", text.lower())]
    in_lexicon = sum(word in known_words for word in spoken)
    yield Score("word of a story in the lexicon", in_lexicon, len(spoken))
    everything = [answer for kind in CHATS for answer in answers[kind]]
    ended = sum(answer.has_ended for answer in everything)
    yield Score("chat ended within 200 tokens", ended, len(everything))


def answer_of(model: LlamaModel, prompt: str, params: InferencingParams, seed: int) -> Answer:
    """What the model says after the prompt."""
    tokens = model.prompt_tokens(prompt)
    room = model.config.n_ctx - len(tokens)
    params = dataclasses.replace(params, max_tokens=min(params.max_tokens, room))
    end_tokens = model.tokenizer.eos_ids
    steps = generate(model.network, tokens, params, end_tokens=end_tokens, seed=seed)
    text, last = "", -1
    for chunk in generate_text(steps, model.tokenizer, tokens):
        text += chunk.text
        last = last if chunk.step is None else chunk.step.token
    return Answer(text, last in end_tokens)


def _beginning(story: str) -> str:
    """The first two sentences, which training did not have in this way."""
    return ". ".join(story.split(". ")[:2]) + "."


def _right(name: str, asked: Sequence[Sample], answers: Sequence[Answer]) -> Score:
    pairs = zip(asked, answers, strict=True)
    return Score(name, sum(sample.is_right(answer.text) for sample, answer in pairs), len(asked))
