#!/usr/bin/env bash
# One would guess that a conversion to GGUF takes the chat template that transformers uses.
# With a template in tokenizer_config.json and another in chat_template.jinja, transformers uses
# the .jinja file and gguf's SpecialVocab the old entry.
# It matters for models whose template was corrected in the new file only: the GGUF chats with the
# faulty one.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 tokenizers==0.23.3 gguf==0.19.0
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import json
import pathlib
import shutil
import sys
from importlib.metadata import version

import gguf
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


print(*(f"{name} {version(name)}" for name in ("transformers", "tokenizers", "gguf")), sep=", ")
folder = tokenizer_folder({"chat_template": "OLD ENTRY"})
(folder / "chat_template.jinja").write_text("NEW FILE")
by_transformers = AutoTokenizer.from_pretrained(folder).chat_template
by_gguf = gguf.SpecialVocab(folder).chat_template
print(f"transformers: {by_transformers!r}, gguf: {by_gguf!r}")
expect(by_transformers == "NEW FILE", "transformers no longer prefers chat_template.jinja")
expect(by_gguf == "OLD ENTRY", "gguf no longer prefers tokenizer_config.json")
print("seen: the two libraries choose different templates of one folder")
PY
