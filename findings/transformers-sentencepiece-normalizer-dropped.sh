#!/usr/bin/env bash
# One would guess that LlamaTokenizer applies the normalization of the tokenizer.model that it is
# loaded from.
# The normalization rule in the file (here NFKC) is dropped: a ligature becomes bytes, while
# sentencepiece gives plain letters.
# It matters for models trained with a normalizing tokenizer.model: token ids differ from training
# for every such character.
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
sentences = ["the quick brown fox", "hello fine world ABC abc"] * 50
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(sentences), model_prefix="folder/tokenizer", vocab_size=300,
    model_type="bpe", byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
    normalization_rule_name="nmt_nfkc",
)
(folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
original = sentencepiece.SentencePieceProcessor("folder/tokenizer.model")
tokenizer = AutoTokenizer.from_pretrained(folder)
for text in ("fine", "\ufb01ne"):
    pieces, tokens = original.encode(text, out_type=str), tokenizer.tokenize(text)
    print(f"{text!a}: sentencepiece {pieces}, transformers {tokens}")
    expect((pieces == tokens) == (text == "fine"), "LlamaTokenizer normalizes text now")
expect("<0xEF>" in tokens, "the ligature no longer becomes bytes")
print("seen: LlamaTokenizer drops the normalization of tokenizer.model")
PY
