#!/usr/bin/env bash
# One would guess that the dropout of a BPE in tokenizer.json (subword regularization) belongs to
# training, as a network's dropout does, and that encoding a text gives the same ids each time.
# It is applied to every encode call: merges are left out at random, and no call takes a seed.
# transformers applies it, too, with no word about it.
# It matters wherever a text's ids are compared, kept or tested: prompts and vectors of such a model
# differ from run to run.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tokenizers==0.23.3 transformers==5.24.0
cd "$folder"
"$folder/venv/bin/python" - <<'PY' 2> /dev/null
import sys
from importlib.metadata import version

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast


def expect(condition, changed):
    """End with status 1 where the behaviour is no longer the one described above."""
    if not condition:
        sys.exit(f"CHANGED: {changed}")


N_CALLS = 200
TEXT = "abab"
print(*(f"{name} {version(name)}" for name in ("tokenizers", "transformers")), sep=", ")
vocabulary = {"a": 0, "b": 1, "ab": 2, "abab": 3}
merges = [("a", "b"), ("ab", "ab")]
for dropout in (None, 0.1):
    Tokenizer(models.BPE(vocabulary, merges, dropout=dropout)).save("tokenizer.json")
    library = Tokenizer.from_file("tokenizer.json")
    wrapped = PreTrainedTokenizerFast(tokenizer_file="tokenizer.json")
    for name, encode in (
        ("tokenizers", lambda: library.encode(TEXT).ids),
        ("transformers", lambda: wrapped(TEXT)["input_ids"]),
    ):
        seen = {tuple(encode()) for _ in range(N_CALLS)}
        print(f"dropout {dropout}, {name}: {len(seen)} encodings of {TEXT!r} in {N_CALLS} calls: "
              f"{sorted(seen)}")
        expect((len(seen) > 1) == (dropout is not None), f"{name} no longer draws at encoding")
print("seen: one text, several encodings")
PY
