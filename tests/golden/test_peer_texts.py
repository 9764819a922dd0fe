"""Another engine's answers, token by token: what llama.cpp chose after 50 prompts, refllm chooses.

Two engines round differently, so their logits differ a little, and where the two best are nearer to
each other than that, either may be chosen. How much logits differ is measured here, over all
places; it is printed, with every place where the choices differ (`pytest -rP`).

P places of all texts.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

from refllm.models.bundled import ROOT
from refllm.models.load import NUMERICS, LlamaModel, load
from tests.conftest import PROJECT

Golden: TypeAlias = Mapping[str, Any]

FOLDER = PROJECT / "golden" / "text"
PUBLISHED = json.loads((FOLDER / "llama.cpp.json").read_text("utf-8"))
MODEL = ROOT / "llama" / "tiny-chat.gguf"


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a text: what both engines choose, and what their logits are."""

    text: int
    index: int
    theirs: int
    ours: int
    difference: float  # of the logits of their two best tokens, the larger
    margin: float  # between our two best logits


@cache
def tiny_chat(numerics: str) -> LlamaModel:
    model = load(MODEL, numerics=numerics)
    assert isinstance(model, LlamaModel)
    return model


def places(document: Golden, numerics: str) -> list[Place]:
    """Every place of the file's texts, each reached by the peer's own tokens."""
    found = []
    for number, text in enumerate(document["texts"]):
        prompt, chosen = text["prompt_token_ids"], text["token_ids"]
        logits = tiny_chat(numerics).forward([*prompt, *chosen[:-1]])[len(prompt) - 1 :]  # [T, V]
        best = np.sort(logits, axis=1)
        at = np.arange(len(chosen))
        off = np.maximum(
            np.abs(logits[at, chosen] - text["logits"]),
            np.abs(logits[at, text["runner_up_ids"]] - text["runner_up_logits"]),
        )
        found += [
            Place(number, i, chosen[i], int(logits[i].argmax()), off[i], best[i, -1] - best[i, -2])
            for i in range(len(chosen))
        ]
    return found


def check_agreement(document: Golden, numerics: str) -> None:
    """The same choice at every place where the margin leaves no doubt, and little doubt at all."""
    all_places = places(document, numerics)
    bound = max(place.difference for place in all_places)
    print(f"{numerics}: {len(all_places)} places, logits differ by at most {bound:.4f}")
    exceptions = [place for place in all_places if place.ours != place.theirs]
    for place in exceptions:
        print(f"  text {place.text}, place {place.index}: margin {place.margin:.4f}")
    # Each of two logits may be off by the bound, one up and the other down.
    assert all(place.margin <= 2 * bound for place in exceptions)
    # And the bound decides something: most places are certain, and few choices differ at all.
    n_certain = sum(place.margin > 2 * bound for place in all_places)
    assert n_certain >= 0.8 * len(all_places)
    assert len(exceptions) <= 0.02 * len(all_places)


@pytest.mark.parametrize("text", PUBLISHED["texts"])
def test_a_prompt_has_the_token_ids_that_llama_cpp_gives_it(text: Golden) -> None:
    assert tiny_chat("exact").prompt_tokens(text["prompt"]) == text["prompt_token_ids"]


@pytest.mark.parametrize("numerics", NUMERICS)
def test_llama_cpp_s_published_choices_are_ours_where_the_margin_leaves_no_doubt(
    numerics: str,
) -> None:
    check_agreement(PUBLISHED, numerics)


@pytest.mark.parametrize("numerics", NUMERICS)
def test_the_llama_cpp_at_hand_chooses_as_we_do_after_loading_what_we_export(
    numerics: str, tmp_path: Path
) -> None:
    pytest.importorskip("llama_cpp", reason="pip install llama-cpp-python")
    run = [sys.executable, "-m"]
    export = ["models", "export", "tiny-chat", "--to", str(tmp_path), "--format", "gguf"]
    subprocess.run([*run, "refllm", *export], check=True, cwd=PROJECT)
    [exported] = tmp_path.rglob("*.gguf")
    answers = tmp_path / "answers.json"
    subprocess.run([*run, "tools.greedy_by_llama_cpp", exported, answers], check=True, cwd=PROJECT)
    check_agreement(json.loads(answers.read_text("utf-8")), numerics)
