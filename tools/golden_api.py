"""Writes golden/api/cases.json: what each operation answers, in the spellings of three protocols.

    python -m tools.golden_api [FOLDER]

Reads golden/api/inputs.toml, written by hand, and adds what follows from it: how Spin's protocol
and OpenAI's say the same, and what only the models know. Tokens are counted by the sentencepiece
and tokenizers libraries; the one text and the vectors come from refllm/oracle.py in float64, and
the tool refuses to write a text that rounding could change (`tools.golden_api_models`). FOLDER
(default: golden/api) receives cases.json.
"""

from __future__ import annotations

import json
import math
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from tools.golden_api_models import Chat, Embed

__all__ = ["document", "main"]

Json: TypeAlias = dict[str, Any]
Question: TypeAlias = Mapping[str, Any]

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "api"

SPIN_NAMES = {
    "max_tokens": "maxTokens",
    "repeat_penalty": "repeatPenalty",
    "repeat_penalty_last_n_token_count": "repeatPenaltyLastNTokenCount",
    "temperature": "temperature",
    "top_k": "topK",
    "top_p": "topP",
}
DEFAULTS = {
    "max_tokens": 100,
    "repeat_penalty": 1.1,
    "repeat_penalty_last_n_token_count": 64,
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.9,
}
FLOATS = ("repeat_penalty", "temperature", "top_p")
SPIN_PATHS = {"infer": "/infer", "generate_embeddings": "/embed", "http": "/infer"}
OPENAI_PATHS = {
    "infer": "/v1/completions",
    "generate_embeddings": "/v1/embeddings",
    "http": "/v1/completions",
}
OPENAI_HEADERS = {"content-type": "application/json"}
# A penalty of 1 is off, which OpenAI's protocol calls frequency_penalty 0. Servers of local models
# have a penalty of their own beside it, and some have it on.
OPENAI_PENALTY_OFF = {"frequency_penalty": 0, "repeat_penalty": 1.0}

ONLY_HTTP = "this is a request that only HTTP can carry"
NO_SETUP = "what a component may use, and which files there are, is not in a request"
NO_JSON = "JSON has no NaN and no infinity"
NO_TOP_K = "OpenAI's protocol has no top_k"
NO_PENALTY = "OpenAI's protocol has no repeat_penalty; its frequency_penalty is another thing"

STATUSES: Mapping[str | None, Mapping[str, Sequence[int]]] = {
    # FastAPI's servers and others say 422, and no client tells it from 400.
    "invalid-input": {"spin": [400, 422], "openai": [400, 422]},
    None: {"spin": [400, 422], "openai": [400, 422]},
    "model-not-supported": {"spin": [400, 404], "openai": [400, 404]},
    "runtime-error": {"spin": [500], "openai": [500]},
}
FORMS = {"spin": "string", "openai": "error object"}

N_COMPONENTS = 8
COMPONENT_ERROR = 2.0**-9
COMPONENT_REASON = (
    "Components are up to 0.12; quantized activations change them by less than this, and a mean "
    "over padding by more than eight times as much."
)


def main() -> None:
    """Write cases.json into the folder named on the command line."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cases.json").write_bytes((json.dumps(document(), indent=1) + "\n").encode())


def document() -> Json:
    """The whole file. Ends the program where a model gives no certain answer."""
    questions = tomllib.loads((GOLDEN / "inputs.toml").read_text(encoding="utf-8"))["case"]
    writer = Writer(Chat(), Embed())
    cases = [writer.case(question) for question in questions]
    return {"$schema": "schema.json", "group": "api", "cases": cases}


class Writer:
    """Cases from questions."""

    def __init__(self, chat: Chat, embed: Embed) -> None:
        self._chat = chat
        self._embed = embed

    def case(self, question: Question) -> Json:
        """One case: the question in three spellings, and its answer."""
        asked = self._asked(question)
        spellings, not_in = spelled(question, asked)
        case: Json = {
            "id": f"api/{question['id']}",
            "proves": question["proves"],
            "clause": question["clause"],
            "input": {**as_written(asked), "spellings": spellings},
            "expected": self._expected(question, asked),
        }
        if not_in:
            case["input"]["not_in"] = not_in
        if question.get("needs_token"):
            case["input"]["needs_token"] = True
        if "vector_of" in question:
            error = COMPONENT_ERROR.hex()
            case["tolerance"] = {"first_components": error, "reason": COMPONENT_REASON}
        case["models"] = needed_models(asked, spellings)
        if question.get("quick"):
            case["quick"] = True
        return case

    def _asked(self, question: Question) -> Json:
        """The operation and its arguments, as Python has them."""
        asked: Json = {"operation": question["operation"]}
        if "model" in question:
            asked["model"] = question["model"]
        if asked["operation"] == "infer":
            asked["prompt"] = self._prompt(question)
        elif asked["operation"] == "generate_embeddings":
            asked["texts"] = question.get("texts") or self._texts(question)
        if "params" in question:
            asked["params"] = {
                name: float(value) if name in FLOATS else value
                for name, value in question["params"].items()
            }
        if "setup" in question:
            asked["setup"] = question["setup"]
        return asked

    def _prompt(self, question: Question) -> str:
        if "greedy" in question:
            return self._chat.greedy_answer.prompt
        if "prompt_fills" in question:
            return self._chat.filler(self._chat.n_ctx + question["prompt_fills"])
        return str(question["prompt"])

    def _texts(self, question: Question) -> list[str]:
        if "text_fills" not in question:
            return []
        return [self._embed.filler(self._embed.limit + question["text_fills"])]

    # --- answers ---

    def _expected(self, question: Question, asked: Json) -> Json:
        given = question.get("expected", {})
        if "error" in given:
            return {"error": self._error(given["error"], asked)}
        expected = {key: value for key, value in given.items() if key != "usage"}
        if "greedy" in question:
            expected |= self._greedy(question["greedy"])
        elif "usage" in given:
            expected["usage"] = self._usage(given["usage"], question, asked)
        texts = question.get("counted_texts", asked.get("texts"))
        if texts is not None:
            expected["embeddings_shape"] = [len(texts), self._embed.width]
        if "vector_of" in question:
            expected["first_components"] = self._components(texts, question["vector_of"])
        return expected

    def _greedy(self, n_tokens: bool | int) -> Json:
        answer = self._chat.greedy_answer
        ids = answer.token_ids if n_tokens is True else answer.token_ids[:n_tokens]
        return {
            "text": self._chat.text(answer.prompt, ids),
            "usage": {
                "prompt_token_count": self._chat.count(answer.prompt),
                "generated_token_count": len(ids),
            },
        }

    def _usage(self, usage: Mapping[str, Any], question: Question, asked: Json) -> Json:
        counted = {"prompt_token_count": self._n_prompt(question, asked)}
        return {key: counted[key] if usage[key] == "counted" else usage[key] for key in usage}

    def _n_prompt(self, question: Question, asked: Json) -> int:
        texts = question.get("counted_texts", asked.get("texts"))
        if texts is not None:
            return sum(map(self._embed.count, texts))
        prompt = question.get("counted_prompt", asked.get("prompt"))
        return 0 if prompt is None else self._chat.count(prompt)

    def _components(self, texts: Sequence[str], place: int) -> Json:
        """The first components of a text's vector, if they tell it from a mean over padding."""
        vector = self._embed.vector(texts[place])[:N_COMPONENTS]
        n_padding = max(map(self._embed.count, texts)) - self._embed.count(texts[place])
        padded = self._embed.vector(texts[place], n_padding=n_padding)[:N_COMPONENTS]
        if n_padding > 0 and np.abs(padded - vector).max() < 8 * COMPONENT_ERROR:
            raise SystemExit(f"{texts[place]!r}: padding hardly shows; nothing written")
        values = vector.astype(np.float32).tolist()
        return {"shape": [N_COMPONENTS], "values": [value.hex() for value in values]}

    def _error(self, given: Mapping[str, Any], asked: Json) -> Json:
        kind = given.get("kind")
        lengths = {
            "n_prompt": self._n_prompt({}, asked),
            "n_ctx": self._chat.n_ctx,
        }
        error: Json = {} if kind is None else {"kind": kind}
        error["says"] = [said.format(**lengths) for said in given["says"]]
        error["status"] = {**STATUSES[kind], **given.get("status", {})}
        if given.get("form"):
            error["form"] = FORMS
        return error


# --- Spellings -----------------------------------------------------------------------------------


def spelled(question: Question, asked: Json) -> tuple[Json, Json]:
    """The spellings, null where there is none, and the reasons why."""
    not_in = {**unsayable(question, asked), **question.get("not_in", {})}
    spin = None if "spin" in not_in else spin_spelling(question.get("spin", {}), asked)
    openai = None if "openai" in not_in else openai_spelling(question.get("openai", {}), asked)
    return {"spin": spin, "openai": openai}, not_in


def unsayable(question: Question, asked: Json) -> Json:
    """Why a spelling cannot say what is asked, for the usual reasons."""
    if asked["operation"] == "http":
        return {"python": ONLY_HTTP}
    if "setup" in asked:
        return {"spin": NO_SETUP, "openai": NO_SETUP}
    params = asked.get("params", {})
    if not all(math.isfinite(value) for value in params.values()):
        return {"spin": NO_JSON, "openai": NO_JSON}
    if "top_k" in params:
        return {"openai": NO_TOP_K}
    if params.get("repeat_penalty", 1) != 1 or "repeat_penalty_last_n_token_count" in params:
        return {"openai": NO_PENALTY}
    return {}


def spin_spelling(given: Mapping[str, Any], asked: Json) -> Json:
    """The request as Spin's remote_http sends it: all six options, and no content type."""
    operation = asked["operation"]
    if operation == "infer":
        options = {SPIN_NAMES[name]: value for name, value in params_of(asked).items()}
        body = {"model": asked["model"], "prompt": asked["prompt"], "options": options}
    else:
        body = {"model": asked.get("model"), "input": asked.get("texts")}
    return request(given, SPIN_PATHS[operation], {}, body)


def openai_spelling(given: Mapping[str, Any], asked: Json) -> Json:
    """The request as a client of OpenAI's sends it: only what was said, and raw prompts."""
    operation = asked["operation"]
    if operation == "infer":
        params = asked.get("params", {})
        said = {name: value for name, value in params.items() if name != "repeat_penalty"}
        penalty = OPENAI_PENALTY_OFF if "repeat_penalty" in params else {}
        body = {"model": asked["model"], "prompt": asked["prompt"], **said, **penalty}
    else:
        body = {"model": asked.get("model"), "input": asked.get("texts")}
    return request(given, OPENAI_PATHS[operation], OPENAI_HEADERS, body)


def request(given: Mapping[str, Any], path: str, headers: Mapping[str, str], body: Json) -> Json:
    """A request, as the question spells it out or else so."""
    is_get = given.get("method") == "GET"
    compact = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return {
        "method": given.get("method", "POST"),
        "path": given.get("path", path),
        "headers": {**({} if is_get else headers), **given.get("headers", {})},
        "body": None if is_get else given.get("body", compact),
    }


def params_of(asked: Json) -> Json:
    """All six parameters, in the interface's order."""
    return {**DEFAULTS, **asked.get("params", {})}


def needed_models(asked: Json, spellings: Json) -> list[str]:
    """The models of the suite that are asked, or named in a request."""
    texts = [asked.get("model"), *(each["body"] for each in spellings.values() if each)]
    known = ("tiny-chat", "tiny-embed")
    return [name for name in known if any(name_in(text, name) for text in texts)]


def name_in(text: str | None, name: str) -> bool:
    """Whether that is the name, or a body that says it."""
    return text is not None and (text == name or json.dumps(name) in text)


def as_written(asked: Json) -> Json:
    """The arguments with floats as C prints them with %a."""
    if "params" not in asked:
        return asked
    params = {
        name: value.hex() if isinstance(value, float) else value
        for name, value in asked["params"].items()
    }
    return {**asked, "params": params}


if __name__ == "__main__":
    main()
