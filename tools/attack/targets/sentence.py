"""Folders of sentence-transformers: the modules behind an encoder, prompts and limits."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from refllm.pooling import ACTIVATIONS, POOLING_MODES
from tools.attack.models import Safetensors, safetensors, stored_folder, write_files
from tools.attack.mutate import ODD_INTEGERS, damaged_bytes, damaged_json_text, odd_value
from tools.attack.reading import read_model, view_of, warm_up
from tools.attack.target import Input, Target

__all__ = ["TARGET"]

Json = dict[str, Any]

OLD = "sentence_transformers.models."
NEW = "sentence_transformers.sentence_transformer.modules."
KINDS = ("Transformer", "Pooling", "Dense", "Normalize", "Dropout", "LSTM", "CNN")
PATHS = (
    "",
    "1_Pooling",
    "2_Dense",
    "3_Normalize",
    "..",
    "/etc",
    "a/b",
    ".",
    "1_Pooling/",
    "\0",
    "é" * 300,
)
TYPES = (
    *(f"torch.nn.modules.activation.{name}" for name in ACTIVATIONS),
    *("torch.nn.Tanh", "torch.nn.modules.linear.Identity", "os.system", "", "Tanh"),
)
SWITCHES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens")


def _right(random: Random) -> dict[str, Any]:
    """The files of a folder that is right, as JSON."""
    width = 32
    place = random.choice((OLD, NEW))
    modules = [{"idx": 0, "name": "0", "path": "", "type": f"{OLD}Transformer"}]
    files: dict[str, Any] = {"modules.json": modules}
    modes = random.choices(POOLING_MODES, k=random.choice((1, 1, 1, 2)))
    if random.random() < 0.5:
        pooling: Json = {"embedding_dimension": width, "pooling_mode": modes}
    else:
        pooling = {"word_embedding_dimension": width}
        pooling |= {f"pooling_mode_{name}": random.random() < 0.3 for name in SWITCHES}
    pooling["include_prompt"] = random.random() < 0.6
    files["1_Pooling/config.json"] = pooling
    kinds = ["Pooling"]
    if random.random() < 0.5:
        kinds.append("Dense")
        n_inputs = width * len(modes)
        files["2_Dense/config.json"] = {
            "in_features": n_inputs,
            "out_features": 16,
            "bias": True,
            "activation_function": random.choice(TYPES),
        }
        generator = np.random.default_rng(3)
        files["2_Dense/model.safetensors"] = safetensors(
            {
                "linear.weight": generator.standard_normal((16, n_inputs)).astype(np.float32),
                "linear.bias": generator.standard_normal(16).astype(np.float32),
            }
        )
    if random.random() < 0.5:
        kinds.append("Normalize")
    for number, kind in enumerate(kinds, 1):
        folder = f"{number}_{kind}"
        modules.append({"idx": number, "name": str(number), "path": folder, "type": place + kind})
    if random.random() < 0.7:
        files["sentence_bert_config.json"] = {"max_seq_length": 16, "do_lower_case": True}
    if random.random() < 0.7:
        files["config_sentence_transformers.json"] = {
            "__version__": {"sentence_transformers": "3.0.0"},
            "prompts": {"query": "the cat: ", "passage": ""},
            "default_prompt_name": random.choice((None, "query", "passage")),
            "similarity_fn_name": "cosine",
            "truncate_dim": random.choice((None, None, 8, 10**4)),
        }
    return files


def _change(random: Random, files: dict[str, Any]) -> None:
    """Give one key of one file a value that is wrong, or that another key has to fit."""
    kind = random.randrange(7)
    modules = files["modules.json"]
    pooling = files["1_Pooling/config.json"]
    dense = files.get("2_Dense/config.json", {})
    prompts = files.get("config_sentence_transformers.json", {})
    limits = files.get("sentence_bert_config.json", {})
    odd = odd_value(random)
    if kind == 0:
        module = random.choice(modules)
        module["type"] = random.choice((OLD, NEW, "my.", "")) + random.choice(KINDS)
    elif kind == 1:
        module = random.choice(modules)
        module[random.choice(("path", "name"))] = random.choice((*PATHS, odd))
    elif kind == 2:
        pooling["pooling_mode"] = random.choice(([*POOLING_MODES], ["mean"] * 500, [], "mean", odd))
    elif kind == 3:
        key = random.choice(("word_embedding_dimension", "embedding_dimension", "include_prompt"))
        pooling[key] = random.choice((*ODD_INTEGERS, odd))
    elif kind == 4:
        key = random.choice(("in_features", "out_features", "bias", "activation_function"))
        dense[key] = random.choice((*ODD_INTEGERS, True, False, *TYPES, odd))
    elif kind == 5:
        key = random.choice(("prompts", "default_prompt_name", "truncate_dim"))
        long = {"query": "the cat sat. " * 500, "a": None}
        prompts[key] = random.choice((*ODD_INTEGERS, long, "query", "a", "no such", odd))
    else:
        key = random.choice(("max_seq_length", "do_lower_case"))
        limits[key] = random.choice((*ODD_INTEGERS, True, False, odd))


def _build(random: Random, folder: Path) -> Input:
    files = _right(random)
    for _ in range(random.choice((0, 1, 1, 2))):
        _change(random, files)
    base = stored_folder("bert")
    written = {name: base[name] for name in ("config.json", "model.safetensors", "tokenizer.json")}
    damaged = random.choice([*files, None, None])
    for name, content in files.items():
        if isinstance(content, Safetensors):
            data = content.to_bytes()
            written[name] = damaged_bytes(random, data) if name == damaged else data
        elif name == damaged:
            written[name] = damaged_json_text(random, content)
        else:
            written[name] = json.dumps(content).encode()
    if random.random() < 0.05:
        del written[random.choice([*written])]
    return Input((folder, view_of(random)), write_files(folder, written))


def _read(given: Input) -> bytes:
    folder, (parts, numerics) = given.value
    return read_model(folder, parts, numerics)


def _prepare(folder: Path) -> None:
    from refllm.kernels import pooling

    rows = np.ones((3, 32), np.float32)
    for activation in ACTIVATIONS.values():
        activation(rows)
    for pool in (pooling.max_rows, pooling.mean_sqrt_rows):
        pool(rows)
    pooling.weighted_mean_rows(rows, 1)
    files = stored_folder("bert")
    write_files(folder, files)
    warm_up(folder)
    for name in files:
        (folder / name).unlink()


TARGET = Target(
    name="sentence",
    what="folders of sentence-transformers",
    weight=100,
    build=_build,
    read=_read,
    prepare=_prepare,
)
