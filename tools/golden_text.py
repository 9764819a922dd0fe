"""Writes golden/text/cases.json: the texts that answer the questions in inputs.toml, certified.

    python -m tools.golden_text [FOLDER]

The compiled kernels write each text. Then refllm/oracle.py, in plain NumPy on weights that the gguf
package decoded, reads the whole text at once in float64 and in other orders (`tools.other_orders`),
and from those logits every token must be drawn again; the sampler itself is held to
golden/sampling, which a second implementation wrote. How far the logits are apart says how large an
error must be expected, and `tools.certification` whether such an error can change a token.

FOLDER (default: golden/text) receives cases.json; inputs.toml is always read from golden/text.

T tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from refllm.api import InferencingParams
from refllm.conform.models import suite_model
from refllm.generate import Generation, generate_text, steps_of
from refllm.models import bundled
from refllm.models.load import LlamaModel, load, load_tokenizer
from refllm.sampling import sample, uniform
from refllm.tokenizer.base import Tokenizer
from tools.certification import Drawing, first_tie, largest_harmless_error, possible_tokens
from tools.golden_layout import document, hexadecimal
from tools.oracle_orders import Model, logits, open_model
from tools.other_orders import ORDERS, SAME_EVERYWHERE

__all__ = [
    "Certificate",
    "Question",
    "Subject",
    "Writing",
    "case_of",
    "certify",
    "main",
    "questions",
    "subject_of",
    "write",
]

Array: TypeAlias = NDArray[Any]
Floats: TypeAlias = NDArray[np.float32]
Json: TypeAlias = Mapping[str, Any]

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "text"
TINY_CHAT = bundled.ROOT / "llama" / "tiny-chat.gguf"

# A text's logits may be off by the first of these that is SAFETY times what was measured.
LOGIT_ERRORS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3)
SAFETY = 4
MIN_SAFETY = 2  # for the orders that come out otherwise on another machine
REASON = (
    f"a logit of this text may be off by logit_error, which is at least {SAFETY} times "
    "largest_difference: what float64, float32 in another order of additions, or RoPE's angles in "
    "float32 move any of its logits by"
)


# --- The questions -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One entry of inputs.toml, defaults filled in."""

    id: str
    proves: str
    clause: str
    model: str
    prompt: str
    params: InferencingParams
    seed: int
    is_quick: bool


def questions(folder: Path = GOLDEN) -> list[Question]:
    """All of inputs.toml."""
    asked = tomllib.loads((folder / "inputs.toml").read_text(encoding="utf-8"))
    return [_question(entry) for entry in asked["case"]]


def _question(entry: Json) -> Question:
    names = [field.name for field in dataclasses.fields(InferencingParams)]
    params = InferencingParams(**{name: entry[name] for name in names if name in entry})
    prompt = entry["prompt"]
    return Question(
        id=entry["id"],
        proves=entry["proves"],
        clause=entry["clause"],
        model=entry.get("model", "tiny-chat"),
        prompt=prompt if isinstance(prompt, str) else repeated(prompt["text"], prompt["fills"]),
        params=params,
        seed=int(entry.get("seed", 0)),
        is_quick=entry.get("quick", False),
    )


def repeated(text: str, most_tokens: int) -> str:
    """The text as often as tiny-chat reads it as no more than so many tokens."""
    tokenizer = _tokenizer()
    times = most_tokens
    while len(tokenizer.encode(text * times)) > most_tokens:
        times -= 1
    return text * times


@cache
def _tokenizer() -> Tokenizer:
    return load_tokenizer(TINY_CHAT)


# --- The answers ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Subject:
    """A model of the suite, for the kernels and for the oracle."""

    model: LlamaModel
    plain: Model


def subject_of(name: str, folder: Path) -> Subject:
    """The model of this name; a variant of tiny-chat is made in `folder`."""
    path = suite_model(name, folder)
    assert path is not None
    model = load(path)
    assert isinstance(model, LlamaModel)
    return Subject(model, open_model(path))


@dataclass(frozen=True, slots=True)
class Writing:
    """What the kernels wrote after a prompt, and what each token was drawn from."""

    prompt_ids: Sequence[int]
    drawn: Sequence[int]
    drawings: Sequence[Drawing]
    text: str


def write(question: Question, model: LlamaModel) -> Writing:
    """The answer to a question."""
    prompt_ids = model.prompt_tokens(question.prompt)
    n_tokens = model.tokenizer.n_vocab
    generation = Generation(
        model.network,
        prompt_ids,
        question.params,
        end_tokens=model.tokenizer.eos_ids,
        n_tokens=n_tokens,
        seed=question.seed,
    )
    steps, drawings = [], []
    for step in steps_of(model.network, generation):
        assert generation.logits is not None
        steps.append(step)
        own = generation.logits[:n_tokens].copy()
        drawings.append(Drawing(own, generation.tokens[:-1], step.u))
    chunks = generate_text(iter(steps), model.tokenizer, prompt_ids)
    text = "".join(chunk.text for chunk in chunks)
    return Writing(prompt_ids, [step.token for step in steps], drawings, text)


@dataclass(frozen=True, slots=True)
class Certificate:
    """How far a text's logits are off in other orders, by the order's name, and what follows.

    `logit_error` is what an order not tried may do; `tie` is the first token that such an error can
    change, None where there is none.
    """

    differences: Mapping[str, float]
    logit_error: float
    tie: int | None


def certify(question: Question, subject: Subject, writing: Writing) -> Certificate:
    """Ends the program where another order draws what it cannot."""
    others = read_again(subject, writing) if writing.drawn else {}
    own = [drawing.logits for drawing in writing.drawings]  # T of [V]
    differences = {order: float(np.abs(read - own).max()) for order, read in others.items()}
    logit_error = error_beyond(differences)
    tie = first_tie(writing.drawings, question.params, error=logit_error)
    certificate = Certificate(differences, logit_error, tie)
    for order, read in others.items():
        _check_drawn_again(question, writing, certificate, order, read.astype(np.float32))
    return certificate


def read_again(subject: Subject, writing: Writing) -> Mapping[str, Array]:
    """The logits [T, V] that the tokens were drawn from, in each of the other orders."""
    token_ids = [*writing.prompt_ids, *writing.drawn[:-1]]
    rows, n_tokens = slice(len(writing.prompt_ids) - 1, None), subject.model.tokenizer.n_vocab
    return {
        order: logits(subject.plain, token_ids, "exact", variant)[rows, :n_tokens]
        for order, variant in ORDERS.items()
    }


def error_beyond(differences: Mapping[str, float]) -> float:
    """The error to expect of an order not tried, the same on every machine.

    Ends the program where a difference that depends on the machine comes near it.
    """
    measured = max((differences.get(order, 0.0) for order in SAME_EVERYWHERE), default=0.0)
    error = next((error for error in LOGIT_ERRORS if error >= SAFETY * measured), None)
    if error is None or error < MIN_SAFETY * max(differences.values(), default=0.0):
        raise SystemExit(f"logits are apart by {differences}; nothing written")
    return error


def _check_drawn_again(
    question: Question, writing: Writing, certificate: Certificate, order: str, read: Floats
) -> None:
    """From another order's logits: the same tokens, up to the first tie one of the tied ones."""
    for i, drawing in enumerate(writing.drawings):
        u = uniform(question.seed, i)
        token = sample(read[i], question.params, drawing.previous_tokens, u).token
        possible = [writing.drawn[i]]
        if i == certificate.tie:
            possible = possible_tokens(drawing, question.params, error=certificate.logit_error)
        if token not in possible:
            raise SystemExit(f"{question.id}: {order} draws token {token} at {i}; nothing written")
        if i == certificate.tie:
            return


# --- The file ------------------------------------------------------------------------------------


def main() -> None:
    """Write the file where everything agrees."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN
    asked = questions()
    cases = []
    with tempfile.TemporaryDirectory() as models:
        names = sorted({question.model for question in asked})
        subjects = {name: subject_of(name, Path(models)) for name in names}
        for question in asked:
            subject = subjects[question.model]
            writing = write(question, subject.model)
            certificate = certify(question, subject, writing)
            cases.append(case_of(question, writing, certificate, subject.model))
            sys.stderr.write(f"{question.id}: {_summary(writing, certificate)}\n")
    (folder / "cases.json").write_text(document("text", cases), encoding="ascii")


def _summary(writing: Writing, certificate: Certificate) -> str:
    state = "certified" if certificate.tie is None else f"tied at {certificate.tie}"
    largest = max(certificate.differences.values(), default=0.0)
    return f"{len(writing.drawn)} tokens, {state}, logits apart by {largest:.1e}"


def case_of(
    question: Question, writing: Writing, certificate: Certificate, model: LlamaModel
) -> Json:
    """One entry of the file."""
    return {
        "id": question.id,
        "proves": question.proves,
        "clause": question.clause,
        "models": [question.model],
        **({"quick": True} if question.is_quick else {}),
        "input": {
            "model": question.model,
            "prompt": question.prompt,
            "params": {
                name: hexadecimal(value) if isinstance(value, float) else value
                for name, value in dataclasses.asdict(question.params).items()
            },
            "seed": str(question.seed),
        },
        "expected": {
            "text": writing.text,
            "token_ids": writing.drawn,
            "usage": {
                "prompt_token_count": len(writing.prompt_ids),
                "generated_token_count": len(writing.drawn),
            },
            "certified": certificate.tie is None,
            **_margin(question, writing),
            **_ties(question, writing, certificate, model),
        },
        **_tolerance(certificate),
    }


def _margin(question: Question, writing: Writing) -> Json:
    if not writing.drawn:
        return {}
    return {"smallest_margin": largest_harmless_error(writing.drawings, question.params)}


def _ties(
    question: Question, writing: Writing, certificate: Certificate, model: LlamaModel
) -> Json:
    tie = certificate.tie
    if tie is None:
        return {}
    tied = possible_tokens(writing.drawings[tie], question.params, error=certificate.logit_error)
    texts = [text_so_far(writing, tie, token, model) for token in tied]
    return {"tied_at": tie, "tied_tokens": tied, "tied_texts": texts}


def text_so_far(writing: Writing, tie: int, token: int, model: LlamaModel) -> str:
    """The text up to step `tie` and with this token there, as far as it is certain."""
    stream = model.tokenizer.stream(previous=writing.prompt_ids)
    return "".join(stream.push(each) for each in [*writing.drawn[:tie], token])


def _tolerance(certificate: Certificate) -> Json:
    if not certificate.differences:
        return {}
    largest = max(certificate.differences[order] for order in SAME_EVERYWHERE)
    return {
        "tolerance": {
            "logit_error": certificate.logit_error,
            "largest_difference": float(f"{largest:.2g}"),
            "reason": REASON,
        }
    }


if __name__ == "__main__":
    main()
