"""Models beyond the budget are unloaded: their memory goes back, and no answer changes by it."""

from __future__ import annotations

import gc
import shutil
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from refllm.api import InferencingParams, InvalidInput
from refllm.checkpoints.open import open_weights
from refllm.engine import LocalEngine
from refllm.kernels.simd.lanes import LANES
from refllm.models.load import LlamaModel, load
from refllm.models.loaded import weight_bytes
from refllm.server.jobs import EmbeddingJob, Event, Finished, Job, TextJob, TextRequest
from refllm.server.limits import Limits
from refllm.server.worker import Worker
from tests.conftest import HUNG_SECONDS
from tests.support.model_files import tiny_bert_folder, tiny_llama_gguf

PARAMS = InferencingParams(max_tokens=6)
PROMPT = "the cat"
LLAMAS = ("a", "b", "c")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The llamas "a", "b" and "c", as large as each other, and the BERT "embedder"."""
    root = tmp_path_factory.mktemp("ai-models")
    for seed, name in enumerate(LLAMAS):
        tiny_llama_gguf(root / f"{name}.gguf", seed=seed)
    tiny_bert_folder(root / "embedder")
    return root


@pytest.fixture(scope="module")
def n_bytes(root: Path) -> int:
    """What the weights of one of the llamas take."""
    return weight_bytes(load(root / "a.gguf"))


@pytest.fixture(scope="module")
def unlimited(root: Path) -> LocalEngine:
    """What every model is compared with."""
    return LocalEngine(roots=[root])


@contextmanager
def without_collector() -> Iterator[None]:
    """Memory goes back at once, not when Python collects garbage."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def memory_of_weights(engine: LocalEngine, name: str) -> NDArray[np.uint8]:
    """The piece of memory that a matrix of the model lies in."""
    piece = engine.inferencing_model(name).network.layers[0].attn_output.data.base
    assert isinstance(piece, np.ndarray)
    return piece


def is_mapped(file: Path) -> bool:
    """Whether this process has mapped the file."""
    return str(file) in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("tied", [False, True])
def test_the_weights_of_a_model_are_its_tensors_and_what_fills_up_the_last_panel(
    tied: bool, tmp_path: Path
) -> None:
    path = tiny_llama_gguf(tmp_path / "m.gguf", n_embd=64, head_dim=16, tied=tied)
    model = load(path)
    assert isinstance(model, LlamaModel)
    tensors = open_weights(path).tensors
    table = tensors["token_embd.weight"]
    n_vocab, width = table.shape
    expected = sum(tensor.data.nbytes for tensor in tensors.values())
    # All other matrices have a whole number of panels.
    expected += (-n_vocab % LANES) * width * 4
    # A tied table is looked up in the file, and multiplied with in memory.
    expected += table.data.nbytes if tied else 0
    assert weight_bytes(model) == expected + model.network.frequencies.nbytes


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="maps are read from /proc")
def test_the_model_used_least_recently_gives_its_memory_back(
    root: Path, n_bytes: int, unlimited: LocalEngine, tmp_path: Path
) -> None:
    for name in LLAMAS:  # files that no other engine has mapped
        shutil.copy(root / f"{name}.gguf", tmp_path)
    engine = LocalEngine(roots=[tmp_path], max_models_bytes=2 * n_bytes)
    networks = {name: weakref.ref(engine.inferencing_model(name).network) for name in "ab"}
    pieces = {name: weakref.ref(memory_of_weights(engine, name)) for name in "ab"}
    for name in "aba":
        assert engine.infer(name, PROMPT, PARAMS) == unlimited.infer(name, PROMPT, PARAMS)
    kept_of_both = engine.prompt_cache.n_bytes
    assert [name for name in LLAMAS if is_mapped(tmp_path / f"{name}.gguf")] == ["a", "b"]
    with without_collector():
        assert engine.infer("c", PROMPT, PARAMS) == unlimited.infer("c", PROMPT, PARAMS)
        for references in (networks, pieces):
            assert references["a"]() is not None
            assert references["b"]() is None
        assert [name for name in LLAMAS if is_mapped(tmp_path / f"{name}.gguf")] == ["a", "c"]
    assert engine.models_bytes == 2 * n_bytes
    # What was kept of the prompt for b went with b; for c as much came.
    assert engine.prompt_cache.n_bytes <= kept_of_both
    assert engine.infer("b", PROMPT, PARAMS) == unlimited.infer("b", PROMPT, PARAMS)


def test_a_model_in_use_stays_until_its_requests_end(
    root: Path, n_bytes: int, unlimited: LocalEngine
) -> None:
    engine = LocalEngine(roots=[root], max_models_bytes=n_bytes)
    with without_collector():
        stream = engine.stream("a", PROMPT, PARAMS)
        chunks = [next(stream)]
        in_use = weakref.ref(engine.inferencing_model("a"))
        assert engine.infer("b", PROMPT, PARAMS) == unlimited.infer("b", PROMPT, PARAMS)
        assert engine.models_bytes == 2 * n_bytes  # b, and a for as long as it is in use
        chunks += stream
        assert in_use() is None
    assert engine.models_bytes == n_bytes
    assert "".join(chunk.text for chunk in chunks) == unlimited.infer("a", PROMPT, PARAMS).text


def test_a_model_that_is_still_in_use_is_not_loaded_twice(root: Path, n_bytes: int) -> None:
    engine = LocalEngine(roots=[root], max_models_bytes=n_bytes)
    first = engine.inferencing_model("a")
    engine.infer("b", PROMPT, PARAMS)
    assert engine.inferencing_model("a") is first


def test_embeddings_and_texts_share_the_budget(
    root: Path, n_bytes: int, unlimited: LocalEngine
) -> None:
    engine = LocalEngine(roots=[root], max_models_bytes=n_bytes)
    expected = unlimited.generate_embeddings("embedder", ["the cat"])
    for _ in range(2):
        assert engine.generate_embeddings("embedder", ["the cat"]) == expected
        assert engine.infer("a", PROMPT, PARAMS) == unlimited.infer("a", PROMPT, PARAMS)
        assert engine.models_bytes == n_bytes


def test_a_model_larger_than_the_budget_answers_alone(
    root: Path, n_bytes: int, unlimited: LocalEngine
) -> None:
    engine = LocalEngine(roots=[root], max_models_bytes=1)
    for name in ("a", "b", "a"):
        assert engine.infer(name, PROMPT, PARAMS) == unlimited.infer(name, PROMPT, PARAMS)
        assert engine.models_bytes == n_bytes


def test_components_of_an_application_share_the_budget(root: Path, n_bytes: int) -> None:
    engine = LocalEngine(roots=[root], max_models_bytes=n_bytes)
    first, second = engine.restricted_to(["a"]), engine.restricted_to(["b"])
    first.infer("a", PROMPT, PARAMS)
    second.infer("b", PROMPT, PARAMS)
    assert first.models_bytes == second.models_bytes == n_bytes


def test_a_negative_budget_is_refused_by_its_name() -> None:
    with pytest.raises(InvalidInput, match="max_models_bytes must be at least 0, got -1"):
        LocalEngine(max_models_bytes=-1)


# --- In the server -------------------------------------------------------------------------------


class Asked:
    """Requests to a worker: their answers in order, and the most memory at any of them."""

    def __init__(self, engine: LocalEngine, *, max_at_once: int) -> None:
        self.ended: list[str] = []
        self.texts: dict[str, str] = {}
        self.max_bytes = 0
        self._engine = engine
        self._all_ended = threading.Semaphore(0)
        self._worker = Worker(engine, Limits(max_at_once=max_at_once))

    def answer(self, *models: str) -> None:
        """Ask each of the models once, all before the first is answered."""
        jobs = [self._job(f"{i} {model}", model) for i, model in enumerate(models)]
        for job in jobs:
            self._worker.submit(job)
        del jobs, job
        self._worker.start()
        for _ in models:
            assert self._all_ended.acquire(timeout=HUNG_SECONDS)
        self._worker.close()

    def _job(self, label: str, model: str) -> Job:
        deadline = time.monotonic() + HUNG_SECONDS

        def deliver(events: Sequence[Event]) -> None:
            self.max_bytes = max(self.max_bytes, self._engine.models_bytes)
            if isinstance(events[-1], Finished):
                self.ended.append(label)
                self.texts[label] = "".join(getattr(event, "text", "") for event in events)
                self._all_ended.release()

        if model == "embedder":
            return EmbeddingJob(model, ["the cat"], deliver=deliver, deadline=deadline)
        params = InferencingParams(max_tokens=6)
        request = TextRequest(model=model, prompt=PROMPT, params=params, seed=0)
        return TextJob(request, deliver=deliver, deadline=deadline)


def test_requests_wait_for_a_model_that_does_not_fit_beside_the_models_in_use(
    root: Path, n_bytes: int, unlimited: LocalEngine
) -> None:
    asked = Asked(LocalEngine(roots=[root], max_models_bytes=n_bytes), max_at_once=8)
    asked.answer("a", "a", "b", "a", "embedder", "c", "b")
    # Those for one model are answered together; a later one for it does not pass by another's.
    models = [label.split()[1] for label in asked.ended]
    assert models == ["a", "a", "b", "a", "embedder", "c", "b"]
    assert asked.max_bytes <= n_bytes
    for label, text in asked.texts.items():
        model = label.split()[1]
        if model != "embedder":
            assert text == unlimited.infer(model, PROMPT, PARAMS).text


def test_requests_for_models_that_fit_together_are_answered_together(
    root: Path, n_bytes: int
) -> None:
    asked = Asked(LocalEngine(roots=[root], max_models_bytes=2 * n_bytes), max_at_once=8)
    asked.answer("a", "b", "a", "b")
    assert asked.max_bytes == 2 * n_bytes
    assert sorted(asked.ended) == ["0 a", "1 b", "2 a", "3 b"]
