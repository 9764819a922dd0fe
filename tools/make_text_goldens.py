"""Texts of tiny-chat, for golden/texts/tiny-chat.json: which answer a prompt and a seed give.

    python -m tools.make_text_goldens

Writes the file, and refuses where refllm/oracle.py would have written another text: the oracle
computes the logits of the whole text at once, in plain NumPy on weights that the gguf package
decoded, and at each place the sampler must draw from them the token that the kernels' logits gave.
The sampler itself is held to golden/sampling, which a second implementation wrote.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from refllm.api import InferencingParams
from refllm.embedded import ROOT
from refllm.generate import generate, generate_text
from refllm.loading import LlamaModel, load
from refllm.sampling import sample, uniform
from tools.hash_bits import logits_by_oracle

MODEL = ROOT / "llama" / "tiny-chat.gguf"
OUTPUT = Path(__file__).resolve().parent.parent / "golden" / "texts" / "tiny-chat.json"

DEFAULT = InferencingParams(max_tokens=200)
GREEDY = dataclasses.replace(DEFAULT, temperature=0.0, repeat_penalty=1.0)
SYSTEM = "<<SYS>>\nRespond with a single positive, negative, or neutral.\n<</SYS>>"
CASES = (
    ("Once upon a time", DEFAULT, 0),
    ("Once upon a time", DEFAULT, 7),
    ("Once upon a time", GREEDY, 0),
    ("", DEFAULT, 1),
    ("[INST] Tell me a story about a fox. [/INST]", DEFAULT, 2**64 - 1),
    ("[INST] Anna has a red ball. Tom has a blue kite. Who has the kite? [/INST]", GREEDY, 0),
    (f"[INST] {SYSTEM}\n\nI love this book! [/INST]", DEFAULT, 0),
    ("[INST] Hello! [/INST]", DEFAULT, 3),
    ("[INST] What is 2 + 3? [/INST]", GREEDY, 0),
    ("[INST] Write a Python function that adds two numbers. [/INST]", DEFAULT, 0),
    ("[INST] Grüße, 你好 🙂 [/INST]", DEFAULT, 5),
)


def main() -> None:
    """Write the file where kernels and oracle agree."""
    model = load(MODEL)
    assert isinstance(model, LlamaModel)
    texts = [text_of(model, prompt, params, seed) for prompt, params, seed in CASES]
    document = {
        "$schema": "schema.json",
        "model": "tiny-chat",
        "model_sha256": hashlib.sha256(MODEL.read_bytes()).hexdigest(),
        "texts": texts,
    }
    OUTPUT.write_text(json.dumps(document, indent=1) + "\n", encoding="ascii")


def text_of(
    model: LlamaModel, prompt: str, params: InferencingParams, seed: int
) -> Mapping[str, object]:
    """One entry of the file; ends the program where the oracle differs."""
    token_ids = model.prompt_tokens(prompt)
    end_tokens = model.tokenizer.eos_ids
    steps = generate(model.network, token_ids, params, end_tokens=end_tokens, seed=seed)
    chunks = list(generate_text(steps, model.tokenizer, token_ids))
    drawn = [chunk.step.token for chunk in chunks if chunk.step is not None]
    if drawn != drawn_by_oracle(token_ids, drawn, params, seed):
        raise SystemExit(f"{prompt!r}: the oracle writes another text; nothing written")
    return {
        "prompt": prompt,
        "params": dataclasses.asdict(params),
        "seed": str(seed),
        "prompt_token_ids": token_ids,
        "token_ids": drawn,
        "text": "".join(chunk.text for chunk in chunks),
    }


def drawn_by_oracle(
    prompt: Sequence[int], drawn: Sequence[int], params: InferencingParams, seed: int
) -> list[int]:
    """The token that the oracle's logits give at each place of a text that is already written."""
    tokens = [*prompt, *drawn]
    logits = logits_by_oracle(MODEL, [tokens[:-1]])[len(prompt) - 1 :]  # [T, V]
    return [
        sample(logits[i], params, tokens[: len(prompt) + i], uniform(seed, i)).token
        for i in range(len(drawn))
    ]


if __name__ == "__main__":
    main()
