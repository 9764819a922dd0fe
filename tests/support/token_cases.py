"""Tokenizers whose right ids other libraries give; `tools/peer_values/tokens.py` records them.

FOLDERS    name to a model's folder: its files; AutoTokenizer of transformers reads them
WORD_RULES names of rules by which llama.cpp cuts words; `words_metadata` makes a vocabulary
GGUFS      name to the metadata of a GGUF file; llama.cpp reads them
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tests.support.model_files import write_tokenizer_model
from tests.support.vocabularies import (
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    bert_like_json,
    bert_toy,
    bpe_metadata,
    llama_like_json,
    spm_toy,
    trained_bpe,
    wire,
)

__all__ = [
    "BERT_WORDS",
    "FOLDERS",
    "GGUFS",
    "TEXTS",
    "UNIGRAM",
    "WORD_RULES",
    "WORD_TEXTS",
    "charsmap",
    "unigram_metadata",
    "words_metadata",
    "write_folder",
]

LLAMA: dict[str, object] = {"model_type": "llama"}
BERT: dict[str, object] = {"model_type": "bert"}
TEXTS = (
    "",
    "abc",
    " abc",
    "The  Café\n玩play.",
    "a <|x|> b<|x|>c",
    "a<|y|> \n b <|y|>",
    "<|x|>user\nab<|y|> \n<|x|>c",
    "ab<|x|>ab <tool>ab<tool> <tool>.",
    "<s>a</s>b <mask> [MASK]",
)
FLAGS = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
X_AND_Y = {
    "<|x|>": FLAGS | {"rstrip": True, "special": True},
    "<|y|>": FLAGS | {"lstrip": True, "special": True},
    "<tool>": FLAGS | {"single_word": True, "special": False},
}

Files = Mapping[str, object]


def decoder(first: int, *, tokens: Mapping[str, Mapping[str, bool]] = X_AND_Y) -> dict[str, object]:
    """`added_tokens_decoder` with the tokens from the id `first` on."""
    return {
        str(first + i): {"content": token, **flags}
        for i, (token, flags) in enumerate(tokens.items())
    }


def llama_json() -> dict[str, Any]:
    """`llama_like_json` as a document."""
    document: dict[str, Any] = json.loads(llama_like_json().to_str())
    return document


def bert_json(**normalizer: object) -> dict[str, Any]:
    """`bert_like_json` as a document, with other options of its normalizer."""
    document: dict[str, Any] = json.loads(bert_like_json().to_str())
    document["normalizer"] |= normalizer
    return document


def roberta_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """RoBERTa's special tokens, then `trained_bpe`; and its merges."""
    model = json.loads(trained_bpe().to_str())["model"]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(model["vocab"], key=model["vocab"].get)]
    tokens.append("<mask>")
    merges = [(left, right) for left, right in model["merges"]]
    return {token: token_id for token_id, token in enumerate(tokens)}, merges


def roberta_files(**config: object) -> Files:
    """vocab.json and merges.txt."""
    vocabulary, merges = roberta_vocabulary()
    return {
        "vocab.json": vocabulary,
        "merges.txt": "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges),
        "config.json": {"model_type": "roberta"},
        "tokenizer_config.json": {"tokenizer_class": "RobertaTokenizer", **config},
    }


def gpt2_json() -> dict[str, Any]:
    """`trained_bpe` as a document, with <|endoftext|>."""
    library = Tokenizer.from_str(trained_bpe().to_str())
    library.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    document: dict[str, Any] = json.loads(library.to_str())
    return document


def nfc_json() -> dict[str, Any]:
    """Qwen's normalizer over `trained_bpe`."""
    library = Tokenizer.from_str(trained_bpe().to_str())
    library.normalizer = normalizers.NFC()
    library.decoder = decoders.Sequence([decoders.ByteLevel()])
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    document: dict[str, Any] = json.loads(library.to_str())
    return document


BERT_WORDS = [*("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), "cafe", "café", "Café", "the", "The"]
BERT_WORDS += ["play", "##ing", ".", "玩", "##a", "##b", "##c", "a", "b", "c", "##play", "<", ">"]
VOCAB_TXT = "\n".join(BERT_WORDS) + "\n"


def bert_words_json(**normalizer: object) -> dict[str, Any]:
    """BERT's pipeline over `BERT_WORDS`."""
    document = bert_json(**normalizer)
    document["model"]["vocab"] = {token: token_id for token_id, token in enumerate(BERT_WORDS)}
    return document


def bert_case(config: Mapping[str, object], **normalizer: object) -> Files:
    """A BERT's tokenizer.json beside a tokenizer_config.json."""
    return {
        "tokenizer.json": bert_words_json(**normalizer),
        "config.json": BERT,
        "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", **config},
    }


def llama_case(config: Mapping[str, object], **more: object) -> Files:
    """Llama 2's kind of tokenizer.json beside a tokenizer_config.json."""
    return {
        "tokenizer.json": llama_json(),
        "config.json": LLAMA,
        "tokenizer_config.json": config,
        **more,
    }


def model_case(config: Mapping[str, object], **more: object) -> Files:
    """A tokenizer.model beside a tokenizer_config.json that has transformers add BOS as we do."""
    return {
        "tokenizer.model": "spm",
        "config.json": LLAMA,
        "tokenizer_config.json": {
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": True,
            **config,
        },
        **more,
    }


def xlmr_json(*, splits: bool = False) -> dict[str, Any]:
    """`UNIGRAM` in bge-m3's kind of tokenizer.json, or cut at white space first, as XLM-R's."""
    tokens = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *UNIGRAM]
    library = Tokenizer(models.Unigram([*tokens, ("<mask>", 0.0)], unk_id=3))
    collapse = normalizers.Replace(Regex(" {2,}"), " ")
    table = normalizers.Precompiled(bytes(charsmap()))
    library.normalizer = normalizers.Sequence([table, collapse])
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    library.pre_tokenizer = metaspace
    if splits:
        white = pre_tokenizers.WhitespaceSplit()
        library.pre_tokenizer = pre_tokenizers.Sequence([white, metaspace])
    library.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    library.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    library.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False)])
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    document: dict[str, Any] = json.loads(library.to_str())
    return document


def xlmr_case(name: str, *, splits: bool = False, **config: object) -> Files:
    """XLM-R's kind of tokenizer.json beside a tokenizer_config.json of the class."""
    kind = {"XLMRobertaTokenizer": "xlm-roberta", "CamembertTokenizer": "camembert"}
    return {
        "tokenizer.json": xlmr_json(splits=splits),
        "config.json": {"model_type": kind[name]},
        "tokenizer_config.json": {"tokenizer_class": name, **config},
    }


CODE_LLAMA: dict[str, object] = {
    "tokenizer_class": "CodeLlamaTokenizer",
    "fill_token": "<FILL_ME>",
    "prefix_token": "▁<PRE>",
    "legacy": None,
}
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

FOLDERS: dict[str, Files] = {
    "llama: added_tokens_decoder": llama_case({**FAST, "added_tokens_decoder": decoder(267)}),
    "llama: added_tokens.json": llama_case(
        {**FAST, "eos_token": "<|y|>"},
        **{"added_tokens.json": {"<|x|>": 267, "<|y|>": 268, "<tool>": 269}},
    ),
    "llama: additional_special_tokens": llama_case(
        FAST, **{"special_tokens_map.json": {"additional_special_tokens": ["<|x|>", "<|y|>"]}}
    ),
    "llama: the decoder wins": llama_case(
        {**FAST, "added_tokens_decoder": decoder(267), "eos_token": "<|x|>"},
        **{
            "special_tokens_map.json": {"eos_token": "</s>"},
            "added_tokens.json": {"<|z|>": 267},
        },
    ),
    "llama: the map wins": llama_case(
        {**FAST, "eos_token": "<s>"}, **{"special_tokens_map.json": {"eos_token": "</s>"}}
    ),
    "llama: a named piece is special": llama_case({**FAST, "eos_token": "ab"}),
    "llama: normalized": llama_case(
        {**FAST, "added_tokens_decoder": decoder(267, tokens={"a b": FLAGS | {"normalized": True}})}
    ),
    "llama: add_bos_token false": llama_case({**FAST, "add_bos_token": False}),
    "llama: legacy of another class": llama_case({**FAST, "legacy": False}),
    "llama: legacy true": llama_case(
        {"tokenizer_class": "LlamaTokenizer", "legacy": True, "added_tokens_decoder": decoder(267)}
    ),
    "llama: legacy false": llama_case(
        {"tokenizer_class": "LlamaTokenizer", "legacy": False, "added_tokens_decoder": decoder(267)}
    ),
    "llama: no space first": llama_case(
        {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False, **SPECIAL}
    ),
    "model: added_tokens_decoder": model_case(
        {"legacy": True, "added_tokens_decoder": decoder(289)}
    ),
    "model: added_tokens.json": model_case(
        {"legacy": True, "eos_token": "<|y|>"},
        **{"added_tokens.json": {"<|x|>": 289, "<|y|>": 290, "<tool>": 291}},
    ),
    "model: legacy false": model_case({"legacy": False, "added_tokens_decoder": decoder(289)}),
    "model: no space first": model_case({"add_prefix_space": False}),
    "model: add_eos_token": model_case({"legacy": True, "add_eos_token": True}),
    "model: additional_special_tokens": model_case(
        {"legacy": True, "additional_special_tokens": ["<|x|>", "<|y|>"]}
    ),
    "bert: as tokenizer.json says": bert_case({}),
    "bert: do_lower_case": bert_case({"do_lower_case": False}),
    "bert: do_lower_case, other way": bert_case({"do_lower_case": True}, lowercase=False),
    "bert: strip_accents": bert_case({"strip_accents": False}),
    "bert: strip_accents null": bert_case(
        {"do_lower_case": False, "strip_accents": None}, strip_accents=True
    ),
    "bert: tokenize_chinese_chars": bert_case({"tokenize_chinese_chars": False}),
    "bert: all": bert_case(
        {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False}
    ),
    "bert: another class": {
        **bert_case({"do_lower_case": False}),
        "tokenizer_config.json": {**FAST, "do_lower_case": False},
    },
    "bert: no class": {
        **bert_case({}),
        "tokenizer_config.json": {"do_lower_case": False},
    },
    "bert: vocab.txt": {"vocab.txt": VOCAB_TXT, "config.json": BERT},
    "bert: vocab.txt, cased": {
        "vocab.txt": VOCAB_TXT,
        "config.json": BERT,
        "tokenizer_config.json": {"do_lower_case": False, "tokenizer_class": "BertTokenizer"},
    },
    "distilbert: vocab.txt": {
        "vocab.txt": VOCAB_TXT,
        "config.json": {"model_type": "distilbert"},
        "tokenizer_config.json": {"do_lower_case": False, "tokenizer_class": "DistilBertTokenizer"},
    },
    "roberta: vocab.json and merges.txt": roberta_files(),
    "roberta: add_prefix_space": roberta_files(add_prefix_space=True),
    "gpt2: add_prefix_space": {
        "tokenizer.json": gpt2_json(),
        "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True},
        "config.json": {"model_type": "gpt2"},
    },
    "gpt2: add_prefix_space of another class": {
        "tokenizer.json": gpt2_json(),
        "tokenizer_config.json": {**FAST, "add_prefix_space": True},
        "config.json": {"model_type": "gpt2"},
    },
    "xlm-roberta: sentencepiece.bpe.model": {
        "sentencepiece.bpe.model": "unigram",
        "config.json": {"model_type": "xlm-roberta"},
        "tokenizer_config.json": {"tokenizer_class": "XLMRobertaTokenizer"},
    },
    "codellama: add_prefix_space": llama_case({**CODE_LLAMA, "add_prefix_space": True}),
    "codellama: no space first": llama_case({**CODE_LLAMA, "add_prefix_space": False}),
    "qwen: NFC": {
        "tokenizer.json": nfc_json(),
        "tokenizer_config.json": FAST,
        "config.json": {"model_type": "llama"},
    },
}


def write_folder(folder: Path, files: Files) -> Path:
    """Write a model's folder: JSON files from objects, others as text; models of SentencePiece."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        if name == "tokenizer.model":
            write_tokenizer_model(path, spm_model())
        elif name == "sentencepiece.bpe.model":
            unigram_model(path)
        elif isinstance(content, str):
            path.write_text(content, "utf-8")
        else:
            path.write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    return folder


def spm_model() -> dict[str, object]:
    """`spm_toy` with three words, the best merges first."""
    metadata = spm_toy(("▁a", NORMAL), ("ab", NORMAL), ("bc", NORMAL))
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    n_made = 3
    scores = [-1e3] * (len(tokens) - n_made) + [-float(i) for i in range(1, n_made + 1)]
    return metadata | {"tokenizer.ggml.scores": scores}


def without(metadata: Mapping[str, object], *names: str) -> dict[str, object]:
    """The metadata without some keys."""
    left_out = {f"tokenizer.ggml.{name}" for name in names}
    return {key: value for key, value in metadata.items() if key not in left_out}


def with_types(metadata: Mapping[str, object], **types: int) -> dict[str, object]:
    """The metadata with other types, by "t" and the id."""
    changed = metadata["tokenizer.ggml.token_type"]
    assert isinstance(changed, list)
    listed = list(changed)
    for name, kind in types.items():
        listed[int(name.removeprefix("t"))] = kind
    return {**metadata, "tokenizer.ggml.token_type": listed}


HARMONY = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>"]
ENDS = (
    *("<EOT>", "_<EOT>", "[EOT]", "[EOS]", "[e~[", "<eos>", "<end_of_turn>", "<end_of_utterance>"),
    *("<turn|>", "<|calls|>", "<|end_of_text|>", "<|end|>", "<|endoftext|>", "<|eom_id|>"),
    *("<|eot_id|>", "<|im_end|>", "<|return|>", "<｜end▁of▁sentence｜>"),
)


def each(kind: int, *tokens: str) -> list[tuple[str, int]]:
    """The tokens, each with the same type."""
    return [(token, kind) for token in tokens]


def bpe_case(*extra: tuple[str, int], **keys: object) -> dict[str, object]:
    """`bpe_metadata` with an EOS, so that llama.cpp takes none by default."""
    return bpe_metadata(*extra) | wire({"bos_token_id": 0, "eos_token_id": 0, **keys})


UNIGRAM = (
    *(("▁the", -3.0), ("▁play", -4.0), ("ing", -4.5), ("▁", -5.0), ("a", -6.0), ("b", -6.1)),
    *(("c", -6.2), ("ab", -7.0), ("bc", -9.0), ("▁a", -5.5), (".", -5.2), ("the", -8.0)),
    *(("C", -7.5), ("f", -7.6), ("é", -7.7), ("<", -8.5), (">", -8.6), ("|", -8.7), ("x", -8.8)),
)


def unigram_model(path: Path) -> None:
    """A sentencepiece.bpe.model in XLM-R's shape, with NMT's normalization."""
    normalizer = sentencepiece.SentencePieceNormalizer(rule_name="nmt_nfkc")
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    model.ParseFromString(normalizer.serialized_model_proto())
    model.trainer_spec.model_type = model.trainer_spec.UNIGRAM
    for piece, kind in (("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)):
        model.pieces.add(piece=piece, score=0.0, type=kind)
    for piece, score in UNIGRAM:
        model.pieces.add(piece=piece, score=score, type=NORMAL)
    path.write_bytes(model.SerializeToString())


def charsmap() -> list[int]:
    """NMT's normalization, as a GGUF file has it."""
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    normalizer = sentencepiece.SentencePieceNormalizer(rule_name="nmt_nfkc")
    model.ParseFromString(normalizer.serialized_model_proto())
    return list(model.normalizer_spec.precompiled_charsmap)


def unigram_metadata(**keys: object) -> dict[str, object]:
    """`UNIGRAM` in the order of XLM-R, as GGUF metadata."""
    first = [("<s>", CONTROL), ("<pad>", CONTROL), ("</s>", CONTROL), ("<unk>", UNKNOWN)]
    tokens = [*first, *((piece, NORMAL) for piece, _ in UNIGRAM), ("<mask>", CONTROL)]
    named = {"bos": 0, "padding": 1, "eos": 2, "unknown": 3}
    return wire(
        {
            "model": "t5",
            "tokens": [token for token, _ in tokens],
            "token_type": [kind for _, kind in tokens],
            "scores": [*[0.0] * len(first), *(score for _, score in UNIGRAM), 0.0],
            **{f"{name}_token_id": token_id for name, token_id in named.items()},
            "add_bos_token": True,
            "add_space_prefix": True,
            "remove_extra_whitespaces": True,
            **keys,
        }
    )


FOLDERS |= {
    "xlm-roberta: add_prefix_space": xlmr_case("XLMRobertaTokenizer", add_prefix_space=True),
    "xlm-roberta: no space first": xlmr_case("XLMRobertaTokenizer", add_prefix_space=False),
    "xlm-roberta: cut at white space": xlmr_case("XLMRobertaTokenizer", splits=True),
    "camembert: add_prefix_space": xlmr_case("CamembertTokenizer", add_prefix_space=True),
    "camembert: no space first": xlmr_case("CamembertTokenizer", add_prefix_space=False),
}

# Texts that rules for words cut in other ways, and rules for which llama.cpp's ids are recorded.
WORD_TEXTS = (
    "I'LL we're Straße HelloWorld HTTPServer été e\u0301e x's y'D",
    "a1 1234567 12 3.14 v1234 1a2b 12,345.67",
    "日本語 漢字かな カタカナ 한국어 ไทย Привет，世界。 中文abc ａｂ！",
    "a  b    c \n\n d\n  \te\r\n f   ",
    'f(x) -> {a/b}//c; "q"!? ...\n--_x $5 €👍🏽 …“z”',
    "IMGIMGABZ <sentinel:3> a b c d1 e  f\n",
)
WORD_RULES = (
    *("bailingmoe", "chameleon", "deepseek-llm", "exaone-moe", "jais-2", "kimi-k2", "laguna"),
    *("minicpm5", "seed-coder", "spark2_5", "superbpe", "ufakzeka", "youtu"),
)


def words_metadata(pre: str) -> dict[str, object]:
    """GGUF metadata with a token for each long part of `WORD_TEXTS`, so that ids show each cut."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, show_progress=False, initial_alphabet=alphabet, min_frequency=1
    )
    parts = [text[i : i + n] for text in WORD_TEXTS for n in (2, 3, 5, 9) for i in range(len(text))]
    library.train_from_iterator(parts, trainer)
    model = json.loads(library.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return wire(
        {
            "model": "gpt2",
            "pre": pre,
            "tokens": tokens,
            "token_type": [NORMAL] * len(tokens),
            "merges": [" ".join(pair) for pair in model["merges"]],
            "bos_token_id": 0,
            "eos_token_id": 0,
            "add_bos_token": False,
        }
    )


GGUFS: dict[str, Callable[[], dict[str, object]]] = {
    "im_end typed NORMAL": lambda: spm_toy(("<|im_end|>", NORMAL)),
    "im_end typed USER_DEFINED": lambda: spm_toy(("<|im_end|>", USER_DEFINED)),
    "turns typed USER_DEFINED": lambda: spm_toy(*each(USER_DEFINED, "<|x|>", "<|y|>", "<tool>")),
    "a user-defined token beside a control token": lambda: spm_toy(
        ("<|x|>", CONTROL), ("<|x|>user", USER_DEFINED), (" <|y|>", USER_DEFINED), ("b<", CONTROL)
    ),
    "a user-defined token that has spaces": lambda: spm_toy(
        ("▁▁", USER_DEFINED), ("\n", USER_DEFINED), ("ab", UNUSED), ("▁<tool>", USER_DEFINED)
    ),
    "unused tokens": lambda: spm_toy(("ab", UNUSED), ("▁a", UNUSED), ("<tool>", UNUSED)),
    "unigram with user-defined tokens": lambda: with_types(unigram_metadata(), t11=USER_DEFINED),
    "im_end typed CONTROL": lambda: spm_toy(("<|im_end|>", CONTROL)),
    "every spelling typed NORMAL": lambda: bpe_case(*each(NORMAL, *ENDS)),
    "Gemma 4": lambda: spm_toy(*each(CONTROL, "<|tool_response>", "<turn|>")),
    "gpt-oss": lambda: bpe_case(*each(CONTROL, *HARMONY, "<|call|>")),
    "gpt-oss without call": lambda: bpe_case(*each(CONTROL, *HARMONY)),
    "Solar Open": lambda: bpe_case(*each(CONTROL, "<|end|>", "<|calls|>", "<|flush|>")),
    "fill in the middle, spelled": lambda: bpe_case(
        *each(NORMAL, "<|fim_prefix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")
    ),
    "fill in the middle, named": lambda: bpe_case(
        *each(NORMAL, "<|fim_pad|>", "<x>", "<y>", "<z>"),
        fim_pad_token_id=401,
        fim_rep_token_id=402,
        fim_sep_token_id=403,
    ),
    "a padding token": lambda: spm_toy(("[PAD]", NORMAL)),
    "keys": lambda: spm_toy(*each(NORMAL, "<x>", "<y>", "<z>"))
    | {
        "tokenizer.ggml.eos_token_id": 286,
        "tokenizer.ggml.eot_token_id": 287,
        "tokenizer.ggml.eom_token_id": 288,
    },
    "no scores": lambda: without(spm_model(), "scores"),
    "no types": lambda: without(spm_model(), "token_type"),
    "neither scores nor types": lambda: without(spm_model(), "scores", "token_type"),
    "two unknown tokens": lambda: with_types(spm_model(), t1=UNKNOWN, t0=UNKNOWN),
    "no unknown token": lambda: with_types(spm_model(), t0=NORMAL),
    "unigram": unigram_metadata,
    "unigram, normalized": lambda: unigram_metadata(precompiled_charsmap=charsmap()),
    "unigram, spaces kept": lambda: unigram_metadata(remove_extra_whitespaces=False),
    "bert without types": lambda: without(bert_toy(bos_token_id=2, seperator_token_id=3,
        unknown_token_id=1, padding_token_id=0, mask_token_id=4), "token_type"),
    "bpe without types": lambda: without(bpe_case(("<|im_end|>", CONTROL)), "token_type"),
}  # fmt: skip
