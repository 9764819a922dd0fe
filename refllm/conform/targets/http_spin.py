"""The suite's questions in Spin's `remote_http`: POST /infer, POST /embed.

The protocol has no seed, no tokens, and no limit for a text. Source: Spin's crate llm-remote-http.
"""

from __future__ import annotations

from typing import Any

from refllm.conform.case import Json, is_drawn
from refllm.conform.reply import NotApplicable
from refllm.conform.targets.http_dialect import Asked, counts, of_type, params_of
from refllm.spin.dialects import API_TYPES

__all__ = ["SpinDialect"]

SPIN = API_TYPES["default"]
USAGE = {
    "promptTokenCount": "prompt_token_count",
    "generatedTokenCount": "generated_token_count",
}
ENGINE_SEED = "0"  # what refllm and its like draw with, unless they are started otherwise


class SpinDialect:
    """`api_type = "default"`."""

    name = "spin"

    def text(self, asked: Json, model: str) -> Asked | NotApplicable:
        """A prompt to be continued. `NotApplicable`: a draw with another seed than the server's."""
        params = params_of(asked)
        if isinstance(params, NotApplicable):
            return params
        if is_drawn(asked["params"]) and asked["seed"] != ENGINE_SEED:
            return NotApplicable(
                f"the protocol carries no seed, so only texts of seed {ENGINE_SEED} are asked"
            )
        return Asked(SPIN.infer_path, {}, SPIN.infer_request(model, asked["prompt"], params))

    def embeddings(self, asked: Json, model: str) -> Asked | NotApplicable:
        """Texts to be embedded. `NotApplicable`: with a limit."""
        if asked.get("max_tokens") is not None:
            return NotApplicable("the protocol carries no max_tokens for embeddings")
        return Asked(SPIN.embed_path, {}, SPIN.embed_request(model, asked["texts"]))

    def result(self, value: Any) -> dict[str, Any]:
        """What there is of a result in an answer's JSON."""
        return {
            **of_type(str, value, "text"),
            **of_type(list, value, "embeddings"),
            **counts(value, USAGE),
        }
