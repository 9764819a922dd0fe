"""Checks of the models in a root: files, place, hyperparameters, tokenizer, tensors, RoPE layout.

T tokens, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from refllm.checkpoints.chat_template import chat_template_of, check_chat_template
from refllm.checkpoints.config import bert_config, llama_config
from refllm.checkpoints.open import Weights, open_weights
from refllm.checkpoints.rope_layout import interleaved
from refllm.checkpoints.safetensors import INDEX, SINGLE
from refllm.checkpoints.sentence_config import sentence_config
from refllm.doctor.finding import Finding, move_command, quoted
from refllm.errors import LlmError, LlmRuntimeError, ModelNotSupported
from refllm.files.accounting.ledger import Entry
from refllm.files.reading import LFS_POINTER
from refllm.llama import Llama, Segment
from refllm.models.find import FoundModel, list_models
from refllm.models.load import account, load_tokenizer
from refllm.parameters import Parameters

__all__ = ["check_models"]

MAX_PADDING = 512  # tokens; networks are padded to a round number of tokens, and not to more
MAX_ROPE_BYTES = 2**30  # a larger llama takes too long to read a text
MIN_GAIN = 0.5  # nats a token by which the right order of rows lowers the loss
SAMPLE = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park "
    "with her friends. One day, she saw a big box near the tree. She wanted to know what was in "
    "the box, so she ran to her mom and asked if she could open it. Her mom smiled and said yes."
)
QUERIES_AND_KEYS = re.compile(r"blk\.[0-9]+\.attn_([qk])\.(weight|bias)")


def check_models(root: Path) -> Iterator[Finding]:
    """Yield findings about every model of a root, and about shards without an index."""
    try:
        models = list_models([root])
    except LlmRuntimeError as error:
        yield Finding("damaged-file", "broken", str(error), "chmod -R u+rX")
        return
    yield from _missing_indices(root)
    for model in models:
        try:
            yield from _model(model)
        except Exception as error:  # noqa: BLE001 - a bug of any kind must not hide other findings
            what = f"{model.path}: examining it failed with {error!r:.200}, a bug in refllm"
            yield Finding("bug", "broken", what, "report it, with the file that it fails on")


def _missing_indices(root: Path) -> Iterator[Finding]:
    folders = {shard.parent for shard in root.rglob("*-of-*.safetensors")}
    for folder in sorted(folders):
        if not (folder / INDEX).exists() and not (folder / SINGLE).exists():
            what = f"{folder}: has shards and no {INDEX}, which lists the tensors of each shard"
            remedy = f"fetch {INDEX} from where the shards are from"
            yield Finding("missing-index", "broken", what, remedy)


def _model(model: FoundModel) -> Iterator[Finding]:
    """Yield what is wrong with a model, or that it can be used."""
    is_folder = model.path.is_dir()
    files = sorted(filter(Path.is_file, model.path.iterdir())) if is_folder else [model.path]
    pointers = [file for file in files if _is_lfs_pointer(file)]
    for file in pointers:
        what = f"{file}: a Git LFS pointer, not the file itself"
        yield Finding("lfs-pointer", "broken", what, f"git -C {quoted(file.parent)} lfs pull")
    if pointers or any(_missing_indices(model.path)):
        return
    try:
        weights = open_weights(model.path)
    except ModelNotSupported as error:
        yield Finding("unsupported-model", "warning", str(error))
        return
    except LlmRuntimeError as error:
        yield Finding("damaged-file", "broken", str(error), f"fetch {model.path} again")
        return
    findings = [*_place(model, weights), *_contents(model, weights)]
    yield from findings
    if all(finding.level != "broken" for finding in findings):
        what = f"{model.name}: a {weights.architecture} in {model.path}"
        yield Finding("model", "ok", what)


def _is_lfs_pointer(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return stream.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:  # opening the model reports it
        return False


def _place(model: FoundModel, weights: Weights) -> Iterator[Finding]:
    """Yield whether the model is in its architecture's folder."""
    architecture, path = weights.architecture, model.path
    if model.architecture not in (None, architecture):
        what = f"{path}: is a {architecture}, in the folder of {model.architecture}"
        target = path.parent.parent / architecture / path.name
        yield Finding("wrong-architecture", "broken", what, move_command(path, target))
    if model.architecture is None and architecture == "llama" and weights.source == "hf":
        target = path.parent / architecture / path.name
        what = f"{path}: Spin looks for it in {target}"
        yield Finding("architecture-level", "warning", what, move_command(path, target))


def _contents(model: FoundModel, weights: Weights) -> Iterator[Finding]:
    """Yield whether hyperparameters, tokenizer and tensors go together."""
    n_vocab = None
    try:
        if weights.architecture == "llama":
            n_vocab = llama_config(weights).n_vocab
        else:
            sentence_config(weights, n_embd=bert_config(weights).n_embd)
            n_vocab = Parameters(weights.path, weights.tensors).n_rows("token_embd.weight")
    except LlmError as error:
        if not isinstance(error, ModelNotSupported):  # which the accounting finds
            yield Finding("bad-config", "broken", str(error), f"fetch {model.path} again")
    try:
        n_tokens = load_tokenizer(model.path).n_vocab
    except LlmError as error:
        remedy = "fetch tokenizer.json from where the weights are from"
        yield Finding("bad-tokenizer", "broken", str(error), remedy)
    else:
        if n_vocab is not None and not n_tokens <= n_vocab <= n_tokens + MAX_PADDING:
            what = f"{model.path}: the tokenizer has {n_tokens} tokens, the network {n_vocab}"
            if n_tokens > n_vocab:
                what += "; a text with one of the tokens that the network lacks is refused"
            remedy = "fetch tokenizer and weights from one place"
            yield Finding("vocabulary-sizes", "warning", what, remedy)
    yield from _accounting(model)
    if weights.architecture == "llama":
        yield from _chat_template(model, weights)
        yield from _rope_layout(model, weights)


def _accounting(model: FoundModel) -> Iterator[Finding]:
    """Yield whether every tensor and key is used, or irrelevant by a table."""
    show = f"refllm models show {quoted(model.path)} --accounting"
    remedy = f"use a model that refllm computes; {show} lists every tensor and key"
    try:
        entries = account(model.path).entries
    except ModelNotSupported as error:
        yield Finding("not-computed", "broken", str(error), remedy)
        return
    except LlmError:  # the other checks report it
        return
    by_verdict: dict[str, list[Entry]] = {"refused": [], "unknown": []}
    for entry in entries:
        by_verdict.get(entry.verdict, []).append(entry)
    # The reason of the first tensor lists the other tensors, too.
    reasons = dict.fromkeys(e.reason for e in by_verdict["refused"] if ": " in e.reason)
    for reason in reasons or [e.reason for e in by_verdict["refused"][:1]]:
        yield Finding("not-computed", "broken", reason, remedy)
    remedy = f"remove the key if the model does not depend on it; {show} lists all"
    for entry in by_verdict["unknown"]:
        yield Finding("unknown-key", "warning", entry.reason, remedy)


def _chat_template(model: FoundModel, weights: Weights) -> Iterator[Finding]:
    try:
        template = chat_template_of(weights)
    except LlmError as error:
        remedy = "fetch the file with the template again"
        yield Finding("damaged-file", "broken", str(error), remedy)
        return
    if template is None:
        what = f"{model.path}: chat template: none; using Llama 2's chat format"
        remedy = "none is needed for a plain prompt; for chats, add the model's chat template"
        yield Finding("chat-template", "warning", what, remedy)
    elif find_spec("jinja2") is not None:  # an extra
        try:
            check_chat_template(template)
        except LlmRuntimeError as error:
            remedy = "fetch the file with the template again, or fix it in the model's folder"
            yield Finding("chat-template", "broken", f"{model.path}: {error}", remedy)


def _rope_layout(model: FoundModel, weights: Weights) -> Iterator[Finding]:
    """Yield whether the query and key rows of a llama are in the order of the other convention.

    RoPE rotates pairs of rows, and there are two conventions of where a pair's rows are
    (`refllm.checkpoints.rope_layout.interleaved`). A file whose rows are in the wrong order loads,
    runs, and writes nonsense after a few words. Nothing in the file reveals it; but ordinary text
    is far less likely to a model that computes wrongly. So the sample is read in both orders.
    """
    if sum(tensor.data.nbytes for tensor in weights.tensors.values()) > MAX_ROPE_BYTES:
        return
    try:
        token_ids = load_tokenizer(model.path).encode(SAMPLE)
        config = llama_config(weights)
        n_heads = {"q": config.n_heads, "k": config.n_kv_heads}
        reordered = dict(weights.tensors)
        for name, tensor in weights.tensors.items():
            match = QUERIES_AND_KEYS.fullmatch(name)
            if match is not None:
                rows = tensor.data.reshape(tensor.shape[0], -1)
                rows = interleaved(rows, n_heads=n_heads[match[1]])
                reordered[name] = replace(tensor, data=rows.reshape(tensor.data.shape))
        before = _loss(weights, token_ids)
        after = _loss(replace(weights, tensors=reordered), token_ids)
    except LlmError:  # the other checks report it
        return
    if after < before - MIN_GAIN:
        what = (
            f"{model.path}: query and key rows are in the other convention's order: a text "
            f"costs {before:.2f} nats a token, and {after:.2f} with the rows reordered"
        )
        remedy = "convert the model again, with llama.cpp's convert_hf_to_gguf.py"
        yield Finding("rope-layout", "broken", what, remedy)


def _loss(weights: Weights, token_ids: Sequence[int]) -> float:
    """Return the mean of −ln p of each token after the first, in nats."""
    network = Llama(llama_config(weights), Parameters(weights.path, weights.tensors))
    [logits] = network.forward([Segment(token_ids, network.new_cache())])  # [T, V]
    scores = logits[:-1].astype(np.float64)
    largest = scores.max(axis=1)
    normalizer = np.log(np.exp(scores - largest[:, None]).sum(axis=1)) + largest  # [T − 1]
    chosen = scores[np.arange(len(scores)), list(token_ids[1:])]
    return float(np.mean(normalizer - chosen))
