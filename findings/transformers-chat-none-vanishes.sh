#!/usr/bin/env bash
# One would guess that a chat template sees a message as the caller wrote it, so that {"content":
# None} is none in the template.
# Keys whose value is None are removed from each message first: content is undefined, not none, in
# the template.
# It matters for messages with tool calls, whose content is null in the chat API: a template with
# "content is not none" takes the other branch than in a program that passes messages as they are.
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
template = "{% for m in messages %}{% if m.content is not none %}[{{ m.content }}]{% endif %}{% endfor %}"
tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder({"chat_template": template}))
message = {"role": "assistant", "content": None}
text = tokenizer.apply_chat_template([message], tokenize=False)
tokenizer.chat_template = "{{ messages[0].keys() | list }}"
keys = tokenizer.apply_chat_template([message], tokenize=False)
print(f"message {message}: the template sees the keys {keys}")
print(f"template: {template}")
print(f"text: {text!r} (a template that saw the none would give an empty text)")
expect(keys == "['role']", "keys that are None reach the template now")
expect(text == "[]", "content is none for the template now")
print("seen: a content of None is undefined, not none")
PY
