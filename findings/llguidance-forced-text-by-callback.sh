#!/usr/bin/env bash
# One would guess that the mask of llguidance has exactly the tokens whose bytes the grammar allows.
# Where a text is forced, the mask has the one token that the tokenizer's callback begins that text
# with. A callback that puts a space before a text, as SentencePiece tokenizers do, makes it " {"
# for a JSON object, which the grammar does not allow: "{" is not in the mask, and consume_token
# refuses " {". With no_forcing the mask is "{".
# It matters to programs that wrap a tokenizer in TokenizerWrapper: the one token that may be drawn
# ends the answer in an error.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet llguidance==1.9.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import sys
from importlib.metadata import version

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper


def expect(condition, changed):
    """End with status 1 where the behaviour is no longer the one described above."""
    if not condition:
        sys.exit(f"CHANGED: {changed}")


class Tokens:
    """What llguidance asks of a tokenizer: its tokens' bytes, and the ids of a text.

    TokenizerWrapper cuts the text "test" to see whether texts come as bytes.
    """

    bos_token_id = None
    eos_token_id = 0
    special_token_ids = [0]
    tokens = [b"</s>", b"{", b" {", b"}", b'"', b" ", b":", b"t", b"e", b"s"]

    def __call__(self, text):
        rest, ids = b" " + text, []
        while rest:
            fits = [i for i, token in enumerate(self.tokens) if rest.startswith(token)]
            ids.append(max(fits, key=lambda i: len(self.tokens[i])))
            rest = rest[len(self.tokens[ids[-1]]) :]
        return ids


def allowed(matcher):
    """Return the ids that the mask of the next token has."""
    words = np.frombuffer(matcher.compute_bitmask(), np.uint8)
    bits = np.unpackbits(words, bitorder="little")[: len(Tokens.tokens)]
    return [int(token_id) for token_id in np.flatnonzero(bits)]


print(*(f"{name} {version(name)}" for name in ("llguidance", "numpy")), sep=", ")
tokenizer = LLTokenizer(TokenizerWrapper(Tokens()))
grammar = 'start: %json {"type": "object"}'
by_default = LLMatcher(tokenizer, grammar)
forced = allowed(by_default)
taken = by_default.consume_token(Tokens.tokens.index(b" {"))
free = allowed(LLMatcher(tokenizer, f'%llguidance {{"no_forcing": true}}\n{grammar}'))
print(f"by default the mask has {[Tokens.tokens[i] for i in forced]}; consumed: {taken}")
print(f"with no_forcing it has {[Tokens.tokens[i] for i in free]}")
expect([Tokens.tokens[i] for i in forced] == [b" {"], "the mask no longer has the callback's token")
expect(not taken, "the token of the mask is no longer refused")
expect([Tokens.tokens[i] for i in free] == [b"{"], "no_forcing has another mask")
print("seen: the one token of the mask is the callback's, and the grammar refuses it")
PY
