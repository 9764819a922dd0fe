#!/usr/bin/env bash
# One would guess that an eos_token that the vocabulary lacks is an error, or has no id.
# The token is appended to the vocabulary in silence and gets the first id behind it, for which
# the model has no row.
# It matters because a misspelt end token looks valid: generation never stops, and a text that
# holds it asks for a row beyond the embedding.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 tokenizers==0.23.3
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import json
import pathlib
import shutil
import sys
from importlib.metadata import version

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer


def expect(condition, changed):
    """End with status 1 where the behaviour is no longer the one described above."""
    if not condition:
        sys.exit(f"CHANGED: {changed}")


def tokenizer_folder(config, post_processor=None):
    """Write a tokenizer of five tokens: a, b, <unk>, <s>, </s>; `config` completes its settings."""
    shutil.rmtree("folder", ignore_errors=True)
    folder = pathlib.Path("folder")
    folder.mkdir()
    words = {"a": 0, "b": 1, "<unk>": 2, "<s>": 3, "</s>": 4}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    if post_processor:
        tokenizer.post_processor = post_processor
    tokenizer.save("folder/tokenizer.json")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    settings |= {"eos_token": "</s>", "unk_token": "<unk>"} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


print(*(f"{name} {version(name)}" for name in ("transformers", "tokenizers")), sep=", ")
tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder({"eos_token": "<|im_ends|>"}))
print(f"vocabulary of 5 tokens; eos_token '<|im_ends|>' has id {tokenizer.eos_token_id}")
print(f"length of the tokenizer: {len(tokenizer)}")
expect(tokenizer.eos_token_id == 5 and len(tokenizer) == 6, "a lacking eos_token is not appended now")
print("seen: a special token that the vocabulary lacks is appended")
PY
