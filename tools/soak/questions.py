"""The requests that good clients send, and what each is answered with alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refllm.api import InferencingParams
from refllm.conform.models import SHIPPED
from refllm.engine import LocalEngine
from refllm.export import quantize

__all__ = ["MODELS", "Question", "make_models", "questions"]

CHAT_MODELS = ("tiny-chat", "tiny-chat-F16", "tiny-chat-Q4_0", "tiny-chat-F32")
EMBEDDING_MODEL = "tiny-embed"
MODELS = (*CHAT_MODELS, EMBEDDING_MODEL)
N_TOKENS = 12
SEEDS = (0, 1, 2**64 - 1)
PROMPTS = (
    "Once upon a time, there was a little boy named Ivan. Ivan loved to play in the barn.",
    "Once upon a time",
    "",
    "[INST] What is 3 + 4? [/INST]",
)
CHATS = ("Hello!", "What is the mood of this sentence? I lost my ball.")
TEXTS = (
    ["A cat sat on the mat.", "One day, Anna found a red ball."],
    ["é", ""],
    [f"The number is {number}." for number in range(20)],
)


@dataclass(frozen=True, slots=True)
class Question:
    """A request that is answered with status 200, and the part of the answer that is looked at."""

    path: str
    body: Any
    expected: Any

    def answered(self, body: bytes) -> object:
        """The same part of a server's answer. Errors: `ValueError`, `LookupError`."""
        if self.is_streamed:
            events = body.decode().removesuffix("data: [DONE]\n\n").split("\n\n")[:-1]
            if not body.endswith(b"data: [DONE]\n\n"):
                raise ValueError(f"a stream without its end: {body[-200:]!r}")
            choices = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]
            deltas = [choice.get("delta", choice) for choice in choices]
            return "".join(delta.get("text", delta.get("content", "")) for delta in deltas)
        answer = json.loads(body)
        if "data" in answer:
            return [item["embedding"] for item in answer["data"]]
        if "embeddings" in answer:
            return answer["embeddings"]
        if "choices" in answer:
            [choice] = answer["choices"]
            return choice["message"]["content"] if "message" in choice else choice["text"]
        return answer

    @property
    def is_streamed(self) -> bool:
        """Whether the answer comes as server-sent events."""
        return bool(self.body.get("stream"))


def make_models(root: Path) -> None:
    """Write the models that do not ship with refllm below `root`, a folder of models."""
    folder = root / "llama"
    folder.mkdir(parents=True)
    for name in CHAT_MODELS:
        if name not in SHIPPED:
            type_name = name.removeprefix("tiny-chat-")
            quantize(SHIPPED["tiny-chat"], folder / f"{name}.gguf", type_name=type_name)


def questions(roots: Sequence[Path]) -> tuple[Question, ...]:
    """Every request with its answer, each computed alone by an engine that reuses nothing."""
    engine = LocalEngine(roots=roots, prompt_cache_bytes=0)
    return (
        *_infer(engine),
        *_completions(engine),
        *_chats(engine),
        *_embeddings(engine),
    )


def _infer(engine: LocalEngine) -> Iterator[Question]:
    for model in CHAT_MODELS:
        for prompt in PROMPTS:
            result = engine.infer(model, prompt, InferencingParams(max_tokens=N_TOKENS))
            used = result.usage
            usage = {
                "promptTokenCount": used.prompt_token_count,
                "generatedTokenCount": used.generated_token_count,
            }
            body = {"model": model, "prompt": prompt, "options": {"maxTokens": N_TOKENS}}
            yield Question("/infer", body, {"text": result.text, "usage": usage})


def _completions(engine: LocalEngine) -> Iterator[Question]:
    params = InferencingParams(max_tokens=N_TOKENS, temperature=0.5, top_k=20, top_p=0.95)
    for model in CHAT_MODELS:
        for seed in SEEDS:
            engine.seed = seed
            text = engine.infer(model, PROMPTS[0], params).text
            body = {"model": model, "prompt": PROMPTS[0], "max_tokens": N_TOKENS, "seed": seed}
            body |= {"temperature": 0.5, "top_k": 20, "top_p": 0.95}
            yield Question("/v1/completions", body, text)
            yield Question("/v1/completions", {**body, "stream": True}, text)
    engine.seed = 0


def _chats(engine: LocalEngine) -> Iterator[Question]:
    params = InferencingParams(max_tokens=N_TOKENS)
    for model in CHAT_MODELS:
        llama = engine.inferencing_model(model)
        for said in CHATS:
            messages = [{"role": "user", "content": said}]
            prompt = llama.chat_prompt(messages)
            steps = [chunk.step for chunk in engine.stream(model, prompt, params)]
            tokens = [step.token for step in steps if step is not None]
            text = llama.tokenizer.decode(tokens)
            body = {"model": model, "messages": messages, "max_tokens": N_TOKENS}
            yield Question("/v1/chat/completions", body, text)
            yield Question("/v1/chat/completions", {**body, "stream": True}, text)


def _embeddings(engine: LocalEngine) -> Iterator[Question]:
    for texts in TEXTS:
        vectors = engine.generate_embeddings(EMBEDDING_MODEL, texts).embeddings
        body = {"model": EMBEDDING_MODEL, "input": texts}
        yield Question("/embed", body, vectors)
        yield Question("/v1/embeddings", body, vectors)
