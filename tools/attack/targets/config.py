"""config.json of a llama and of each family of encoders, and the files beside it."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from refllm.bert import ACTIVATIONS
from tools.attack.models import (
    PIECES,
    ROPE_SCALINGS,
    WORDPIECES,
    config_of,
    folder_of,
    sentencepiece_file,
    stored_folder,
    write_files,
)
from tools.attack.mutate import ODD_FLOATS, ODD_INTEGERS, damaged_json_text, odd_value
from tools.attack.reading import read_model, view_of, warm_up
from tools.attack.target import Input, Target

__all__ = ["TARGET"]

FAMILIES = ("llama", "llama", "llama", "bert", "roberta", "distilbert", "mpnet")

# Keys that change what is computed, and those of other networks.
OPTIONAL: dict[str, tuple[object, ...]] = {
    "head_dim": (2, 3, 16, 2**20),
    "num_key_value_heads": (1, 2, 3, None),
    "num_hidden_layers": (0, 1, 2, 4096),
    "max_position_embeddings": (1, 2, 24, 26, 2**20, 2**31),
    "rope_theta": ODD_FLOATS,
    "rms_norm_eps": ODD_FLOATS,
    "layer_norm_eps": ODD_FLOATS,
    "sliding_window": (None, 0, 1, 64, 4096),
    "layer_types": (["full_attention"], ["sliding_attention"], [None], "full_attention"),
    "partial_rotary_factor": (1, 1.0, 0.5),
    "tie_word_embeddings": (True, False, None, 1),
    "attention_bias": (True, False, None),
    "mlp_bias": (True, None),
    "hidden_act": (*ACTIVATIONS, "silu", "swish", "gelu_new", "gelu_fast", None),
    "activation": (*ACTIVATIONS, None),
    "pad_token_id": (None, 0, 1, 2, 22, 23, 24, -1),
    "type_vocab_size": (0, 1, 2, 3, None),
    "position_embedding_type": ("absolute", "relative_key", None),
    "relative_attention_num_buckets": (32, 64, 0),
    "sinusoidal_pos_embds": (True, False),
    "is_decoder": (True, False),
    "model_type": ("llama", "bert", "roberta", "xlm-roberta", "camembert", "mpnet", "mistral"),
    "architectures": (["BertModel"], ["LlamaForCausalLM"], ["RobertaForMaskedLM", 3], [], None),
    "quantization_config": ({}, {"quant_method": "gptq"}, None, "awq"),
    "original_max_position_embeddings": (1, 16, 64, 2**31),
    "eos_token_id": (2, [2, 1], [], None, -1, 10**6, [None]),
    "bos_token_id": (1, None, -1, 10**6),
    "tokenizer_class": ("LlamaTokenizer", "BertTokenizer", "GPT2Tokenizer", "XLMRobertaTokenizer"),
    "rope_scaling": (None, *(next(iter(one.values())) for one in ROPE_SCALINGS if one)),
}
OPTIONAL_OF_TOKENIZER: dict[str, tuple[object, ...]] = {
    "tokenizer_class": (
        *("LlamaTokenizerFast", "CodeLlamaTokenizer", "BertTokenizer", "MPNetTokenizer"),
        *("GPT2Tokenizer", "RobertaTokenizer", "XLMRobertaTokenizer", "PreTrainedTokenizerFast"),
    ),
    "add_prefix_space": (True, False, None),
    "legacy": (True, False, None),
    "add_bos_token": (True, False),
    "add_eos_token": (True, False),
    "do_lower_case": (True, False, None),
    "strip_accents": (True, False, None),
    "tokenize_chinese_chars": (True, False, None),
    "added_tokens_decoder": (
        *({}, None, {"0": {"content": "<unk>"}}, {"27": {"content": "<new>", "special": True}}),
        *({"999999999": {"content": "<far>"}}, {"-1": {"content": "<s>"}}, {"²": {"content": "a"}}),
        *(
            {"1": {"content": "e"}},
            {"3": {"content": "", "lstrip": True}},
            {"3": {"content": "a b"}},
        ),
    ),
    "extra_special_tokens": ({}, {"a": "<a>"}, ["<a>", "<b>"], [""]),
    "additional_special_tokens": (["<a>"], ["<s>", ""], [{"content": "<b>", "rstrip": True}]),
    "eos_token": ("</s>", "", "<no>", {"content": "</s>", "lstrip": True}, "[SEP]"),
    "chat_template": ("", [], [{"name": "default", "template": "a"}], {"default": "b"}, 3),
}
OF_SENTENCEPIECE = 0.3


def _build(random: Random, folder: Path) -> Input:
    family = random.choice(FAMILIES)
    tensors, files = folder_of(family)
    n_vocab = len(PIECES) + 3 if family == "llama" else len(WORDPIECES)
    config = config_of(family, n_vocab, random.randrange(len(ROPE_SCALINGS)))
    files = {**files, "config.json": json.dumps(config).encode()}
    files["model.safetensors"] = tensors.to_bytes()
    if family == "llama" and random.random() < OF_SENTENCEPIECE:
        del files["tokenizer.json"]
        files["tokenizer.model"] = sentencepiece_file()
    companions = [name for name in files if name.endswith("_config.json") or "tokens" in name]
    for name in companions:
        if random.random() < 0.3:
            del files[name]
    names = ["config.json", "config.json", *(name for name in companions if name in files)]
    for name in random.sample(names, random.choice((1, 1, 1, 2)) if len(names) > 2 else 1):
        content = json.loads(files[name]) if files[name][:1] == b"{" else {}
        files[name] = _damaged(random, name, content)
    if random.random() < 0.01:
        del files[random.choice([*files])]
    return Input((folder, view_of(random)), write_files(folder, files))


def _damaged(random: Random, name: str, content: dict[str, Any]) -> bytes:
    known = OPTIONAL_OF_TOKENIZER if name == "tokenizer_config.json" else OPTIONAL
    if random.random() < 0.5:
        for _ in range(random.choice((1, 1, 2, 3))):
            key = random.choice([*known])
            content[key] = random.choice((*known[key], *known[key], odd_value(random)))
        if random.random() < 0.7:
            return json.dumps(content).encode()
    elif random.random() < 0.2 and content:
        # A whole number of hundreds of digits is a number, too, and to float64 it is none.
        content[random.choice([*content])] = random.choice(ODD_INTEGERS)
        return json.dumps(content).encode()
    return damaged_json_text(random, content)


def _prepare(folder: Path) -> None:
    for family in dict.fromkeys(FAMILIES):
        for variant in range(len(ROPE_SCALINGS)):
            files = stored_folder(family, variant)
            write_files(folder, files)
            warm_up(folder)
            for name in files:
                (folder / name).unlink()
            if family != "llama":
                break
    for activation in ACTIVATIONS.values():
        activation(np.zeros((2, 32), np.float32))


def _read(given: Input) -> bytes:
    folder, (parts, numerics) = given.value
    return read_model(folder, parts, numerics)


TARGET = Target(
    name="config",
    what="config.json and the JSON files beside it",
    weight=150,
    build=_build,
    read=_read,
    prepare=_prepare,
)
