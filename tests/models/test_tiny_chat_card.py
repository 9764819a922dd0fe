"""tiny-chat's card says what is true: the file's hash and size, its answers, its scores."""

from __future__ import annotations

import hashlib
import math
import re
import shlex

import numpy as np
import pytest
from typer.testing import CliRunner

from refllm.cli import app
from refllm.models.bundled import ROOT
from refllm.models.load import LlamaModel, load
from tools.tiny_chat.plan import Plan
from tools.tiny_chat.scores import (
    ASKED,
    PARAMETERS,
    Score,
    answer_of,
    entropies,
    questions_of_training,
    scores,
)

FILE = ROOT / "llama" / "tiny-chat.gguf"
CARD = FILE.with_suffix(".md").read_text("utf-8")
COMMAND = re.compile(r"^\$ (refllm .*)\n((?:(?!\$ |```).*\n)*)", re.MULTILINE)
PROMPTS = [
    "Can you tell me a joke about cats",
    "Say hello.",
    "You are a stand up comedy writer. Tell me a joke.",
    "Write a Python function that adds two numbers.",
    "Once upon a time",
]


@pytest.fixture(scope="module")
def tiny_chat() -> LlamaModel:
    model = load(FILE)
    assert isinstance(model, LlamaModel)
    return model


def test_the_card_names_the_file_by_its_hash_and_size() -> None:
    content = FILE.read_bytes()
    assert hashlib.sha256(content).hexdigest() in CARD
    assert f"{len(content) / 1e6:.2f} MB" in CARD
    assert len(content) < 4_000_000


def test_the_card_names_the_length_of_the_training() -> None:
    assert f"{Plan().steps} steps" in CARD
    assert f"{Plan().steps} steps".encode() in FILE.read_bytes()


@pytest.mark.parametrize(("command", "shown"), COMMAND.findall(CARD))
def test_an_answer_of_the_card_is_the_model_s(command: str, shown: str) -> None:
    done = CliRunner().invoke(app, shlex.split(command)[1:])
    assert done.exit_code == 0, done.output
    assert done.stdout == shown


def test_the_card_shows_what_people_ask_first_at_seed_0() -> None:
    commands = [shlex.split(command) for command, _ in COMMAND.findall(CARD)]
    assert [words[:3] + words[4:] for words in commands] == [
        ["refllm", "infer", "tiny-chat", "--seed", "0"]
    ] * len(PROMPTS)
    assert [words[3] for words in commands] == PROMPTS


@pytest.mark.parametrize("name", ASKED)
def test_the_card_has_the_required_minimum_of_each_score(name: str) -> None:
    asked = f"{ASKED[name]:.1f} nats" if "entropy" in name else f"{ASKED[name]:.0%}"
    assert f"≥ {asked.replace('%', ' %')}" in CARD


def test_a_share_and_a_number_of_nats_are_printed_as_such() -> None:
    assert str(Score("fact right", 0.955, 200)) == "fact right: 95.5% of 200"
    assert str(Score("median", 1.234, 50, "nats")) == "median: 1.23 nats of 50"


def test_an_entropy_is_that_of_the_distribution_that_the_token_was_drawn_from(
    tiny_chat: LlamaModel,
) -> None:
    answer = answer_of(tiny_chat, "Once upon a time", PARAMETERS["as Spin's defaults"], 0)
    tokens = [*answer.prompt_tokens, *answer.tokens]
    found = entropies(tiny_chat, answer)
    assert len(found) == len(answer.tokens)
    for i in (0, 1, len(found) - 1):
        logits = tiny_chat.forward(tokens[: len(answer.prompt_tokens) + i])[-1].astype(np.float64)
        p = np.exp(logits - logits.max())
        p /= p.sum()
        assert found[i] == pytest.approx(-sum(x * math.log(x) for x in p if x > 0), abs=1e-4)


def test_the_model_reaches_what_is_asked_in_a_few_questions_of_each_kind(
    tiny_chat: LlamaModel,
) -> None:
    known = questions_of_training(Plan().seed, 1000)
    for score in scores(tiny_chat, PARAMETERS["as Spin's defaults"], n=14, seed=7, known=known):
        asked = ASKED.get(score.name, 0.0)
        # So few questions are missed by chance: three standard deviations, or one question.
        chance = 0.0 if score.unit == "nats" else 3 * math.sqrt(asked * (1 - asked) / score.n)
        assert score.value >= asked - max(chance, 1 / score.n), str(score)
