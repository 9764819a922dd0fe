"""Vocabularies for the tokenizer tests: published ones as GGUF metadata, and small ones made here.

gguf_metadata       the metadata of a GGUF file, as gguf-py reads it
spm_toy             a SentencePiece vocabulary: bytes, letters, and what a test adds
trained_bpe         a byte-level BPE that the tokenizers library trained, and bpe_metadata of it
llama_like_json     a tokenizer.json in the shape of Llama 2's
bert_like_json      a tokenizer.json in the shape of BERT's
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

__all__ = [
    "SENTENCES",
    "TEXTS",
    "bert_like_json",
    "bert_toy",
    "bpe_metadata",
    "gguf_metadata",
    "llama_like_json",
    "published_cases",
    "spm_toy",
    "trained_bpe",
    "wire",
]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

SENTENCES = (
    "Once upon a time, there was a little girl named Lily.",
    "She loved to play outside in the park, and she wouldn't stop until 12345 o'clock!",
    "Кошка сидит на окне. 猫が窓に座っている。 Die Kätzchen spielen im Garten.",
    "def f(x):\n    return x + 1\n\n\nprint(f(41))  # 42 🦙🦙",
)

SNIPPETS = st.sampled_from(
    [
        *(" ", "  ", "\n", "\n\n", "\t", "\r\n", "\0", "▁", "Ġ", "##", "�", "\u200d", "\u00a0"),
        *("I'll", "'S", "12345", "3.14", "HelloWorld", "été", "e\u0301", "ſ", "İ", "½", "猫", "🦙"),
        *("<s>", "</s>", "<unk>", "<0x0A>", "[CLS]", "[UNK]", "<|end|>", "<tool>", "<"),
    ]
)
CHARACTERS = st.characters(exclude_categories=["Cs"])
# Any Unicode text, with the pieces that tokenizers stumble over mixed in.
TEXTS = st.lists(SNIPPETS | st.text(CHARACTERS, max_size=8), max_size=8).map("".join)


def gguf_metadata(path: Path) -> dict[str, Any]:
    """Every key of a GGUF file."""
    return {key: field.contents() for key, field in GGUFReader(path).fields.items()}


def published_cases(path: Path) -> list[tuple[str, list[int]]]:
    """The (text, ids) pairs that llama.cpp publishes beside a vocabulary."""
    inputs = path.with_name(path.name + ".inp").read_bytes().decode()
    outputs = path.with_name(path.name + ".out").read_text()
    texts = inputs.split("\n__ggml_vocab_test__\n")
    ids = [[int(token_id) for token_id in line.split()] for line in outputs.split("\n")]
    return list(zip(texts, ids, strict=True))


def wire(values: Mapping[str, object]) -> dict[str, object]:
    """Metadata with `tokenizer.ggml.` before every key."""
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()}


def spm_toy(*extra: tuple[str, int]) -> dict[str, object]:
    """<unk> <s> </s>, 256 bytes (3 … 258), "▁", a … z, then `extra` (token, type) from id 286."""
    tokens = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]
    tokens += [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]
    tokens += [(character, NORMAL) for character in "▁abcdefghijklmnopqrstuvwxyz"]
    tokens += extra
    return wire(
        {
            "model": "llama",
            "tokens": [token for token, _ in tokens],
            "scores": [-float(token_id) for token_id in range(len(tokens))],
            "token_type": [token_type for _, token_type in tokens],
        }
    )


def bert_toy(**more: object) -> dict[str, object]:
    """[PAD] [UNK] [CLS] [SEP] [MASK], then play, ##ing, the, a full stop, from id 5."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "▁play", "ing", "▁the", "▁."]
    types = [CONTROL] * 5 + [NORMAL] * 4
    return wire({"model": "bert", "tokens": tokens, "token_type": types, **more})


@cache
def trained_bpe() -> Tokenizer:
    """GPT-2's kind of tokenizer with 400 tokens, trained on `SENTENCES`."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    library.train_from_iterator(SENTENCES * 2, trainer)
    return library


def bpe_metadata(*extra: tuple[str, int], pre: str = "gpt-2", **more: object) -> dict[str, object]:
    """`trained_bpe` as GGUF metadata, with `extra` (token, type) after its tokens."""
    model = json.loads(trained_bpe().to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return wire(
        {
            "model": "gpt2",
            "pre": pre,
            "tokens": [*tokens, *(token for token, _ in extra)],
            "token_type": [NORMAL] * len(tokens) + [token_type for _, token_type in extra],
            "merges": [" ".join(pair) for pair in model["merges"]],
            **more,
        }
    )


def llama_like_json(words: Sequence[str] = ("▁a", "ab", "▁ab", "bc")) -> Tokenizer:
    """Llama 2's pipeline over <unk> <s> </s>, 256 bytes, "▁abc" and `words`; BOS is put first."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abc", *words]
    merges = [("▁", "a"), ("a", "b"), ("▁", "ab"), ("b", "c")]
    library = Tokenizer(
        models.BPE(
            vocab={token: token_id for token_id, token in enumerate(tokens)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    library.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    library.add_special_tokens(
        [AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")]
    )
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return library


def bert_like_json() -> Tokenizer:
    """BERT's pipeline over a few words; [CLS] and [SEP] go around a text."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "##ing", "the", ".", "n't"]
    library = Tokenizer(
        models.WordPiece(
            vocab={token: token_id for token_id, token in enumerate(tokens)}, unk_token="[UNK]"
        )
    )
    library.normalizer = normalizers.BertNormalizer()
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    library.add_special_tokens(tokens[:5])
    library.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return library
