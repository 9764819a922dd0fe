#!/usr/bin/env bash
# One would guess that add_tokens of tokenizers gives a new token an id that no other token has.
# The id is the number of tokens so far. A vocabulary with a hole in its ids has a token with that
# id already: both then have it, and an id stands for two words.
# It matters for every vocabulary whose ids have holes (pruned, or padded in the middle): texts
# encode without an error, and the model reads the old token's embedding for the new one.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tokenizers==0.23.3
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import sys
from importlib.metadata import version

from tokenizers import Tokenizer, models, pre_tokenizers


def expect(condition, changed):
    """End with status 1 where the behaviour is no longer the one described above."""
    if not condition:
        sys.exit(f"CHANGED: {changed}")


print(f"tokenizers {version('tokenizers')}")
vocabulary = {"[UNK]": 0, "cat": 1, "dog": 3}  # 2 is a hole
tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
before = tokenizer.encode("dog bird").ids
n_added = tokenizer.add_tokens(["bird"])
after = tokenizer.encode("dog bird").ids
read_again = Tokenizer.from_str(tokenizer.to_str())
print(f"{vocabulary}: \"dog bird\" is {before}")
print(f"after add_tokens(['bird']), which returns {n_added}: {after}; 3 decodes to "
      f"{tokenizer.decode([3])!r}; vocabulary {dict(sorted(tokenizer.get_vocab().items()))}")
print(f"written and read again: {read_again.encode('dog bird').ids}")
expect(before == [3, 0], "the ids before are others")
expect(n_added == 1, "the token is not added")
expect(after == [3, 3], "the new token has an id of its own")
expect(read_again.encode("dog bird").ids == [3, 3], "the file is refused or corrected when read")
print("seen: two tokens with one id")
PY
