"""Every key of a request of OpenAI's clients: served, refused by name, or without effect.

An answer must not ignore a key that would change it: a client that sends a stop or a schema relies
on it. So each key is one of

    SERVED          a field of the route's body, which has its effect
    WITHOUT_EFFECT  cannot change an answer, for the reason in the table
    REFUSED         has no implementation; only values without effect are accepted

and every other key is refused as unknown. A JSON null has no effect, whatever its key.

Sources: OpenAI's API reference (openai 3.57); the keys of servers that speak the same protocol:
llama.cpp (tools/server/README.md), vLLM (vllm/entrypoints/openai/protocol.py), Ollama, TGI, and
transformers' GenerationConfig.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from refllm.errors import InvalidInput

__all__ = [
    "FORMAT_REFUSED",
    "MESSAGE_REFUSED",
    "MESSAGE_SERVED",
    "PART_WITHOUT_EFFECT",
    "REFUSED",
    "SERVED",
    "STREAM_REFUSED",
    "WITHOUT_EFFECT",
    "KeyRefused",
    "Refused",
    "check_keys",
    "did_you_mean",
    "shown_key",
]

MAX_SHOWN = 80  # characters of a key in an error


class KeyRefused(InvalidInput):
    """A key, or a value of it, that is not served; `key` is OpenAI's `param`."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key} {problem}")
        self.key = key


@dataclass(frozen=True, slots=True)
class Refused:
    """A key that refllm does not implement.

    Attributes:
        instead: What the client can do: a clause that follows "is not supported here; ".
        neutral: Values besides null that have no effect.
    """

    instead: str = "leave it out"
    neutral: tuple[object, ...] = ()


SERVED: Mapping[str, str] = MappingProxyType(
    {
        "model": "the model's name; `model` in the answer is the model that answered",
        "messages": "the chat; the model's own template renders the prompt",
        "prompt": "the text to continue, or its token ids; a list continues each",
        "input": "the text to embed, or its token ids; a list embeds each",
        "max_tokens": "the maximum length of an answer; of embeddings, where a text is cut",
        "max_completion_tokens": "the newer name of `max_tokens`, which it overrides",
        "truncate_prompt_tokens": "vLLM's name of `max_tokens` of embeddings",
        "temperature": "divides the logits; 0 takes the likeliest token",
        "top_p": "keeps the likeliest tokens that have this probability together; 1 is off",
        "top_k": "keeps so many of the likeliest tokens; 0 is off",
        "seed": "seeds the sampler; choice i of `n` is sampled with `seed` + i",
        "stop": "texts before which the answer ends",
        "stop_token_ids": "tokens before which the answer ends",
        "ignore_eos": "the model's end tokens are never sampled",
        "min_tokens": "no end before so many tokens",
        "frequency_penalty": "OpenAI's: lowers a token's logit for each time that it was sampled",
        "presence_penalty": "OpenAI's: lowers the logit of each token that was sampled",
        "repeat_penalty": "the interface's: divides the logits of recent tokens; 1 is off",
        "repetition_penalty": "vLLM's name of `repeat_penalty`",
        "repeat_last_n": "the number of recent tokens, the prompt's included, for `repeat_penalty`",
        "logit_bias": "is added to the logits of these tokens; ids are the model's own",
        "response_format": "`json_object`, or `json_schema` with a schema: the answer is such JSON",
        "json_schema": "llama.cpp's name of the schema of an answer",
        "guided_json": "vLLM's name of the schema of an answer",
        "n": "the number of answers to each prompt",
        "echo": "the answer begins with the prompt's text",
        "logprobs": "the tokens' log-probabilities, before any penalty or temperature",
        "top_logprobs": "the number of alternatives to each token, with `logprobs`",
        "stream": "the answer comes as server-sent events",
        "stream_options": "`include_usage`: a last event has the token counts",
        "encoding_format": "numbers, or base64 of little-endian float32",
        "dimensions": "is checked: the model's vectors have one width",
        "add_special_tokens": "false: the token ids are the model's own, and complete",
    }
)

WITHOUT_EFFECT: Mapping[str, str] = MappingProxyType(
    {
        "user": "names the caller's user, for abuse reports",
        "safety_identifier": "names the caller's user, for abuse reports",
        "metadata": "labels of a stored answer; nothing is stored",
        "store": "nothing is stored, whatever its value",
        "service_tier": "how soon OpenAI computes an answer, and at what price",
        "prompt_cache_key": "where OpenAI looks for a cache; a cache cannot change an answer",
        "prompt_cache_options": "how OpenAI keeps a cache; a cache cannot change an answer",
        "prompt_cache_retention": "how long OpenAI keeps a cache; a cache cannot change an answer",
        "parallel_tool_calls": "how tools are called; there are none, `tools` is refused",
        "cache_prompt": "llama.cpp's cache; a cache cannot change an answer",
        "cache_salt": "vLLM's cache; a cache cannot change an answer",
        "id_slot": "the slot that llama.cpp computes a request in",
        "keep_alive": "how long Ollama keeps the model in memory",
        "priority": "which request vLLM computes first; no request changes another's answer",
        "request_id": "vLLM's name of a request in its log",
        "spaces_between_special_tokens": "how special tokens appear; here they have no text",
    }
)

_GRAMMAR = Refused("JSON schemas are the only grammars; send response_format")
_SAMPLER = "the samplers are temperature, top_k and top_p"


def _off(*neutral: object) -> Refused:
    """Return the entry of an unsupported sampler, with the values that switch it off."""
    return Refused(_SAMPLER, neutral)


REFUSED: Mapping[str, Refused] = MappingProxyType(
    {
        # OpenAI's
        "audio": Refused("only text is answered"),
        "best_of": Refused("use n, which returns every answer", (1,)),
        "echo": Refused("POST /v1/completions has it", (False,)),
        "function_call": Refused("function calling is not supported", ("none", "auto")),
        "functions": Refused("describe them in the prompt", ([],)),
        "modalities": Refused("only text is answered", (["text"],)),
        "moderation": Refused("texts are not moderated"),
        "prediction": Refused("every token is computed"),
        "reasoning_effort": Refused("chat templates get the messages only", ("none",)),
        "suffix": Refused("a text is continued at its end only", ("",)),
        "tool_choice": Refused("tool calling is not supported", ("none", "auto")),
        "tools": Refused("describe them in the prompt", ([],)),
        "verbosity": Refused("put it into the prompt", ("medium",)),
        "web_search_options": Refused("there is no web search"),
        # Grammars, by their names in llama.cpp, vLLM, SGLang, Ollama
        **dict.fromkeys(
            (
                *("grammar", "grammar_lazy", "grammar_triggers", "regex", "ebnf"),
                *("guided_regex", "guided_choice", "guided_grammar"),
                *("guided_decoding_backend", "guided_whitespace_pattern", "structured_outputs"),
                *("structural_tag", "format"),
            ),
            _GRAMMAR,
        ),
        # Other samplers
        "min_p": _off(0),
        "typical_p": _off(1),
        "typical": _off(1),
        "tfs_z": _off(1),
        "top_a": _off(0),
        "top_n_sigma": _off(-1),
        "mirostat": _off(0),
        "mirostat_tau": _off(),
        "mirostat_eta": _off(),
        "dynatemp_range": _off(0),
        "dynatemp_exponent": _off(),
        "xtc_probability": _off(0),
        "xtc_threshold": _off(),
        "dry_multiplier": _off(0),
        "dry_base": _off(),
        "dry_allowed_length": _off(),
        "dry_penalty_last_n": _off(),
        "dry_sequence_breakers": _off(),
        "epsilon_cutoff": _off(0),
        "eta_cutoff": _off(0),
        "penalty_alpha": _off(0),
        "min_keep": _off(0, 1),
        "samplers": Refused("the order of the samplers is that of refllm serve --profile"),
        "penalize_nl": Refused("repeat_penalty looks at every token", (True,)),
        "logits_processors": Refused("send logit_bias"),
        "watermark": Refused(neutral=(False,)),
        # Other searches
        "use_beam_search": Refused("decoding is sampling, or greedy with temperature 0", (False,)),
        "num_beams": Refused("decoding is sampling, or greedy with temperature 0", (1,)),
        "length_penalty": Refused("decoding is sampling, or greedy with temperature 0", (1,)),
        "early_stopping": Refused("decoding is sampling, or greedy with temperature 0", (False,)),
        "do_sample": Refused("send temperature 0 for the likeliest token"),
        "no_repeat_ngram_size": Refused("send repeat_penalty", (0,)),
        "encoder_repetition_penalty": Refused("send repeat_penalty", (1,)),
        # The same thing under another name
        "n_predict": Refused("send max_tokens"),
        "max_new_tokens": Refused("send max_tokens"),
        "num_predict": Refused("send max_tokens"),
        "max_length": Refused("send max_tokens"),
        "min_new_tokens": Refused("send min_tokens"),
        "min_length": Refused("send min_tokens", (0,)),
        "repeat_penalty_last_n_token_count": Refused("send repeat_last_n"),
        "options": Refused("send each option as a key of its own"),
        "n_probs": Refused("send logprobs", (0,)),
        "eos_token_id": Refused("send stop_token_ids"),
        "random_seed": Refused("send seed"),
        # Allowed tokens, and their text
        "allowed_token_ids": Refused("send logit_bias"),
        "bad_words": Refused("send logit_bias", ([],)),
        "bad_words_ids": Refused("send logit_bias", ([],)),
        "include_stop_str_in_output": Refused("an answer ends before its stop", (False,)),
        "skip_special_tokens": Refused("special tokens have no text", (True,)),
        "detokenize": Refused("answers are text", (True,)),
        "return_full_text": Refused("send echo to POST /v1/completions", (False,)),
        # The prompt
        "add_generation_prompt": Refused("the prompt ends where an answer begins", (True,)),
        "continue_final_message": Refused("send the prompt to POST /v1/completions", (False,)),
        "add_special_tokens": Refused("send token ids to POST /v1/completions"),
        "chat_template": Refused("the model's own template is used"),
        "chat_template_kwargs": Refused("the template gets the messages only", ({},)),
        "documents": Refused("put them into a message", ([],)),
        "mm_processor_kwargs": Refused("only text is read"),
        "truncate": Refused("a prompt is never cut; for embeddings send max_tokens"),
        "truncate_prompt_tokens": Refused("a prompt is never cut; shorten it"),
        "think": Refused("chat templates get the messages only", (False,)),
        "reasoning_format": Refused("answers are not parsed", ("none",)),
        "include_reasoning": Refused("answers are not parsed"),
        "parse_tool_calls": Refused("answers are not parsed", (False,)),
        "raw": Refused("send the prompt to POST /v1/completions", (False,)),
        "template": Refused("the model's own template is used"),
        "system": Refused("send a message of that role"),
        "context": Refused("send the prompt's token ids"),
        "images": Refused("only text is read", ([],)),
        # More in an answer
        "prompt_logprobs": Refused("logprobs are of sampled tokens"),
        "decoder_input_details": Refused("logprobs are of sampled tokens", (False,)),
        "details": Refused("send logprobs", (False,)),
        "return_tokens": Refused("send logprobs", (False,)),
        "return_token_ids": Refused("send logprobs", (False,)),
        "return_tokens_as_token_ids": Refused("send logprobs", (False,)),
        "timings_per_token": Refused("GET /metrics has the times of requests", (False,)),
        "post_sampling_probs": Refused("logprobs are the model's, before sampling", (False,)),
        "vllm_xargs": Refused(),
        "kv_transfer_params": Refused(),
        # Limits and adapters
        "t_max_predict_ms": Refused("refllm serve --max-seconds is the limit", (0,)),
        "n_keep": Refused("a prompt is never cut", (0,)),
        "n_discard": Refused("a prompt is never cut", (0,)),
        "n_indent": Refused(neutral=(0,)),
        "num_ctx": Refused("the context is the model's own"),
        "lora": Refused("name a model with merged weights", ([],)),
        "adapter_id": Refused("name a model with merged weights"),
    }
)

FORMAT_REFUSED: Mapping[str, Refused] = MappingProxyType(
    {"schema": Refused("send it as json_schema.schema, with the type json_schema")}
)

STREAM_REFUSED: Mapping[str, Refused] = MappingProxyType(
    {
        "include_obfuscation": Refused("events have no padding", (False,)),
        "continuous_usage_stats": Refused("the last event has the counts", (False,)),
    }
)

MESSAGE_SERVED: Mapping[str, str] = MappingProxyType(
    {
        "role": "the speaker; `developer` is `system`",
        "content": "the message: text, or parts of type `text`",
        "name": "is passed to the model's template",
        "reasoning_content": "is passed to the model's template",
        "reasoning": "is passed to the model's template",
        "thinking": "is passed to the model's template",
    }
)
MESSAGE_REFUSED: Mapping[str, Refused] = MappingProxyType(
    {
        "tool_calls": Refused("write tool calls into the content", ([],)),
        "tool_call_id": Refused("write a tool's answer into the content"),
        "function_call": Refused("write function calls into the content"),
        "audio": Refused("only text is read"),
        "refusal": Refused("write it into the content"),
        "annotations": Refused("only text is read", ([],)),
        "images": Refused("only text is read", ([],)),
        "prefix": Refused("send the prompt to POST /v1/completions", (False,)),
    }
)
PART_WITHOUT_EFFECT: Mapping[str, str] = MappingProxyType(
    {
        "cache_control": "where a cache ends; a cache cannot change an answer",
        "annotations": "the sources of an answer of OpenAI's; the text is read",
    }
)


def check_keys(
    extras: Mapping[str, object],
    *,
    served: Iterable[str],
    refused: Mapping[str, Refused] = MappingProxyType({}),
    without_effect: Iterable[str] = (),
    where: str = "",
) -> None:
    """Raise `KeyRefused` for a key that is not served and would have an effect.

    Args:
        extras: The keys of an object that are not fields, with their values.
        served: The fields, for the error about an unknown key.
        refused: The keys that are refused, with what to do instead.
        without_effect: The keys that are accepted.
        where: The path of the object in the error, such as "messages[0].".
    """
    for key, value in extras.items():
        if value is None or key in without_effect:
            continue
        shown = f"{where}{shown_key(key)}"
        if key not in refused:
            served = list(served)
            raise KeyRefused(
                shown,
                f"is an unknown key; {did_you_mean(key, served)}the keys are {', '.join(served)}",
            )
        # 1 is the same JSON as 1.0, and is not true.
        if not any(
            value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
            for neutral in refused[key].neutral
        ):
            raise KeyRefused(shown, f"is not supported here; {refused[key].instead}")


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """Return a question that suggests a known key of a similar spelling, or an empty text."""
    by_letters = {name.replace("_", "").lower(): name for name in known}
    close = difflib.get_close_matches(key.replace("_", "").lower(), by_letters, n=1, cutoff=0.8)
    return f"did you mean {by_letters[close[0]]}? " if close else ""


def shown_key(key: str, limit: int = MAX_SHOWN) -> str:
    """Return a client's text as an error shows it: short, and of printable characters."""
    shown = key if key.isprintable() else ascii(key)[1:-1]
    return shown if len(shown) <= limit else f"{shown[:limit]}..."
