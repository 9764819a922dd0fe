"""A harness for tokenizers, the library of Hugging Face: tokenizer.json alone.

    python tokenizers_py.py MODELS

MODELS has a folder in Hugging Face's form for each model of the suite.
"""

import sys
from functools import cache
from pathlib import Path

from protocol import Skip, serve
from tokenizers import Tokenizer

MODELS = Path(sys.argv[1])


@cache
def load(file):
    """Return the tokenizer of a file, without the limit that the file may have."""
    own = Tokenizer.from_file(file)
    own.no_truncation()
    return own


def tokenizer(asked):
    """Return the ids of a text, and the text of the ids."""
    file = MODELS / asked["model"] / "tokenizer.json"
    if not file.exists():
        raise Skip(f"there is no tokenizer.json of {asked['model']}")
    own = load(str(file))
    ids = own.encode(asked["text"]).ids
    return {"ids": ids, "text": own.decode(ids, skip_special_tokens=True)}


serve(["tokenizers"], {"tokenizer": tokenizer})
