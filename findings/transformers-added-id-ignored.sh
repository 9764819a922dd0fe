#!/usr/bin/env bash
# One would guess that added_tokens_decoder of tokenizer_config.json gives each added token the id
# that is its key.
# Beside a tokenizer.json that lacks the token, the id is ignored: the token gets the next free
# id, here 5 instead of 9.
# It matters for models whose added tokens leave a gap after the vocabulary: the id selects
# another row of the embedding than in training, without a warning.
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
added = {"content": "<x>", "lstrip": False, "rstrip": False, "normalized": False}
added |= {"single_word": False, "special": True}
folder = tokenizer_folder({"added_tokens_decoder": {"9": added}})
ids = AutoTokenizer.from_pretrained(folder)("a<x>b").input_ids
print(f"added_tokens_decoder has <x> at 9; 'a<x>b' gives {ids}")
expect(ids != [0, 9, 1], "the id of added_tokens_decoder counts now")
expect(ids == [0, 5, 1], "the added token gets yet another id")
print("seen: an added token gets the next free id, not the one of the file")
PY
