#!/usr/bin/env bash
# One would guess that a message's key "reasoning" reaches a chat template under that name only.
# A message with any of reasoning, thinking and reasoning_content gets the keys thinking and
# reasoning_content as well, with the same text.
# It matters for templates that print reasoning_content: a chat with "reasoning" gives another
# prompt here than in a program that renders the same template with the messages as they are.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 tokenizers==0.23.3 jinja2==3.1.6
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


print(*(f"{name} {version(name)}" for name in ("transformers", "tokenizers", "jinja2")), sep=", ")
template = "{{ messages[0].thinking }} {{ messages[0].reasoning_content }}"
tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder({"chat_template": template}))
for key in ("reasoning", "thinking", "reasoning_content"):
    message = {"role": "assistant", "content": "c", key: "why"}
    text = tokenizer.apply_chat_template([message], tokenize=False)
    print(f"key {key}: thinking and reasoning_content are {text!r}")
    expect(text == "why why", f"{key} is no longer copied to both names")
print("seen: one of the three names fills thinking and reasoning_content")
PY
