#!/usr/bin/env bash
# One would guess that AutoTokenizer uses the pipeline that is written in tokenizer.json.
# For classes such as BertTokenizer and Qwen2Tokenizer only the vocabulary and merges are taken;
# normalizer, pre-tokenizer and post-processor are rebuilt from the class and
# tokenizer_config.json. With a cased BERT's tokenizer.json text is lower-cased if do_lower_case
# is not given, and numbers are split for Qwen2 that the file keeps whole.
# It matters to readers of tokenizer.json: the same folder gives other tokens with the tokenizers
# library than with transformers.
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
import sys
from importlib.metadata import version

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer


def expect(condition, changed):
    """End with status 1 where the behaviour is no longer the one described above."""
    if not condition:
        sys.exit(f"CHANGED: {changed}")


print(*(f"{name} {version(name)}" for name in ("transformers", "tokenizers")), sep=", ")
folder = pathlib.Path("folder")
folder.mkdir()


def both(file, tokenizer_class, text):
    """Return the text's tokens by tokenizer.json and by transformers."""
    file.save("folder/tokenizer.json")
    settings = json.dumps({"tokenizer_class": tokenizer_class})
    (folder / "tokenizer_config.json").write_text(settings)
    by_file = Tokenizer.from_file("folder/tokenizer.json").encode(text, add_special_tokens=False)
    return by_file.tokens, AutoTokenizer.from_pretrained(folder).tokenize(text)


words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "A": 5, "a": 6}
cased = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
cased.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
cased.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
whole = Tokenizer(models.BPE({"1": 0, "11": 1}, [("1", "1")]))
whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
for file, name, text, expected in (
    (cased, "BertTokenizer", "A", ["a"]),
    (cased, "PreTrainedTokenizerFast", "A", ["A"]),
    (whole, "Qwen2Tokenizer", "11", ["1", "1"]),
    (whole, "PreTrainedTokenizerFast", "11", ["11"]),
):
    by_file, by_transformers = both(file, name, text)
    print(f"{name}, {text!r}: tokenizer.json {by_file}, transformers {by_transformers}")
    expect(by_file == [text], "the tokenizers library reads the file differently")
    expect(by_transformers == expected, f"{name} treats tokenizer.json differently")
print("seen: some classes rebuild the pipeline instead of reading it")
PY
