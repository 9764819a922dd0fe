"""Folders of tiny random BERTs as sentence-transformers saves them, and the cases of pooling.

    CASES["cls, then normalized"].write(folder)

`tools.peer_values.pooling` records what sentence-transformers makes of each case, and
tests/networks/test_pooling.py compares.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.support.model_formats import (
    random_matrix,
    random_vector,
    safetensors_tensor,
    write_safetensors,
)
from tests.support.tiny_bert import tiny_bert_folder

__all__ = [
    "CASES",
    "GGUF_KEYS",
    "GGUF_TEXTS",
    "NORMALIZE",
    "TEXTS",
    "Case",
    "Module",
    "dense",
    "pooling",
    "recorded_places",
    "switches",
    "write_sentence_folder",
]

Array = NDArray[np.float32]
Config = Mapping[str, object]

# llama.cpp finds [CLS] and [SEP] only under these names.
GGUF_KEYS = {"tokenizer.ggml.bos_token_id": 2, "tokenizer.ggml.eos_token_id": 3}
GGUF_TEXTS = ("the cat sat on the mat.", "hello", "a dog, Hello WORLD!")
TEXTS = ("the cat sat on the mat.", "hello", "a dog, Hello [MASK] WORLD!")
WIDTH = 32  # of the tiny BERT
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
OLD_PLACE = "sentence_transformers.models."
NEW_PLACES = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Dense": "sentence_transformers.base.modules.dense.Dense",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
    "Dropout": "sentence_transformers.sentence_transformer.modules.dropout.Dropout",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One module behind the encoder: its class, and the files in its folder."""

    kind: str
    config: Config | None = None
    tensors: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A folder, and how `embed` or `encode` is called on its model.

    Attributes:
        modules: Those behind the encoder.
        transformer: What is in sentence_bert_config.json.
        prompts: What is in config_sentence_transformers.json, or None for no file.
        new_places: Whether modules.json has the classes' places of version 6, or the old ones.
        cased: Whether the tokenizer keeps upper case.
        options: `prompt_name` or `prompt` of the call.
    """

    modules: Sequence[Module]
    transformer: Config = field(default_factory=lambda: {"max_seq_length": 64})
    prompts: Config | None = None
    new_places: bool = False
    cased: bool = False
    options: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """Write the folder, and return it."""
        write_sentence_folder(
            folder,
            *self.modules,
            transformer=self.transformer,
            prompts=self.prompts,
            new_places=self.new_places,
        )
        if self.cased:
            path = folder / "tokenizer.json"
            document = json.loads(path.read_text("utf-8"))
            document["normalizer"] |= {"lowercase": False, "strip_accents": False}
            path.write_text(json.dumps(document), "utf-8")
        return folder


def write_sentence_folder(
    folder: Path,
    *modules: Module,
    transformer: Config | None = None,
    prompts: Config | None = None,
    new_places: bool = False,
) -> Path:
    """Write `tiny_bert_folder` and the files of sentence-transformers beside it."""
    tiny_bert_folder(folder)
    _write_json(
        folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **SPECIAL}
    )
    _write_json(folder / "sentence_bert_config.json", transformer or {})
    if prompts is not None:
        _write_json(folder / "config_sentence_transformers.json", prompts)
    listed = []
    for number, module in enumerate([Module(kind="Transformer"), *modules]):
        place = f"{number}_{module.kind}" if number else ""
        if place and module.config is not None:
            (folder / place).mkdir()
            _write_json(folder / place / "config.json", module.config)
        if module.tensors:
            stored = {name: safetensors_tensor(array) for name, array in module.tensors.items()}
            write_safetensors(folder / place / "model.safetensors", stored)
        kind = NEW_PLACES[module.kind] if new_places else OLD_PLACE + module.kind
        listed.append({"idx": number, "name": str(number), "path": place, "type": kind})
    _write_json(folder / "modules.json", listed)
    return folder


def pooling(*modes: str, width: int = WIDTH, **others: object) -> Module:
    """Return a Pooling with the keys of version 6."""
    mode: object = modes[0] if len(modes) == 1 else list(modes)
    config = {"embedding_dimension": width, "pooling_mode": mode, "include_prompt": True}
    return Module(kind="Pooling", config=config | others)


def switches(*names: str, width: int = WIDTH, **others: object) -> Module:
    """Return a Pooling with the keys of version 2: a switch for each mode."""
    known = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    config: dict[str, object] = {"word_embedding_dimension": width}
    config |= {f"pooling_mode_{name}": name in names for name in dict.fromkeys([*known, *names])}
    return Module(kind="Pooling", config=config | others)


def dense(
    n_inputs: int,
    n_outputs: int,
    activation: str | None = "torch.nn.modules.activation.Tanh",
    *,
    bias: bool = True,
    seed: int = 7,
    **others: object,
) -> Module:
    """Return a Dense of random numbers; without an activation its key is left out."""
    random = np.random.default_rng(seed)
    tensors = {"linear.weight": random_matrix(random, n_outputs, n_inputs)}
    if bias:
        tensors["linear.bias"] = random_vector(random, n_outputs)
    config: dict[str, object] = {
        "in_features": n_inputs,
        "out_features": n_outputs,
        "bias": bias,
    }
    if activation is not None:
        config["activation_function"] = activation
    return Module(kind="Dense", config=config | others, tensors=tensors)


NORMALIZE = Module(kind="Normalize")
NEW_NORMALIZE = Module(
    kind="Normalize",
    config={"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"},
)
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
SWITCHES = (
    "cls_token",
    "max_tokens",
    "mean_tokens",
    "mean_sqrt_len_tokens",
    "weightedmean_tokens",
    "lasttoken",
)
ACTIVATIONS = {
    "Identity": "torch.nn.modules.linear.Identity",
    **{
        name: f"torch.nn.modules.activation.{name}"
        for name in ("Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")
    },
}
PROMPTS: Config = {
    "__version__": {"sentence_transformers": "3.0.0"},
    "prompts": {"query": "search the cat: ", "passage": "mat: ", "empty": ""},
    "default_prompt_name": "query",
    "similarity_fn_name": "cosine",
}


def _cases() -> dict[str, Case]:
    cases = {
        mode: Case(modules=[pooling(mode)], new_places=True) for mode in MODES
    }  # not normalized: mean and mean_sqrt_len_tokens differ only so
    cases |= {f"switch {name}": Case(modules=[switches(name)]) for name in SWITCHES}
    cases |= {
        "no switch is on": Case(modules=[switches()]),
        "every switch is on": Case(modules=[switches(*SWITCHES)]),
        "mean and cls switched on": Case(modules=[switches("mean_tokens", "cls_token"), NORMALIZE]),
        "a list of modes": Case(modules=[pooling("mean", "cls", "lasttoken")], new_places=True),
        "one mode twice": Case(modules=[pooling("max", "max")], new_places=True),
        "a mode beside a switch": Case(modules=[switches("cls_token", pooling_mode="max")]),
        "both keys of the width": Case(modules=[switches("cls_token", embedding_dimension=32)]),
        "cls, then normalized": Case(modules=[switches("cls_token"), NORMALIZE]),
        "mean, then normalized": Case(modules=[pooling("mean"), NEW_NORMALIZE], new_places=True),
        "mean_sqrt_len, then normalized": Case(
            modules=[switches("mean_sqrt_len_tokens"), NORMALIZE]
        ),
        "only some numbers kept": Case(
            modules=[pooling("cls"), NORMALIZE], prompts={"truncate_dim": 20}
        ),
        "more numbers kept than there are": Case(
            modules=[pooling("cls")], prompts={"truncate_dim": 99}
        ),
    }
    cases |= {
        f"dense with {name}": Case(modules=[pooling("mean"), dense(32, 24, kind)])
        for name, kind in ACTIVATIONS.items()
    }
    cases |= {
        "dense without a bias": Case(modules=[pooling("mean"), dense(32, 24, bias=False)]),
        "dense without an activation": Case(modules=[pooling("mean"), dense(32, 24, None)]),
        "dense of torch.nn.Tanh": Case(modules=[pooling("mean"), dense(32, 24, "torch.nn.Tanh")]),
        "dense after two modes, normalized": Case(
            modules=[pooling("cls", "mean"), dense(64, 16), NORMALIZE]
        ),
        "dense with the keys of version 6": Case(
            modules=[
                pooling("mean"),
                dense(
                    *(32, 16),
                    module_input_name="sentence_embedding",
                    module_output_name="sentence_embedding",
                ),
            ],
            new_places=True,
        ),
        "two dense": Case(
            modules=[pooling("mean"), dense(32, 48), dense(48, 8, ACTIVATIONS["Identity"], seed=8)]
        ),
        "dense after normalizing": Case(modules=[pooling("mean"), NORMALIZE, dense(32, 32)]),
        "dropout": Case(
            modules=[
                pooling("mean"),
                Module(kind="Dropout", config={"dropout": 0.5}),
                dense(32, 24),
                NORMALIZE,
            ]
        ),
        "a default prompt": Case(modules=[pooling("mean"), NORMALIZE], prompts=PROMPTS),
        "another prompt by name": Case(
            modules=[pooling("mean")], prompts=PROMPTS, options={"prompt_name": "passage"}
        ),
        "an empty prompt by name": Case(
            modules=[pooling("mean")], prompts=PROMPTS, options={"prompt_name": "empty"}
        ),
        "a prompt that every model has": Case(
            modules=[pooling("mean")], options={"prompt_name": "document"}
        ),
        "a prompt of the caller": Case(
            modules=[pooling("mean")], prompts=PROMPTS, options={"prompt": "on the "}
        ),
        "no prompt at the caller's wish": Case(
            modules=[pooling("mean")], prompts=PROMPTS, options={"prompt": ""}
        ),
    }
    cases |= {
        f"a prompt left out of {mode}": Case(
            modules=[pooling(mode, include_prompt=False)], prompts=PROMPTS, new_places=True
        )
        for mode in MODES
    }
    cases |= {
        "a prompt left out and cut": Case(
            modules=[pooling("mean", "weightedmean", include_prompt=False)],
            prompts=PROMPTS,
            transformer={"max_seq_length": 5},
        ),
        "texts cut": Case(modules=[switches("lasttoken")], transformer={"max_seq_length": 5}),
        "cased": Case(modules=[pooling("mean")], cased=True),
        "lower-cased": Case(
            modules=[pooling("mean")],
            transformer={"max_seq_length": 64, "do_lower_case": True},
            cased=True,
        ),
    }
    return cases


CASES = _cases()


def recorded_places(width: int) -> list[int]:
    """Return which numbers of a vector are recorded: some from everywhere in it."""
    return sorted({round(place) for place in np.linspace(0, width - 1, 7)})


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), "utf-8")
