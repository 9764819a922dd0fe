"""What is wrong with a machine and the project on it, in plain words, and what mends it.

Each check looks at one thing and reports findings; none stops at the first, and none changes
anything. A finding's `check` is its name for programs, and stays the same from version to version.

    cpu                         what kernels are compiled for, and on how many CPUs they run
    kernel-cache                where compiled kernels are kept between runs, and which folder is
                                not used because another user can write to it
    ai-models-folder            .spin/ai-models is there
    misplaced-folder            models lie in another folder: .spin/ai_models, ./ai-models …
    manifest, manifest-model    spin.toml can be read, and every model it names is there
    model                       a model that can be used
    lfs-pointer                 a file is Git LFS's note instead of the file
    missing-index               shards without the file that says what is in which
    damaged-file                truncated, or not what its name says
    unsupported-model           a whole file, of an architecture that is not computed here
    wrong-architecture          a BERT among the llamas, or the reverse
    architecture-level          a llama beside the folder `llama`, where newer Spins do not look
    bad-config                  hyperparameters that are missing or impossible
    bad-tokenizer               no tokenizer, or a damaged one
    not-computed                a tensor or key that refllm does not compute: loading refuses it
    unknown-key                 a key of a JSON file that no table lists: it may mean something
    vocabulary-sizes            tokenizer and network do not belong together
    chat-template               none, so a chat is written as Llama 2 was taught it; or one that no
                                chat can use
    bug                         refllm itself failed on a model; the others are examined
    rope-layout                 query and key rows in the other convention's order (to 1 GiB)
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from refllm.checkpoints.chat_template import chat_template_of, check_chat_template
from refllm.checkpoints.config_bert import bert_config
from refllm.checkpoints.config_llama import llama_config
from refllm.checkpoints.mapped_file import LFS_POINTER
from refllm.checkpoints.open import Weights, open_weights
from refllm.checkpoints.safetensors import INDEX, SINGLE
from refllm.checkpoints.sentence_config import sentence_config
from refllm.errors import LlmError, LlmRuntimeError, ModelNotSupported
from refllm.files.accounting.ledger import Entry
from refllm.jit.cpu import CPU, NAME
from refllm.jit.disk_cache import SUFFIX, find_cache, kernel_sources
from refllm.jit.threads import available_cpus
from refllm.models.bundled import STAND_INS, wants_stand_ins
from refllm.models.find import PULLABLE, FoundModel, find_model, list_models
from refllm.models.load import account, load_tokenizer
from refllm.parameters import Parameters
from refllm.spin.manifest import MANIFEST, Component, read_manifest

__all__ = ["Finding", "Level", "examine"]

Level = Literal["ok", "warning", "broken"]

SPIN_FOLDER = ".spin"
MODELS_FOLDER = "ai-models"
MISPLACED = (f"{SPIN_FOLDER}/ai_models", "ai-models", "ai_models")
# Reading a text with a larger llama takes longer than somebody who waits for a diagnosis likes.
LARGEST_LLAMA_TO_READ_WITH = 2**30
# How much less surprised by a text, in nats a token, the right order of rows is.
LESS_SURPRISED = 0.5
# Networks are padded to a round number of tokens; more than this is no padding.
MOST_PADDING = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at: how it is, and what to do where that is not well."""

    check: str
    level: Level
    what: str
    remedy: str | None = None


def examine(
    project: Path, roots: Sequence[Path], environment: Mapping[str, str]
) -> Iterator[Finding]:
    """Everything about this machine and the project in the folder `project`, check by check.

    Models are looked for in `roots`; `environment` says where kernels are kept.
    """
    yield _cpu()
    yield from _kernel_cache(environment)
    yield from _folders(project)
    for root in roots:
        yield from _models(root)
    stand_ins = STAND_INS if wants_stand_ins(environment) else {}
    yield from _manifest(project / MANIFEST, roots, stand_ins)


# The machine


def _cpu() -> Finding:
    n_cpus = available_cpus()
    what = (
        f"{NAME}, {CPU.registers} vector registers of {CPU.float_lanes} floats; kernels run on "
        f"{n_cpus} thread{'s' if n_cpus > 1 else ''}"
    )
    return Finding(check="cpu", level="ok", what=what)


def _kernel_cache(environment: Mapping[str, str]) -> Iterator[Finding]:
    folder, refused = find_cache(environment, kernel_sources())
    named = "export REFLLM_CACHE_DIR=FOLDER, a folder that {}"
    for error in refused:
        yield Finding(
            check="kernel-cache",
            level="warning",
            what=f"{error}, so another user could put code there, and no kernel is loaded from it",
            remedy=error.remedy or named.format("only you can write to"),
        )
    if folder is None:
        yield Finding(
            check="kernel-cache",
            level="warning",
            what="compiled kernels can be kept nowhere, so every process waits for the compiler",
            remedy=named.format("can be written to"),
        )
        return
    n_kept = sum(1 for _ in folder.glob(f"*{SUFFIX}"))
    what = f"kernels are kept in {folder}, {n_kept} so far"
    if not os.access(folder, os.W_OK):
        what += "; it cannot be written to, so each process compiles those that it lacks"
    yield Finding(check="kernel-cache", level="ok", what=what)


# The project's folders


def _folders(project: Path) -> Iterator[Finding]:
    right = project / SPIN_FOLDER / MODELS_FOLDER
    misplaced = [project / place for place in MISPLACED if (project / place).is_dir()]
    for wrong in misplaced:
        moved = f"mv {_quoted(wrong)} {_quoted(right)}"
        if right.is_dir():
            moved = f"mv {_quoted(wrong)}/* {_quoted(right)}/"
        yield Finding(
            check="misplaced-folder",
            level="broken",
            what=f"{wrong}: models are looked for in {right}, and not here",
            remedy=f"mkdir -p {_quoted(right.parent)} && {moved}",
        )
    if right.is_dir():
        yield Finding(check="ai-models-folder", level="ok", what=f"models are kept in {right}")
    elif not misplaced:
        yield Finding(
            check="ai-models-folder",
            level="warning",
            what=f"there is no {right}, where Spin looks for models",
            remedy=f"mkdir -p {_quoted(right / 'llama')}",
        )


# The manifest


def _manifest(path: Path, roots: Sequence[Path], stand_ins: Mapping[str, str]) -> Iterator[Finding]:
    if not path.exists():
        return
    try:
        manifest = read_manifest(path)
    except LlmRuntimeError as error:
        yield Finding(check="manifest", level="broken", what=str(error), remedy=f"edit {path}")
        return
    n_components = len(manifest.components)
    plural = "" if n_components == 1 else "s"
    what = f"{path}: {n_components} component{plural}"
    yield Finding(check="manifest", level="ok", what=what)
    for component in manifest.components.values():
        for name in component.ai_models:
            yield from _named_model(path, component, name, roots, stand_ins.get(name))


def _named_model(
    path: Path, component: Component, name: str, roots: Sequence[Path], stand_in: str | None
) -> Iterator[Finding]:
    """Nothing if the model is there; whether it is whole is said where it lies."""
    try:
        find_model(name, roots)
    except LlmRuntimeError:
        return
    except LlmError as error:
        place = path.parent / SPIN_FOLDER / MODELS_FOLDER / "llama" / name
        remedy = f"put its files into {place}"
        if name in PULLABLE:
            remedy = f"refllm models pull {name}"
        what = f"{path}: component {component.id} names a model that is not there: {error.args[0]}"
        level: Level = "broken"
        if stand_in is not None:
            what, level = f"{what}; {stand_in} stands in for it", "warning"
        yield Finding(check="manifest-model", level=level, what=what, remedy=remedy)


# Models


def _models(root: Path) -> Iterator[Finding]:
    """Every model of a root, and shards that no index makes a model of."""
    try:
        models = list_models([root])
    except LlmRuntimeError as error:
        yield Finding(check="damaged-file", level="broken", what=str(error), remedy="chmod -R u+rX")
        return
    yield from _missing_indices(root)
    for model in models:
        try:
            yield from _model(model)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other end wants to know
            yield Finding(
                check="bug",
                level="broken",
                what=f"{model.path}: examining it failed with {error!r:.200}, a bug in refllm",
                remedy="report it, with the file that it fails on",
            )


def _missing_indices(root: Path) -> Iterator[Finding]:
    folders = {shard.parent for shard in root.rglob("*-of-*.safetensors")}
    for folder in sorted(folders):
        if not (folder / INDEX).exists() and not (folder / SINGLE).exists():
            yield Finding(
                check="missing-index",
                level="broken",
                what=f"{folder}: has shards and no {INDEX}, which says what is in which of them",
                remedy=f"fetch {INDEX} from where the shards are from",
            )


def _model(model: FoundModel) -> Iterator[Finding]:
    """What is wrong with a model, or that nothing is."""
    pointers = [file for file in _files(model.path) if _is_lfs_pointer(file)]
    for file in pointers:
        yield Finding(
            check="lfs-pointer",
            level="broken",
            what=f"{file}: a Git LFS pointer, not the file itself",
            remedy=f"git -C {_quoted(file.parent)} lfs pull",
        )
    if pointers or any(_missing_indices(model.path)):
        return
    try:
        weights = open_weights(model.path)
    except ModelNotSupported as error:
        yield Finding(check="unsupported-model", level="warning", what=str(error))
        return
    except LlmRuntimeError as error:
        remedy = f"fetch {model.path} again"
        yield Finding(check="damaged-file", level="broken", what=str(error), remedy=remedy)
        return
    findings = [*_place(model, weights), *_contents(model, weights)]
    yield from findings
    if all(finding.level != "broken" for finding in findings):
        said = f"{model.name}: a {weights.architecture} in {model.path}"
        yield Finding(check="model", level="ok", what=said)


def _place(model: FoundModel, weights: Weights) -> Iterator[Finding]:
    """Whether the model lies in its architecture's folder."""
    architecture, path = weights.architecture, model.path
    if model.architecture not in (None, architecture):
        target = path.parent.parent / architecture / path.name
        yield Finding(
            check="wrong-architecture",
            level="broken",
            what=f"{path}: is a {architecture}, in the folder of {model.architecture}",
            remedy=_moving(path, target),
        )
    if model.architecture is None and architecture == "llama" and weights.source == "hf":
        target = path.parent / architecture / path.name
        yield Finding(
            check="architecture-level",
            level="warning",
            what=f"{path}: Spin looks for it in {target}",
            remedy=_moving(path, target),
        )


def _contents(model: FoundModel, weights: Weights) -> Iterator[Finding]:
    """Whether hyperparameters, tokenizer and tensors go together."""
    n_vocab = None
    try:
        if weights.architecture == "llama":
            n_vocab = llama_config(weights).n_vocab
        else:
            sentence_config(weights, n_embd=bert_config(weights).n_embd)
            n_vocab = Parameters(weights.path, weights.tensors).n_rows("token_embd.weight")
    except LlmError as error:
        if not isinstance(error, ModelNotSupported):  # which the accounting finds
            remedy = f"fetch {model.path} again"
            yield Finding(check="bad-config", level="broken", what=str(error), remedy=remedy)
    try:
        n_tokens = load_tokenizer(model.path).n_vocab
    except LlmError as error:
        remedy = "fetch tokenizer.json from where the weights are from"
        yield Finding(check="bad-tokenizer", level="broken", what=str(error), remedy=remedy)
    else:
        if n_vocab is not None:
            yield from _vocabulary_sizes(model, n_tokens, n_vocab)
    yield from _accounting(model)
    if weights.architecture == "llama":
        yield from _chat_template(model, weights)
        yield from _rope_layout(model, weights)


def _accounting(model: FoundModel) -> Iterator[Finding]:
    """Whether every tensor and key is used, or irrelevant by a table."""
    all_of_them = f"refllm models show {_quoted(model.path)} --accounting"
    remedy = f"take a model that is computed; {all_of_them} lists every tensor and key"
    try:
        entries = account(model.path).entries
    except ModelNotSupported as error:
        yield Finding(check="not-computed", level="broken", what=str(error), remedy=remedy)
        return
    except LlmError:  # said by what cannot be loaded, or does not fit together
        return
    by_verdict: dict[str, list[Entry]] = {"refused": [], "unknown": []}
    for entry in entries:
        by_verdict.get(entry.verdict, []).append(entry)
    if by_verdict["refused"]:
        # The reason of the first tensor names the others, too.
        reasons = dict.fromkeys(e.reason for e in by_verdict["refused"] if ": " in e.reason)
        for reason in reasons or [e.reason for e in by_verdict["refused"][:1]]:
            yield Finding(
                check="not-computed",
                level="broken",
                what=reason,
                remedy=remedy,
            )
    for entry in by_verdict["unknown"]:
        yield Finding(
            check="unknown-key",
            level="warning",
            what=entry.reason,
            remedy=f"remove the key if the model does not depend on it; {all_of_them} lists all",
        )


def _rope_layout(model: FoundModel, weights: Weights) -> Iterator[Finding]:
    """Whether a text is far more likely with the query and key rows in the other order."""
    if sum(tensor.data.nbytes for tensor in weights.tensors.values()) > LARGEST_LLAMA_TO_READ_WITH:
        return
    # A user without a llama need not wait for its kernels.
    from refllm.doctor.row_order import SAMPLE, losses_by_layout

    try:
        losses = losses_by_layout(weights, load_tokenizer(model.path).encode(SAMPLE))
    except LlmError:  # said by what cannot be loaded, or does not fit together
        return
    if losses.reordered < losses.as_they_are - LESS_SURPRISED:
        yield Finding(
            check="rope-layout",
            level="broken",
            what=(
                f"{model.path}: query and key rows are in the other convention's order: a text "
                f"costs {losses.as_they_are:.2f} nats a token, and {losses.reordered:.2f} with "
                "the rows reordered"
            ),
            remedy="convert the model again, with llama.cpp's convert_hf_to_gguf.py",
        )


def _vocabulary_sizes(model: FoundModel, n_tokens: int, n_vocab: int) -> Iterator[Finding]:
    if n_tokens <= n_vocab <= n_tokens + MOST_PADDING:
        return
    what = f"{model.path}: the tokenizer has {n_tokens} tokens, the network {n_vocab}"
    if n_tokens > n_vocab:
        what += "; a text with one of the others is refused"
    yield Finding(
        check="vocabulary-sizes",
        level="warning",
        what=what,
        remedy="fetch tokenizer and weights from one place",
    )


def _chat_template(model: FoundModel, weights: Weights) -> Iterator[Finding]:
    try:
        template = chat_template_of(weights)
    except LlmError as error:
        remedy = "fetch the file with the template again"
        yield Finding(check="damaged-file", level="broken", what=str(error), remedy=remedy)
        return
    if template is None:
        yield Finding(
            check="chat-template",
            level="warning",
            what=f"{model.path}: brings no chat template; chats are written as Llama 2 was taught",
            remedy="none is needed for a prompt that is written out, or for plain text",
        )
    elif find_spec("jinja2") is not None:  # an extra
        try:
            check_chat_template(template)
        except LlmRuntimeError as error:
            yield Finding(
                check="chat-template",
                level="broken",
                what=f"{model.path}: {error}",
                remedy="fetch the file with the template again, or mend it in the model's folder",
            )


# Files


def _files(path: Path) -> list[Path]:
    """The model's files: itself, or what its folder holds."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.iterdir() if file.is_file())


def _is_lfs_pointer(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return stream.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:  # said by what needs the file
        return False


def _moving(path: Path, target: Path) -> str:
    return f"mkdir -p {_quoted(target.parent)} && mv {_quoted(path)} {_quoted(target)}"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
