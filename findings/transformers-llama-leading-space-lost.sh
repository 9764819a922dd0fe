#!/usr/bin/env bash
# One would guess that LlamaTokenizer gives the ids of the sentencepiece library for each text, as
# it is loaded from the same tokenizer.model.
# A leading space is lost: " a" and "a" have the same tokens, where sentencepiece (and a model
# trained with it) has one token more.
# It matters for completions of text that begins with spaces, such as indented code.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 tokenizers==0.23.3 sentencepiece==0.2.3 protobuf==7.36.2
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import json
import pathlib
import sys
from importlib.metadata import version

import sentencepiece
from transformers import AutoTokenizer


def expect(condition, changed):
    """End with status 1 where the behaviour is no longer the one described above."""
    if not condition:
        sys.exit(f"CHANGED: {changed}")


print(*(f"{name} {version(name)}" for name in ("transformers", "tokenizers", "sentencepiece", "protobuf")), sep=", ")
folder = pathlib.Path("folder")
folder.mkdir()
sentences = ["the quick brown fox", "hello world a b c"] * 50
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(sentences), model_prefix="folder/tokenizer", vocab_size=300,
    model_type="bpe", byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
    normalization_rule_name="identity", remove_extra_whitespaces=False,
)
(folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
original = sentencepiece.SentencePieceProcessor("folder/tokenizer.model")
tokenizer = AutoTokenizer.from_pretrained(folder)
for text in ("a", " a"):
    pieces, tokens = original.encode(text, out_type=str), tokenizer.tokenize(text)
    print(f"{text!r}: sentencepiece {pieces}, transformers {tokens}")
    expect((pieces == tokens) == (text == "a"), "the leading space is kept now")
expect(tokenizer.tokenize(" a") == tokenizer.tokenize("a"), "' a' and 'a' differ now")
print("seen: LlamaTokenizer loses a leading space")
PY
