"""tokenizer.json of each kind of model, with every stage that the library knows."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from refllm.tokenizer import tokenizer_from_file, tokenizer_from_folder
from tools.attack.models import SPECIAL_FILES, added_token, template_processing, tokenizer_json
from tools.attack.mutate import (
    ODD_INTEGERS,
    ODD_TEXTS,
    damaged_bytes,
    damaged_json,
    damaged_json_text,
    damaged_text,
)
from tools.attack.reading import TEXTS, read_tokenizer
from tools.attack.target import Input, Target

__all__ = ["TARGET"]

Json = dict[str, Any]

KINDS = ("WordPiece", "BPE", "Unigram", "ByteLevel")
WEIGHTS = (4, 4, 3, 1)  # of the last, whose vocabulary is the largest
REGEXES = (
    r"\s+",
    r"\p{L}+",
    "[a-z]",
    "(?i:'s|'t)",
    "",
    "(",
    "a*",
    "^",
    r"(?=a)",
    r"\b",
    ".",
    "[[:alpha:]]",
)
PATTERNS: Sequence[Json] = (
    {"String": " "},
    {"String": ""},
    {"String": "▁"},
    {"String": "e"},
    *({"Regex": regex} for regex in REGEXES),
)
BEHAVIORS = ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous", "None")


def _normalizer(random: Random, depth: int = 0) -> Json | None:
    flags = (True, False, None)
    kind = random.randrange(11 if depth < 3 else 10)
    return (
        (
            {"type": "Lowercase"},
            {"type": random.choice(("NFC", "NFD", "NFKC", "NFKD", "Nmt", "StripAccents"))},
            {
                "type": "Strip",
                "strip_left": random.choice(flags),
                "strip_right": random.choice(flags),
            },
            {"type": "Prepend", "prepend": random.choice(("▁", "", "a", " ", "é" * 100))},
            {
                "type": "Replace",
                "pattern": random.choice(PATTERNS),
                "content": random.choice(("▁", "", " ", "ab", "\0")),
            },
            {
                "type": "BertNormalizer",
                "clean_text": random.choice(flags),
                "handle_chinese_chars": random.choice(flags),
                "strip_accents": random.choice(flags),
                "lowercase": random.choice(flags),
            },
            {
                "type": "Precompiled",
                "precompiled_charsmap": random.choice(("", "AAAA", "BAAAAAAAAAA=")),
            },
            {"type": "ByteLevel"},
            None,
            {"type": random.choice(("Sequence", "", "Lower", "NFX"))},
            None,
        )[kind]
        if kind != 10
        else {
            "type": "Sequence",
            "normalizers": [_normalizer(random, depth + 1) for _ in range(random.randrange(4))],
        }
    )


def _pre_tokenizer(random: Random, depth: int = 0) -> Json | None:
    kind = random.randrange(11 if depth < 3 else 10)
    if kind == 10:
        steps = [_pre_tokenizer(random, depth + 1) for _ in range(random.randrange(4))]
        return {"type": "Sequence", "pretokenizers": steps}
    flag = random.random() < 0.5
    return (
        {"type": random.choice(("BertPreTokenizer", "Whitespace", "WhitespaceSplit"))},
        {"type": "ByteLevel", "add_prefix_space": flag, "trim_offsets": flag, "use_regex": flag},
        {
            "type": "Metaspace",
            "replacement": random.choice(("▁", "_", "", "ab", " ")),
            "prepend_scheme": random.choice(("always", "first", "never", "no")),
            "split": flag,
        },
        {
            "type": "Split",
            "pattern": random.choice(PATTERNS),
            "behavior": random.choice(BEHAVIORS),
            "invert": flag,
        },
        {"type": "Punctuation", "behavior": random.choice(BEHAVIORS)},
        {"type": "Digits", "individual_digits": flag},
        {"type": "CharDelimiterSplit", "delimiter": random.choice((" ", "a", "", "ab"))},
        {"type": "UnicodeScripts"},
        {"type": "FixedLength", "length": random.choice((1, 5, 0, 2**32))},
        None,
    )[kind]


def _decoder(random: Random, depth: int = 0) -> Json | None:
    kind = random.randrange(11 if depth < 3 else 10)
    if kind == 10:
        steps = [_decoder(random, depth + 1) for _ in range(random.randrange(5))]
        return {"type": "Sequence", "decoders": steps}
    flag = random.random() < 0.5
    return (
        {"type": random.choice(("ByteFallback", "Fuse"))},
        {"type": "ByteLevel", "add_prefix_space": flag, "trim_offsets": flag, "use_regex": flag},
        {"type": "WordPiece", "prefix": random.choice(("##", "", "a")), "cleanup": flag},
        {
            "type": "Metaspace",
            "replacement": random.choice(("▁", "_")),
            "prepend_scheme": random.choice(("always", "first", "never")),
            "split": flag,
        },
        {
            "type": "Replace",
            "pattern": random.choice(PATTERNS),
            "content": random.choice((" ", "")),
        },
        {
            "type": "Strip",
            "content": random.choice((" ", "a", "", "ab")),
            "start": random.choice((0, 1, 2, 10**6)),
            "stop": random.choice((0, 1, 10**6)),
        },
        {"type": "BPEDecoder", "suffix": random.choice(("</w>", ""))},
        {
            "type": "CTC",
            "pad_token": "<pad>",
            "word_delimiter_token": "|",
            "cleanup": flag,
        },
        None,
        {"type": random.choice(("", "Sequence", "Fuze"))},
    )[kind]


def _post_processor(random: Random, depth: int = 0) -> Json | None:
    kind = random.randrange(6 if depth < 3 else 5)
    if kind == 5:
        steps = [_post_processor(random, depth + 1) for _ in range(random.randrange(4))]
        return {"type": "Sequence", "processors": steps}
    flag = random.random() < 0.5
    token = random.choice(("[SEP]", "<s>", "the", "no such"))
    pair: list[Any] = [token, random.choice((0, 1, 2, 3, 10**6, 2**32 - 1))]
    if kind == 0:
        before = {random.choice(("[CLS]", "<s>", "a")): random.choice((0, 1, 2, 10**6))}
        processing: Json = damaged_json(random, template_processing(before, {token: pair[1]}))
        return processing
    return (
        None,
        None,
        {"type": "BertProcessing", "sep": pair, "cls": ["[CLS]", 2]},
        {
            "type": "RobertaProcessing",
            "sep": pair,
            "cls": ["<s>", 1],
            "trim_offsets": flag,
            "add_prefix_space": flag,
        },
        {"type": "ByteLevel", "add_prefix_space": flag, "trim_offsets": flag, "use_regex": flag},
    )[kind]


STAGES: dict[str, Callable[[Random], Json | None]] = {
    "normalizer": _normalizer,
    "pre_tokenizer": _pre_tokenizer,
    "decoder": _decoder,
    "post_processor": _post_processor,
}


# Damage to a document


def _replace_stage(random: Random, document: Json) -> None:
    name = random.choice([*STAGES])
    document[name] = STAGES[name](random)


def _damage_stage(random: Random, document: Json) -> None:
    name = random.choice((*STAGES, "truncation", "padding", "added_tokens"))
    if isinstance(document.get(name), dict | list):
        document[name] = damaged_json(random, document[name])


def _cut(random: Random, document: Json) -> None:
    document["truncation"] = {
        "direction": random.choice(("Right", "Left", "Up")),
        "max_length": random.choice((0, 1, 2, 3, 8, 512, 2**63, -1, 2**64)),
        "strategy": random.choice(("LongestFirst", "OnlyFirst", "OnlySecond", "")),
        "stride": random.choice((0, 0, 0, 1, 2, 8, 2**63)),
    }
    if random.random() < 0.3:
        document["padding"] = {
            "strategy": random.choice(("BatchLongest", {"Fixed": random.choice((0, 8, 2**40))})),
            "direction": "Right",
            "pad_to_multiple_of": random.choice((None, 0, 8, 2**63)),
            "pad_id": random.choice((0, 2**32 - 1, 2**32)),
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        }


def _add_token(random: Random, document: Json) -> None:
    content = random.choice(("the", "cat", " ", "<new>", "[CLS]", "<s>", "t", *ODD_TEXTS))
    vocabulary = document["model"]["vocab"]
    known = vocabulary if isinstance(vocabulary, dict) else {}
    token_id = known.get(content, len(vocabulary))  # the one that the library gives it
    if random.random() < 0.3:
        token_id = random.choice((0, 1, 2, 3, 24, 25, 26, 27, 28, 300, *ODD_INTEGERS))
    token = added_token(token_id, content, special=random.random() < 0.5)
    for flag in ("single_word", "lstrip", "rstrip", "normalized"):
        token[flag] = random.random() < 0.3
    document["added_tokens"].insert(random.randrange(len(document["added_tokens"]) + 1), token)


def _change_vocabulary(random: Random, document: Json) -> None:
    model = document["model"]
    for _ in range(random.choice((1, 1, 2, 5))):
        text = random.choice((*ODD_TEXTS, "##a", "▁a", "<0x00>", "<0xZZ>", "ab"))
        if isinstance(model["vocab"], dict):
            names = [*model["vocab"]]
            name = random.choice(names or [""])
            kind = random.randrange(4)
            if kind == 0:
                model["vocab"].pop(name, None)
            elif kind == 1:
                model["vocab"][name] = random.choice((0, 1, 5, 24, 30, 90, *ODD_INTEGERS))
            elif kind == 2:
                model["vocab"][text] = random.choice((len(names), len(names) + 1, 0, 2))
            else:
                model["vocab"][text] = model["vocab"].pop(name, 0)
        else:
            place = random.randrange(len(model["vocab"]) + 1)
            score = random.choice((0.0, -1.0, 1.0, -1e308, 1e308, 1e-300, 1, float("nan"), -1e400))
            kind = random.randrange(3)
            if kind == 0 or place == len(model["vocab"]):
                model["vocab"].insert(place, [text, score])
            elif kind == 1:
                del model["vocab"][place]
            else:
                entry = model["vocab"][place]
                spelling = entry[0] if isinstance(entry, list) and entry else text
                model["vocab"][place] = [random.choice((text, spelling)), score]


def _change_model(random: Random, document: Json) -> None:
    model = document["model"]
    kind = random.randrange(6)
    merges = model.get("merges")
    if kind == 0 and isinstance(merges, list):
        tokens = ("h", "e", "▁", "the", "no", "", "a b")
        merge = [random.choice(tokens), random.choice(tokens)]
        new = random.choice((" ".join(merge), merge, [*merge, "x"], damaged_text(random, "h e")))
        merges.insert(random.randrange(len(merges) + 1), new)
        if random.random() < 0.3:
            model["merges"] = [
                merge.split(" ") if isinstance(merge, str) else merge for merge in merges
            ]
    elif kind == 1:
        model["unk_token"] = random.choice((None, "", "<unk>", "[UNK]", "no such", "the"))
        model["unk_id"] = random.choice((None, 0, 1, 25, 10**6, 2**63, -1))
    elif kind == 2:
        model["type"] = random.choice(("BPE", "WordPiece", "WordLevel", "Unigram", "", None))
    elif kind == 3:
        for name in ("byte_fallback", "fuse_unk", "ignore_merges"):
            model[name] = random.choice((True, False, None))
    elif kind == 4:
        model["dropout"] = random.choice((None, 0, 0.0, 0.5, 1.0, 1.5, -1.0, float("nan")))
        model["continuing_subword_prefix"] = random.choice((None, "", "##", "a"))
        model["end_of_word_suffix"] = random.choice((None, "", "</w>", "e"))
        model["max_input_chars_per_word"] = random.choice((0, 1, 100, 2**63, 2**64, -1))
    else:
        document["model"] = damaged_json(random, model)


DAMAGES: Sequence[Callable[[Random, Json], None]] = (
    *(_replace_stage, _replace_stage, _replace_stage, _damage_stage, _damage_stage, _cut),
    *(_add_token, _add_token, _change_vocabulary, _change_vocabulary, _change_model, _change_model),
)


def _build(random: Random, folder: Path) -> Input:
    document = copy.deepcopy(tokenizer_json(random.choices(KINDS, WEIGHTS)[0]))
    for _ in range(random.choice((1, 1, 1, 2, 3, 5))):
        if isinstance(document.get("model"), dict) and "vocab" in document["model"]:
            vocabulary = document["model"]["vocab"]
            if isinstance(vocabulary, dict | list) and isinstance(document["added_tokens"], list):
                random.choice(DAMAGES)(random, document)
    kind = random.random()
    if kind < 0.75:
        data = json.dumps(document, ensure_ascii=random.random() < 0.5).encode("utf-8", "replace")
    elif kind < 0.93:
        data = damaged_json_text(random, document)
    else:
        data = damaged_bytes(random, json.dumps(document).encode())
    (folder / "tokenizer.json").write_bytes(data)
    n_bytes = len(data)
    is_alone = random.random() < 0.5
    if not is_alone:
        for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
            if random.random() < 0.3:
                beside = damaged_json_text(random, SPECIAL_FILES[name])
                (folder / name).write_bytes(beside)
                n_bytes += len(beside)
    return Input((folder, is_alone), n_bytes)


def _read(given: Input) -> bytes:
    folder, is_alone = given.value
    if is_alone:
        return read_tokenizer(tokenizer_from_file(folder / "tokenizer.json"))
    return read_tokenizer(tokenizer_from_folder(folder))


def _prepare(folder: Path) -> None:
    for kind in KINDS:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(kind)))
        assert read_tokenizer(tokenizer_from_file(folder / "tokenizer.json"))
    assert TEXTS


TARGET = Target(
    name="tokenizer-json",
    what="tokenizer.json",
    weight=200,
    build=_build,
    read=_read,
    prepare=_prepare,
)
