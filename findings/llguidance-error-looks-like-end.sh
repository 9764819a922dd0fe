#!/usr/bin/env bash
# One would guess that compute_bitmask of llguidance raises an exception, or allows no token, where
# no token of the vocabulary can continue the text.
# It returns the mask of the end token, as at a complete text, and consume_token of that token
# returns True; is_error() tells, and is_accepting() is false.
# It matters for loops that draw from the mask until the end token comes: an incomplete text looks
# like one that ended by itself.
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
    """What llguidance asks of a tokenizer: its tokens' bytes, and the ids of a text."""

    bos_token_id = None
    eos_token_id = 0
    special_token_ids = [0]
    tokens = [b"</s>", b'"', b"a"]

    def __call__(self, text):
        """Only forced text is cut into tokens, and none is."""
        raise NotImplementedError


def allowed(matcher):
    """Return the ids that the mask of the next token has."""
    words = np.frombuffer(matcher.compute_bitmask(), np.uint8)
    bits = np.unpackbits(words, bitorder="little")[: len(Tokens.tokens)]
    return [int(token_id) for token_id in np.flatnonzero(bits)]


print(*(f"{name} {version(name)}" for name in ("llguidance", "numpy")), sep=", ")
tokenizer = LLTokenizer(TokenizerWrapper(Tokens()))
options = '%llguidance {"no_forcing": true}\n'
matcher = LLMatcher(tokenizer, options + 'start: %json {"const": "ab"}')
text = b""
while (token_id := allowed(matcher)[0]) != Tokens.eos_token_id:
    text += Tokens.tokens[token_id]
    expect(matcher.consume_token(token_id), f"the token after {text} is refused")
consumed = matcher.consume_token(token_id)
reason = matcher.get_error().splitlines()[0]
print(f"for the constant \"ab\" the text {text} is followed by the end token alone")
print(f"consume_token of the end token: {consumed}; is_accepting(): {matcher.is_accepting()}")
print(f"is_error(): {matcher.is_error()}, {reason}")
expect(text == b'"a', "another text is drawn")
expect(consumed, "the end token is refused")
expect(matcher.is_error() and not matcher.is_accepting(), "the matcher tells of no error")
print("seen: the mask of an error is the mask of a normal end")
PY
