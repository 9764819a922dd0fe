#!/usr/bin/env bash
# One would guess that a file additional_chat_templates/rag.jinja adds a template to the one of
# tokenizer_config.json.
# The folder replaces it: the tokenizer has the template "rag" only, and a plain chat raises an
# error for want of a default.
# It matters to users who add a template to an older model whose default stands in
# tokenizer_config.json: chat stops working.
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
folder = tokenizer_folder({"chat_template": "DEFAULT"})
chat = [{"role": "user", "content": "a"}]
before = AutoTokenizer.from_pretrained(folder).apply_chat_template(chat, tokenize=False)
(folder / "additional_chat_templates").mkdir()
(folder / "additional_chat_templates" / "rag.jinja").write_text("RAG")
tokenizer = AutoTokenizer.from_pretrained(folder)
print(f"before: {before!r}; after rag.jinja was added: {tokenizer.chat_template}")
expect(before == "DEFAULT", "the template of tokenizer_config.json is not read")
expect(tokenizer.chat_template == {"rag": "RAG"}, "the default is kept beside additional templates")
try:
    tokenizer.apply_chat_template(chat, tokenize=False)
except ValueError as error:
    print(f"a plain chat: ValueError: {str(error)[:75]}...")
else:
    sys.exit("CHANGED: a chat without a default template no longer raises ValueError")
print("seen: an additional template hides the default of tokenizer_config.json")
PY
