"""refllm as a target of its own suite: every group, in this process or as a harness.

    refllm conform refllm.conform.targets.itself:Refllm
    refllm conform "python -m refllm.conform.targets.itself"

Everything is asked of refllm's own modules, by name and at the time, and nothing is copied here. So
a function that is replaced there is tested as replaced.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from refllm.conform.targets import itself_ops as own_ops
from refllm.conform.targets.harness import Skip, params_of, serve
from refllm.conform.wire import from_wire
from refllm.errors import LlmError
from refllm.generate import Generation, Wishes
from refllm.interface import InferencingParams
from refllm.jit.disk_cache import cache_folder, kernel_sources
from refllm.models import bundled
from refllm.models import load as loading
from refllm.tokenizer.base import NO_LIMIT, Tokenizer

__all__ = ["Refllm", "SuiteModels", "engine_of", "generation_params"]

Asked = Mapping[str, Any]
Result = Mapping[str, Any]

MOST_DIGITS = 1 << 20  # of blocks in a question; the suite's have a thousand


class SuiteModels:
    """Where the suite's models are; made ones are kept for the next run where there is a cache."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` is for models that are made, by default one beside the kernels' cache."""
        self._folder = folder
        self._paths: dict[str, Path] = {}
        self._temporary = ExitStack()

    def path(self, name: str) -> Path:
        """The model's file or folder. Errors: `Skip` if it is not here; `RuntimeError`."""
        if name not in self._paths:
            try:
                path = models.suite_model(name, self._made())
            except LlmError as error:  # which is not the interface's answer to a case
                raise RuntimeError(str(error)) from error
            if path is None:
                raise Skip(f"the model {name} is not here")
            self._paths[name] = path
        return self._paths[name]

    def close(self) -> None:
        """Remove what was made and is not kept."""
        self._temporary.close()

    def _made(self) -> Path:
        if self._folder is None:
            kernels = cache_folder(os.environ, kernel_sources())
            self._folder = (
                Path(self._temporary.enter_context(tempfile.TemporaryDirectory()))
                if kernels is None
                else kernels.parent / "suite"
            )
        return self._folder


class _RecordingEngine(engine.LocalEngine):
    """Remembers the generation that it opened last, for the tokens that were drawn."""

    opened: tuple[int, Generation] | None = None

    def open(
        self,
        model: str | Path | loading.LlamaModel,
        prompt: str | Sequence[int],
        params: InferencingParams | None = None,
        *,
        seed: int | None = None,
        wishes: Wishes | None = None,
    ) -> tuple[loading.LlamaModel, Generation]:
        """As `LocalEngine.open`."""
        llama, generation = super().open(model, prompt, params, seed=seed, wishes=wishes)
        self.opened = (len(generation.tokens), generation)
        return llama, generation


class Refllm:
    """A harness, as `refllm.conform.targets.harness` describes it."""

    def __init__(self, suite: SuiteModels | None = None) -> None:
        """`suite` are its models."""
        self._models = suite or SuiteModels()
        self._engines = {
            numerics: _RecordingEngine(
                roots=[bundled.ROOT],
                numerics=numerics,
                stand_ins=False,
                prompt_cache_bytes=0,  # each case is computed anew, whatever was asked before
            )
            for numerics in loading.NUMERICS
        }
        self._tokenizers: dict[str, Tokenizer] = {}

    def start(self) -> Mapping[str, Any]:
        """Who answers: refllm, every group."""
        return {
            "implementation": {
                "name": "refllm",
                "version": refllm.__version__,
                "language": "Python",
            },
            "groups": list(GROUPS),
            "draws_as_refllm": True,
        }

    def run(self, group: str, asked: Asked) -> Result:
        """The result. Errors: `Skip`, and the interface's."""
        answers: Mapping[str, Callable[[Asked], Result]] = {
            "tokenizer": self._tokenizer,
            "quant": _quant,
            "ops": own_ops.answer,
            "sampling": _sampling,
            "logits": self._logits,
            "text": self._text,
            "embeddings": self._embeddings,
            "api": self._api,
        }
        return answers[group](asked)

    def stop(self) -> None:
        """Remove what was made."""
        self._models.close()

    def _tokenizer(self, asked: Asked) -> Result:
        name = asked["model"]
        if name not in self._tokenizers:
            self._tokenizers[name] = loading.load_tokenizer(self._models.path(name))
        ids = self._tokenizers[name].encode(asked["text"], max_tokens=NO_LIMIT)
        return {"ids": ids, "text": self._tokenizers[name].decode(ids)}

    def _logits(self, asked: Asked) -> Result:
        numerics = self._engines[asked["numerics"]]
        model = numerics.inferencing_model(self._models.path(asked["model"]))
        with numerics.computing():
            logits = model.forward(asked["token_ids"])  # [T, V]
        return {"logits": {"shape": list(logits.shape), "values": logits.ravel().tolist()}}

    def _text(self, asked: Asked) -> Result:
        exact = self._engines["exact"]
        exact.seed, exact.opened = int(asked["seed"]), None
        path = self._models.path(asked["model"])
        result = asdict(exact.infer(path, asked["prompt"], generation_params(asked)))
        if exact.opened is None:
            return result
        n_prompt, generation = exact.opened
        return {**result, "token_ids": generation.tokens[n_prompt:]}

    def _embeddings(self, asked: Asked) -> Result:
        exact = self._engines["exact"]
        path = self._models.path(asked["model"])
        limit = asked.get("max_tokens")
        return asdict(exact.generate_embeddings(path, asked["texts"], max_tokens=limit))

    def _api(self, asked: Asked) -> Result:
        with engine_of(asked["setup"]) if asked.get("setup") else self._unset() as host:
            if asked["operation"] == "infer":
                params = generation_params(asked)
                return asdict(host.infer(asked["model"], asked["prompt"], params))
            return asdict(host.generate_embeddings(asked["model"], asked["texts"]))

    @contextmanager
    def _unset(self) -> Iterator[engine.LocalEngine]:
        """The engine of a host that nothing is special about."""
        self._engines["exact"].seed = 0
        yield self._engines["exact"]


# --- The groups that need no model of the suite --------------------------------------------------


def _quant(asked: Asked) -> Result:
    name, written = asked["format"], asked["bytes"]
    if name not in quant.FORMATS:
        raise Skip(f"refllm has no format {name}")
    if len(written) > MOST_DIGITS:  # of which each may become 64 bytes of a list
        raise ValueError(f"bytes has {len(written)} digits; this harness takes {MOST_DIGITS}")
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
    """Every stage's name, ids, and their logits or probabilities; `Step` has the latter only."""
    penalized = logits.astype(np.float64)
    penalized[step.penalties.ids] = step.penalties.after
    yield "penalty", np.arange(len(logits)), "logits", penalized
    before = np.arange(len(logits))  # the ids that the stage before left
    for stage in step.stages:
        ids, probabilities = stage.candidates.ids, stage.candidates.probabilities
        if stage.name == "softmax":
            # The temperature is what softmax is taken of.
            scaled = sampling.apply_temperature(penalized[before], params.temperature)
            yield "temperature", before, "logits", scaled
        is_of_logits = stage.name == "top_k" and stage is step.stages[0]
        if is_of_logits:
            yield "top_k", ids, "logits", penalized[ids]
        yield "softmax" if is_of_logits else stage.name, ids, "probabilities", probabilities
        before = ids


@contextmanager
def engine_of(setup: Asked) -> Iterator[engine.LocalEngine]:
    """An engine for a case of the group api; `setup` says what is special about its host.

    It has the models that ship, those of `ai_models` are allowed (None: all), `files` by path
    (their bytes in hexadecimal digits) lie in a root of their own, and it is `enabled` unless told
    otherwise.
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
    """The parameters of a case's input; None if it has none."""
    params = params_of(asked)
    return None if params is None else InferencingParams(**params)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        serve(Refllm())
