#!/usr/bin/env bash
# One would guess that the eos_token_id of a converted GGUF is the eos_token of
# tokenizer_config.json.
# If the post-processor of tokenizer.json ends with another special token, gguf's SpecialVocab
# takes that one as eos_token_id, sets add_eos_token, and makes the named end token the end of a
# turn.
# It matters for models whose texts are framed by another token than the one that ends an answer:
# the GGUF names another end token than transformers does.
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
framed = TemplateProcessing(
    single="<s> $A </s>",
    pair="<s> $A </s> $B </s>",
    special_tokens=[("<s>", 3), ("</s>", 4)],
)
folder = tokenizer_folder({"eos_token": "b"}, framed)
file = json.loads((folder / "tokenizer.json").read_text())
file["added_tokens"].insert(0, file["added_tokens"][0] | {"id": 1, "content": "b"})
(folder / "tokenizer.json").write_text(json.dumps(file))
eos = AutoTokenizer.from_pretrained(folder).eos_token_id
ids = gguf.SpecialVocab(folder).special_token_ids
print(f"tokenizer_config.json: eos_token 'b', id {eos} in transformers; gguf: {ids}")
expect(eos == 1, "transformers gives another end token")
expect(ids.get("eos") == 4, "gguf no longer takes the end token of the post-processor")
expect(ids.get("eot") == 1, "gguf no longer makes the named end token the end of a turn")
print("seen: gguf takes the end token of the post-processor, not the one that is named")
PY
