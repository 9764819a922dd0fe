"""refllm as a target of its own suite: every group, in this process or as a harness.

    refllm conform refllm.conform.targets.itself:Refllm
    refllm conform "python -m refllm.conform.targets.itself"

Every function is looked up in refllm's own modules when it is called, and none is copied here. So
a test that replaces a function there tests the replacement.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import refllm
from refllm import engine, quant, sampling
from refllm.conform import models
from refllm.conform.case import GROUPS
from refllm.conform.targets import itself_ops
from refllm.conform.targets.harness import Skip, params_of, serve
from refllm.conform.wire import from_wire
from refllm.errors import LlmError
from refllm.generate import Generation, GenerationOptions
from refllm.interface import InferencingParams
from refllm.jit.disk_cache import cache_folder, kernel_sources
from refllm.models import bundled
from refllm.models import load as loading
from refllm.tokenizer.base import NO_LIMIT, Tokenizer

__all__ = ["Refllm", "SuiteModels", "engine_of", "generation_params"]

Asked = Mapping[str, Any]
Result = Mapping[str, Any]

MAX_DIGITS = 1 << 20  # hexadecimal, of the blocks in a case; the suite's have a thousand


class SuiteModels:
    """Where the suite's models are; made ones are kept for the next run if there is a cache."""

    def __init__(self, folder: Path | None = None) -> None:
        """Keep made models in `folder`, by default one beside the kernels' cache."""
        self._folder = folder
        self._paths: dict[str, Path] = {}
        self._temporary = ExitStack()

    def path(self, name: str) -> Path:
        """Return the model's file or folder.

        Raises:
            Skip: Where the model is not on this machine.
            RuntimeError: Where the model cannot be made.
        """
        if name not in self._paths:
            try:
                path = models.suite_model(name, self._folder_of_made())
            except LlmError as error:  # not the interface's answer to a case
                raise RuntimeError(str(error)) from error
            if path is None:
                raise Skip(f"the model {name} is not here")
            self._paths[name] = path
        return self._paths[name]

    def close(self) -> None:
        """Remove made models where no cache keeps them."""
        self._temporary.close()

    def _folder_of_made(self) -> Path:
        if self._folder is None:
            kernels = cache_folder(os.environ, kernel_sources())
            self._folder = (
                Path(self._temporary.enter_context(tempfile.TemporaryDirectory()))
                if kernels is None
                else kernels.parent / "suite"
            )
        return self._folder


class _RecordingEngine(engine.LocalEngine):
    """Keeps the generation that it opened last, for the ids of the generated tokens."""

    opened: tuple[int, Generation] | None = None

    def open(
        self,
        model: str | Path | loading.LlamaModel,
        prompt: str | Sequence[int],
        params: InferencingParams | None = None,
        *,
        seed: int | None = None,
        generation_options: GenerationOptions | None = None,
    ) -> tuple[loading.LlamaModel, Generation]:
        """Open a generation as `LocalEngine.open` does, and keep it."""
        llama, generation = super().open(
            model, prompt, params, seed=seed, generation_options=generation_options
        )
        self.opened = (len(generation.tokens), generation)
        return llama, generation


class Refllm:
    """A harness, as `refllm.conform.targets.harness` describes it."""

    def __init__(self, suite: SuiteModels | None = None) -> None:
        """Create a harness; `suite` finds the models, by default in the cache."""
        self._models = suite or SuiteModels()
        self._engines = {
            numerics: _RecordingEngine(
                roots=[bundled.ROOT],
                numerics=numerics,
                stand_ins=False,
                prompt_cache_bytes=0,  # no case depends on those before
            )
            for numerics in loading.NUMERICS
        }
        self._tokenizers: dict[Path, Tokenizer] = {}

    def start(self) -> Mapping[str, Any]:
        """Return refllm's name and version, every group, and its numerics revision."""
        return {
            "implementation": {
                "name": "refllm",
                "version": refllm.__version__,
                "language": "Python",
            },
            "groups": list(GROUPS),
            "draws_as_refllm": True,
            "claims_revision": refllm.NUMERICS_REVISION,
        }

    def run(self, group: str, asked: Asked) -> Result:
        """Return the result of a case's input.

        Raises:
            Skip: For what refllm does not have.
            LlmError: For a request that the interface refuses.
        """
        match group:
            case "quant":
                return _quant(asked)
            case "ops":
                return itself_ops.answer(asked)
            case "sampling":
                return _sampling(asked)
            case "api":
                return self._api(asked)
        path = self._models.path(asked["model"])
        exact = self._engines["exact"]
        match group:
            case "tokenizer":
                if path not in self._tokenizers:
                    self._tokenizers[path] = loading.load_tokenizer(path)
                ids = self._tokenizers[path].encode(asked["text"], max_tokens=NO_LIMIT)
                return {"ids": ids, "text": self._tokenizers[path].decode(ids)}
            case "logits":
                numerics = self._engines[asked["numerics"]]
                model = numerics.inferencing_model(path)
                with numerics.computing():
                    logits = model.forward(asked["token_ids"])  # [T, V]
                return {"logits": {"shape": list(logits.shape), "values": logits.ravel().tolist()}}
            case "text":
                exact.seed, exact.opened = int(asked["seed"]), None
                result = asdict(exact.infer(path, asked["prompt"], generation_params(asked)))
                if exact.opened is None:
                    return result
                n_prompt, generation = exact.opened
                return {**result, "token_ids": generation.tokens[n_prompt:]}
            case "embeddings":
                limit = asked.get("max_tokens")
                return asdict(exact.generate_embeddings(path, asked["texts"], max_tokens=limit))
        raise Skip(f"refllm has no group {group}")

    def stop(self) -> None:
        """Remove made models where no cache keeps them."""
        self._models.close()

    def _api(self, asked: Asked) -> Result:
        host: contextlib.AbstractContextManager[engine.LocalEngine]
        if asked.get("setup"):
            host = engine_of(asked["setup"])
        else:
            self._engines["exact"].seed = 0
            host = contextlib.nullcontext(self._engines["exact"])
        with host as local:
            if asked["operation"] == "infer":
                params = generation_params(asked)
                return asdict(local.infer(asked["model"], asked["prompt"], params))
            return asdict(local.generate_embeddings(asked["model"], asked["texts"]))


# --- The groups that need no model of the suite --------------------------------------------------


def _quant(asked: Asked) -> Result:
    name, written = asked["format"], asked["bytes"]
    if name not in quant.FORMATS:
        raise Skip(f"refllm has no format {name}")
    if len(written) > MAX_DIGITS:  # each may become 64 bytes of a list
        raise ValueError(f"bytes has {len(written)} digits; this harness takes {MAX_DIGITS}")
    stored = np.frombuffer(bytes.fromhex(written), np.uint8)
    return {"values": quant.FORMATS[name].decode(stored[None])[0].tolist()}


def _sampling(asked: Asked) -> Result:
    logits = np.array([from_wire(logit) for logit in asked["logits"]], np.float32)
    params = generation_params(asked)
    assert params is not None
    step = sampling.sample(
        logits, params, asked["previous_tokens"], asked["u"], profile=asked["profile"]
    )
    stages = [
        {"stage": name, "ids": ids.tolist(), kind: values.tolist()}
        for name, ids, kind, values in _stages(logits, params, step)
    ]
    return {"stages": stages, "token": step.token}


def _stages(
    logits: NDArray[np.float32], params: InferencingParams, step: sampling.Step
) -> Iterator[tuple[str, Any, str, Any]]:
    """Yield each stage's name, ids, and logits or probabilities; `Step` has only the latter."""
    penalized = logits.astype(np.float64)
    penalized[step.penalties.ids] = step.penalties.after
    yield "penalty", np.arange(len(logits)), "logits", penalized
    before = np.arange(len(logits))  # the ids that the previous stage kept
    for stage in step.stages:
        ids, probabilities = stage.candidates.ids, stage.candidates.probabilities
        if stage.name == "softmax":
            # The stage temperature is the input of softmax.
            scaled = sampling.apply_temperature(penalized[before], params.temperature)
            yield "temperature", before, "logits", scaled
        is_of_logits = stage.name == "top_k" and stage is step.stages[0]
        if is_of_logits:
            yield "top_k", ids, "logits", penalized[ids]
        yield "softmax" if is_of_logits else stage.name, ids, "probabilities", probabilities
        before = ids


@contextmanager
def engine_of(setup: Asked) -> Iterator[engine.LocalEngine]:
    """Yield an engine with the host settings of a case of the group api.

    It has the models that ship.

    Args:
        setup: `ai_models` are those that are allowed (all, by default). `files` are more files for
            a root of their own, hexadecimal digits by path. `enabled` is true by default.
    """
    with tempfile.TemporaryDirectory() as folder:
        for path, content in setup.get("files", {}).items():
            file = Path(folder, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(bytes.fromhex(content))
        yield engine.LocalEngine(
            roots=[bundled.ROOT, Path(folder)],
            allowed_models=setup.get("ai_models"),
            enabled=setup.get("enabled", True),
            stand_ins=False,
        )


def generation_params(asked: Asked) -> InferencingParams | None:
    """Return the parameters of a case's input, None if it has none."""
    params = params_of(asked)
    return None if params is None else InferencingParams(**params)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        serve(Refllm())
