#!/usr/bin/env bash
# One would guess that add_bos_token = false in tokenizer_config.json has the same effect in
# transformers and in a GGUF.
# With a tokenizer.json transformers does not look at it: the post-processor adds <s> all the
# same. gguf's SpecialVocab writes the flag into the GGUF, for programs that obey it.
# It matters because one folder gives prompts with <s> in transformers and without it after
# conversion.
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
from tokenizers.processors import TemplateProcessing
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
with_bos = TemplateProcessing(
    single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 3)]
)
for flag in (True, False):
    folder = tokenizer_folder({"add_bos_token": flag}, with_bos)
    ids = AutoTokenizer.from_pretrained(folder)("a").input_ids
    written = gguf.SpecialVocab(folder).add_special_token["bos"]
    print(f"add_bos_token {flag}: transformers gives {ids}, gguf writes add_bos_token {written}")
    expect(ids == [3, 0], "transformers obeys add_bos_token now")
    expect(written == flag, "gguf no longer writes the flag of tokenizer_config.json")
print("seen: only gguf obeys add_bos_token")
PY
