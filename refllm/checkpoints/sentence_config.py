"""The steps of an embedding model before and after its encoder, as its files name them.

    modules.json                          the modules in their order, each with its folder
    1_Pooling/config.json                 how tokens become one vector
    2_Dense/config.json, model.safetensors
    sentence_bert_config.json             the limit of a text, and whether it is lower-cased
    config_sentence_transformers.json     prompts

A GGUF file has one key for all of this, `bert.pooling_type`. By default the vector is the mean of
the tokens, normalized to length 1.

Source: sentence-transformers 6.2.0; llama.cpp's `enum llama_pooling_type`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from refllm.checkpoints.hyperparameters import MAX_WIDTH
from refllm.checkpoints.open import Weights
from refllm.checkpoints.safetensors import SINGLE, read_safetensors
from refllm.errors import LlmRuntimeError, ModelNotSupported
from refllm.files.accounting.keys import Keys
from refllm.files.accounting.ledger import Ledger
from refllm.files.accounting.sentence_keys import (
    DENSE_CONFIG,
    DROPOUT_CONFIG,
    MODULES,
    NORMALIZE_CONFIG,
    POOLING_CONFIG,
    SENTENCE_TRANSFORMERS_CONFIG,
    TRANSFORMER_CONFIG,
)
from refllm.files.reading import MAX_JSON_BYTES, parse_json, read_file, read_json_object
from refllm.parameters import Parameters
from refllm.pooling import (
    ACTIVATIONS,
    MEAN_NORMALIZED,
    POOLING_MODES,
    Dense,
    Normalize,
    Pooling,
    PoolingMode,
    SentenceHead,
)

__all__ = [
    "GGUF_POOLING_TYPES",
    "MODULES_FILE",
    "SENTENCE_FILES",
    "SWITCHES",
    "SentenceConfig",
    "lower_cases",
    "module_folders",
    "sentence_config",
]

MODULES_FILE = "modules.json"
PICKLE = "pytorch_model.bin"
PROMPTS_FILE = "config_sentence_transformers.json"
# sentence-transformers reads the first of these that is there and not empty.
TRANSFORMER_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
SENTENCE_FILES = (MODULES_FILE, PROMPTS_FILE, *TRANSFORMER_FILES)

# A name for each number that llama.cpp's `enum llama_pooling_type` has and refllm computes.
GGUF_POOLING_TYPES: Mapping[int, PoolingMode] = {1: "mean", 2: "cls", 3: "lasttoken"}
NOT_COMPUTED = {
    0: "a vector for each token; write 1 (mean), 2 (cls) or 3 (last) to the key, as the model was "
    "trained",
    4: "the head of a reranker, which gives a pair of texts a score and a text no vector; use an "
    "embedding model",
}

# The Python modules of sentence-transformers' classes, in all versions.
MODULE_TYPE = re.compile(
    r"sentence_transformers\.(?:models|base\.modules|sentence_transformer\.modules)"
    r"(?:\.[A-Za-z_]+)?\.(Transformer|Pooling|Dense|Normalize|Dropout)"
)
ACTIVATION_TYPE = re.compile(r"torch\.nn\.(?:modules\.(?:activation|linear)\.)?([A-Za-z0-9]+)")
# Switches of older files, in the order in which sentence-transformers concatenates.
SWITCHES: Mapping[str, PoolingMode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
WIDTH_KEYS = ("embedding_dimension", "word_embedding_dimension")  # of 6.2.0, and of older versions
# Prompts that `SentenceTransformer` has for every model, empty unless a file has them.
NAMES_OF_EVERY_MODEL = ("query", "document")
MAX_TOKENS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceConfig:
    """The steps before the encoder, and after it.

    Attributes:
        head: From the tokens' vectors to the text's vector.
        prompts: Name to the text that is put before a text; "query" and "document" are always
            there, empty unless the model has them.
        default_prompt_name: The prompt of a caller that names none, or None.
        max_seq_length: The limit of sentence-transformers in tokens, or None.
        do_lower_case: Whether a text is lower-cased before the tokenizer's own normalizer.
    """

    head: SentenceHead = MEAN_NORMALIZED
    prompts: Mapping[str, str] = field(
        default_factory=lambda: dict.fromkeys(NAMES_OF_EVERY_MODEL, "")
    )
    default_prompt_name: str | None = None
    max_seq_length: int | None = None
    do_lower_case: bool = False

    @property
    def default_prompt(self) -> str:
        """The text that is put before each text of a caller that names no prompt."""
        return "" if self.default_prompt_name is None else self.prompts[self.default_prompt_name]


def sentence_config(
    weights: Weights, *, n_embd: int, ledger: Ledger | None = None
) -> SentenceConfig:
    """Return the steps of an embedding model beside its encoder.

    Args:
        weights: The model; of a GGUF file only its metadata are read, of a folder the files above.
        n_embd: The width of the encoder.
        ledger: Where each key, and each tensor of a dense layer, is recorded.

    Raises:
        ModelNotSupported: naming file, key and value of a step that is not computed.
        LlmRuntimeError: naming a file that is missing or damaged, or keys that contradict.
    """
    ledger = Ledger() if ledger is None else ledger
    if weights.source == "gguf":
        return SentenceConfig(head=_head_of_gguf(weights, ledger))
    folder = weights.path
    max_seq_length, do_lower_case = _limits(folder, ledger)
    prompts, default_prompt_name, truncate_dim = _prompts(folder, ledger)
    try:
        pooling, steps = _modules(folder, n_embd, ledger)
    except OSError as error:  # a folder of modules.json that the system has no name for, or locks
        raise LlmRuntimeError(
            f"{error.filename!s:.300}: cannot be read: {error.strerror}; {MODULES_FILE} names it"
        ) from error
    return SentenceConfig(
        head=SentenceHead(pooling=pooling, steps=steps, truncate_dim=truncate_dim),
        prompts=prompts,
        default_prompt_name=default_prompt_name,
        max_seq_length=max_seq_length,
        do_lower_case=do_lower_case,
    )


def lower_cases(folder: Path) -> bool:
    """Return whether a text is lower-cased before the tokenizer's own normalizer.

    Raises:
        LlmRuntimeError: if the file is damaged.
    """
    return _limits(folder, Ledger(collecting=True))[1]


def module_folders(folder: Path) -> tuple[str, ...]:
    """Return the folders that modules.json names, relative to it; () where there is no such file.

    Raises:
        LlmRuntimeError: if the file is damaged or names a place outside the model's folder.
    """
    if not (folder / MODULES_FILE).is_file():
        return ()
    path = folder / MODULES_FILE
    places = (_relative_path(Keys(path, module)) for module in _read_modules(path))
    return tuple(place for place in places if place)


# GGUF


def _head_of_gguf(weights: Weights, ledger: Ledger) -> SentenceHead:
    key = f"{weights.hparams.get('general.architecture', weights.architecture)}.pooling_type"
    keys = Keys(weights.path, weights.hparams, ledger=ledger, by="pooling")
    mode: PoolingMode = "mean"
    if key in keys:
        number = keys.integer(key, maximum=MAX_WIDTH, minimum=0)
        if number not in GGUF_POOLING_TYPES:
            why = NOT_COMPUTED.get(number, "a pooling that is not computed; use 1, 2 or 3")
            keys.refuse(key, why)
            return MEAN_NORMALIZED
        mode = GGUF_POOLING_TYPES[number]
    keys.account(unknown="refuse", among=key)
    return SentenceHead(pooling=Pooling(modes=(mode,)))


# sentence_bert_config.json and config_sentence_transformers.json


def _limits(folder: Path, ledger: Ledger) -> tuple[int | None, bool]:
    """Return max_seq_length and do_lower_case."""
    for name in TRANSFORMER_FILES:
        path = folder / name
        if path.is_file() and (values := read_json_object(path)):
            keys = Keys(path, values, ledger=ledger, where=name, by="tokenizer")
            limit = None
            if "max_seq_length" in keys:
                # A caller may ask for it; it cuts no text by itself, so the ledger's table has it.
                limit = Keys(path, values).integer("max_seq_length", maximum=MAX_TOKENS)
            lower = keys.flag("do_lower_case", default=False)
            keys.account(TRANSFORMER_CONFIG, unknown="warn")
            return limit, lower
    return None, False


def _prompts(folder: Path, ledger: Ledger) -> tuple[dict[str, str], str | None, int | None]:
    """Return the prompts by name, the name of the default one, and truncate_dim."""
    prompts = dict.fromkeys(NAMES_OF_EVERY_MODEL, "")
    path = folder / PROMPTS_FILE
    if not path.is_file():
        return prompts, None, None
    keys = Keys(path, read_json_object(path), ledger=ledger, where=PROMPTS_FILE, by="prompts")
    named = keys.get("prompts", {})
    if not isinstance(named, dict) or not all(
        prompt is None or isinstance(prompt, str) for prompt in named.values()
    ):
        raise keys.error("prompts", f"must map names to texts, is {named!r:.80}")
    prompts |= {name: prompt or "" for name, prompt in named.items()}
    default = keys.text("default_prompt_name") if "default_prompt_name" in keys else None
    keys.get("default_prompt_name")
    if default is not None and default not in prompts:
        known = ", ".join(sorted(prompts))
        raise keys.error("default_prompt_name", f"is {default!r:.80}, and the prompts are {known}")
    truncate_dim = None
    if "truncate_dim" in keys:
        truncate_dim = keys.integer("truncate_dim", maximum=MAX_WIDTH)
    keys.get("truncate_dim")
    keys.account(SENTENCE_TRANSFORMERS_CONFIG, unknown="warn")
    return prompts, default, truncate_dim


# modules.json


def _modules(
    folder: Path, n_embd: int, ledger: Ledger
) -> tuple[Pooling, tuple[Dense | Normalize, ...]]:
    """Return the modules behind the encoder."""
    path = folder / MODULES_FILE
    if not path.is_file():
        return MEAN_NORMALIZED.pooling, MEAN_NORMALIZED.steps
    pooling: Pooling | None = None
    steps: list[Dense | Normalize] = []
    names: set[str] = set()
    width = n_embd
    is_whole = True
    for number, module in enumerate(_read_modules(path)):
        keys = Keys(
            path, module, ledger=ledger, where=MODULES_FILE, by="pooling", prefix=f"[{number}]."
        )
        place = _relative_path(keys)
        name = keys.text("name", str(number))
        if name in names:
            raise keys.error("name", f"is {name!r:.80} for two modules; give each its own")
        names.add(name)
        kind = _kind(keys, is_first=number == 0, is_pooled=pooling is not None)
        is_whole = is_whole and kind is not None
        match kind:
            case "Transformer" if place:
                keys.refuse(
                    "path",
                    "an encoder in a folder of its own; move its files beside "
                    "modules.json, and write an empty path",
                )
            case "Pooling":
                pooling = _pooling(folder, place, width, ledger)
                width *= len(pooling.modes)
            case "Dense":
                dense = _dense(folder, place, width, ledger)
                steps.append(dense)
                width = dense.n_outputs
            case "Normalize" | "Dropout":
                if place and (folder / place / "config.json").is_file():  # often there is no file
                    known = NORMALIZE_CONFIG if kind == "Normalize" else DROPOUT_CONFIG
                    _config_keys(folder, place, "pooling", ledger).account(known, unknown="warn")
                steps += [Normalize()] if kind == "Normalize" else []
        keys.account(MODULES, unknown="warn")
    if pooling is None and not is_whole:  # refused already, by a ledger that collects
        return MEAN_NORMALIZED.pooling, MEAN_NORMALIZED.steps
    if pooling is None:
        raise LlmRuntimeError(
            f"{path}: names no Pooling, so tokens do not become one vector; add "
            '{"name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"} '
            "and the file 1_Pooling/config.json"
        )
    return pooling, tuple(steps)


def _kind(keys: Keys, *, is_first: bool, is_pooled: bool) -> str | None:
    """Return the class of a module, or None for one that was refused."""
    written = keys.text("type")
    match = MODULE_TYPE.fullmatch(written)
    if match is None:
        keys.refuse(
            "type",
            "a module that refllm does not compute; it computes Transformer, Pooling, Dense and "
            "Normalize of sentence-transformers",
        )
        return None
    kind = match[1]
    if (kind == "Transformer") != is_first:
        keys.refuse("type", "a Transformer stands first and nowhere else")
        return None
    if kind == "Pooling" and is_pooled:
        keys.refuse("type", "a second Pooling, which throws away what the first one made")
        return None
    if kind in ("Dense", "Normalize") and not is_pooled:
        keys.refuse("type", "a module before Pooling, where there is no vector of a text yet")
        return None
    return kind


def _read_modules(path: Path) -> list[dict[str, Any]]:
    modules = parse_json(read_file(path, max_bytes=MAX_JSON_BYTES), path=path)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise LlmRuntimeError(f"{path}: must be a JSON list of objects")
    return modules


def _relative_path(keys: Keys) -> str:
    """Return a module's folder inside the model's, "" for that itself."""
    path = keys.text("path", "")
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts or any(c in path for c in "\\:\0"):
        raise keys.error("path", f"must be a folder inside the model's, is {path!r:.80}")
    return "/".join(parts)


def _config_keys(folder: Path, place: str, by: str, ledger: Ledger) -> Keys:
    """Return the keys of the config.json of a module that has a folder of its own."""
    if not place:
        raise LlmRuntimeError(
            f"{folder / MODULES_FILE}: the module {by} has no folder of its own; its path must "
            "name the one with its config.json"
        )
    path = folder / place / "config.json"
    return Keys(path, read_json_object(path), ledger=ledger, where=f"{place}/config.json", by=by)


def _pooling(folder: Path, place: str, width: int, ledger: Ledger) -> Pooling:
    keys = _config_keys(folder, place, "pooling", ledger)
    for key in WIDTH_KEYS:
        if key in keys and keys.integer(key, maximum=MAX_WIDTH) != width:
            raise keys.error(
                key, f"is {keys.get(key)}, and the encoder's vectors have {width} numbers"
            )
    modes: Sequence[object]
    if "pooling_mode" in keys:
        named = keys.get("pooling_mode")
        modes = named if isinstance(named, list) else [named]
    else:
        switched = [mode for key, mode in SWITCHES.items() if keys.flag(key, default=False)]
        modes = switched or ["mean"]
    if not modes or not all(isinstance(mode, str) for mode in modes):
        raise keys.error("pooling_mode", f"must be a name or a list of names, is {modes!r:.80}")
    known = tuple(mode for mode in modes if mode in POOLING_MODES)
    include_prompt = keys.flag("include_prompt", default=True)
    if len(known) < len(modes):
        keys.refuse("pooling_mode", f"refllm computes {', '.join(POOLING_MODES)}")
    else:
        keys.account(POOLING_CONFIG, unknown="warn")
    return Pooling(modes=known or ("mean",), include_prompt=include_prompt)


def _dense(folder: Path, place: str, width: int, ledger: Ledger) -> Dense:
    keys = _config_keys(folder, place, "dense", ledger)
    n_inputs = keys.integer("in_features", maximum=MAX_WIDTH)
    n_outputs = keys.integer("out_features", maximum=MAX_WIDTH)
    if n_inputs != width:
        raise keys.error("in_features", f"is {n_inputs}, and the vectors before have {width}")
    has_bias = keys.flag("bias", default=True)
    written = keys.text("activation_function", "torch.nn.modules.activation.Tanh")
    match = ACTIVATION_TYPE.fullmatch(written)
    activation = "Identity" if match is None else match[1]
    if match is None or activation not in ACTIVATIONS:
        keys.refuse("activation_function", f"refllm computes torch.nn's {', '.join(ACTIVATIONS)}")
        activation = "Identity"
    keys.account(DENSE_CONFIG, unknown="warn")
    file, pickle = folder / place / SINGLE, folder / place / PICKLE
    if not file.is_file():
        write = f"`SentenceTransformer(folder).save_pretrained(new_folder)` writes {SINGLE}"
        if pickle.is_file():
            raise ModelNotSupported(f"{pickle}: a pickle, which can run code, is not read; {write}")
        raise LlmRuntimeError(
            f"{file}: no such file; fetch it from where the model is, or if only {PICKLE} is "
            f"there, {write}"
        )
    stored = read_safetensors(file.parent)
    tensors = {name: tensor.named(name) for name, tensor in stored.items()}
    parameters = Parameters(file, tensors)
    dense = Dense(
        weight=parameters.matrix("linear.weight", n_outputs, n_inputs),
        bias=parameters.vector("linear.bias", n_outputs) if has_bias else None,
        activation=activation,
        n_outputs=n_outputs,
    )
    where = f"{place}/{SINGLE}"
    used = {"linear.weight", *(["linear.bias"] if has_bias else [])}
    for name in tensors:
        if name in used:
            ledger.use(where, name, "dense")
        else:
            problem = (
                f"{file}: the tensor {name!r:.80} is one that no layer of "
                f"{place}/config.json has; fetch both files again"
            )
            ledger.refuse(where, name, ModelNotSupported(problem))
    return dense
