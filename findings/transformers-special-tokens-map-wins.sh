#!/usr/bin/env bash
# One would guess that tokenizer_config.json, the newer and richer file, wins over
# special_tokens_map.json.
# The older special_tokens_map.json wins: its eos_token replaces the one of tokenizer_config.json.
# It matters for models whose end token was changed in tokenizer_config.json after a fine-tuning
# while the other file stayed: generation stops at the old token.
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
folder = tokenizer_folder({"eos_token": "</s>"})
alone = AutoTokenizer.from_pretrained(folder).eos_token
(folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "b"}))
both = AutoTokenizer.from_pretrained(folder).eos_token
print(f"eos_token '</s>' in tokenizer_config.json: {alone!r}; with 'b' in special_tokens_map.json: {both!r}")
expect(alone == "</s>", "eos_token of tokenizer_config.json is not read")
expect(both == "b", "tokenizer_config.json wins now")
print("seen: special_tokens_map.json wins")
PY
