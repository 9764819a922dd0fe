"""A model's file or folder, read by refllm: loaded and run, accounted for, and described."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from random import Random

import numpy as np

from refllm.models.describe import describe, verify
from refllm.models.load import NUMERICS, LlamaModel, account, load_path
from refllm.tokenizer.base import Tokenizer
from refllm.tokenizer.native_messages import hold_native_messages
from tools.attack.target import NotFinite

__all__ = ["TEXTS", "View", "read_model", "read_tokenizer", "view_of", "warm_up"]

View = tuple[Collection[str], str]

TEXTS = (
    "",
    "the cat sat on the mat.",
    "<s>The  cat</s>\n\té [MASK] <0x41>\U0001f600 ",
    "\u00a0e\u0301 " + "cat " * 20,
)
MAX_TOKENS = 3


def view_of(random: Random) -> View:
    """What is done with a model: most of the time it is loaded and run, which finds the most."""
    parts = random.choices(
        ({"model"}, {"account"}, {"describe"}, {"verify"}, {"model", "account", "describe"}),
        (14, 3, 3, 1, 1),
    )[0]
    return parts, "int8" if random.random() < 0.2 else "exact"


def read_model(path: Path, parts: Collection[str], numerics: str = "exact") -> bytes:
    """Return all that comes out, as bytes.

    Raises:
        NotFinite: For a logit or a number of an embedding that is not finite.
    """
    found = []
    if "account" in parts:
        found.append(repr(account(path).entries).encode("utf-8", "backslashreplace"))
    if "describe" in parts:
        found.append(repr(describe(path)).encode("utf-8", "backslashreplace"))
    if "verify" in parts:
        found.append(b"%d" % verify(path))
    if "model" in parts:
        found.append(_run(path, numerics))
    return b"\n".join(found)


def _run(path: Path, numerics: str) -> bytes:
    model = load_path(path, numerics=numerics)
    if isinstance(model, LlamaModel):
        token_ids = model.prompt_tokens(TEXTS[1])
        numbers = model.forward(token_ids[:MAX_TOKENS])
        words = model.tokenizer.decode(token_ids)
    else:
        numbers = model.embed(TEXTS[1:3])
        words = ""
    if not np.isfinite(numbers).all():
        raise NotFinite(f"{np.size(numbers) - np.isfinite(numbers).sum()} of {np.size(numbers)}")
    return numbers.tobytes() + words.encode("utf-8", "surrogatepass")


def warm_up(path: Path) -> None:
    """Compile what a model's forward pass needs, and what finds a value that is not finite."""
    for numerics in NUMERICS:
        read_model(path, {"model", "account", "describe", "verify"}, numerics)
    model = load_path(path)
    if isinstance(model, LlamaModel):
        model.forward([0, 1, 1], tap=_ignore)
    else:
        model.embed(TEXTS[:2], tap=_ignore)


def _ignore(name: str, array: object) -> None:
    """Take a value of a forward pass."""


def read_tokenizer(tokenizer: Tokenizer) -> bytes:
    """Encode four texts and decode them again."""
    found = []
    for text in TEXTS:
        with hold_native_messages():  # as its callers in refllm do
            ids = tokenizer.encode(text)
            plain = tokenizer.encode(text, add_special=False, parse_special=False, max_tokens=10**6)
        found.append((ids, plain, tokenizer.decode(ids), tokenizer.minimum_tokens(text)))
    return repr(found).encode("utf-8", "backslashreplace")
