#!/usr/bin/env bash
# One would guess that truncation and padding that are stored in tokenizer.json hold wherever the
# file is loaded.
# tokenizers obeys them, transformers drops both when it loads the same file.
# It matters because one file gives lists of different lengths in the two libraries; the
# tokenizer.json of all-MiniLM-L6-v2, for one, cuts at 128 tokens.
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
folder = tokenizer_folder({})
tokenizer = Tokenizer.from_file("folder/tokenizer.json")
tokenizer.enable_truncation(3)
tokenizer.save("folder/tokenizer.json")
by_tokenizers = Tokenizer.from_file("folder/tokenizer.json").encode("a b a b a").ids
by_transformers = AutoTokenizer.from_pretrained(folder)("a b a b a").input_ids
print(f"cut at 3 in the file; tokenizers: {by_tokenizers}, transformers: {by_transformers}")
expect(by_tokenizers == [0, 1, 0], "tokenizers no longer obeys the truncation of the file")
expect(by_transformers == [0, 1, 0, 1, 0], "transformers obeys the truncation of the file now")
print("seen: transformers drops the truncation of tokenizer.json")
PY
