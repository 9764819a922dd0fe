"""A llama before its kernels are compiled: the same bits in NumPy, and the change to kernels."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from refllm import oracle
from refllm.checkpoints.config import llama_config
from refllm.checkpoints.open import open_weights
from refllm.engine import LocalEngine
from refllm.files.accounting.ledger import Ledger
from refllm.generate import GenerationOptions
from refllm.interface import InferencingParams
from refllm.jit import disk_cache
from refllm.jit.compile import Missing, stand_in
from refllm.kernels import math64
from refllm.kernels.topk import topk
from refllm.llama import Llama, Segment
from refllm.models import compiling, numpy_llama, starting_llama
from refllm.models.bundled import ROOT
from refllm.models.load import LlamaModel, load_path
from refllm.models.numpy_llama import DecodedParameters, decoded, sums_of_products
from refllm.models.starting_llama import StartingLlama
from refllm.parameters import Parameters
from refllm.quant import QUANTIZABLE, quantized

Floats = NDArray[np.float32]
TINY_CHAT = ROOT / "llama" / "tiny-chat.gguf"
PROMPT = [1, 300, 400, 500, 600]


@pytest.fixture(scope="module", params=["tiny-chat", "stories260K"])
def path(request: pytest.FixtureRequest, data_dir: Path) -> Path:
    """A model of Q8_0 with grouped heads, and one of F32."""
    stories = data_dir / "stories260K" / "stories260K.gguf"
    return TINY_CHAT if request.param == "tiny-chat" else stories


def same_bits(one: NDArray[np.generic], other: NDArray[np.generic]) -> bool:
    return one.dtype == other.dtype and one.tobytes() == other.tobytes()


# --- The same bits -------------------------------------------------------------------------------


def test_a_prompt_and_the_tokens_after_it_have_the_bits_of_the_kernels(path: Path) -> None:
    weights = open_weights(path)
    config = llama_config(weights, ledger=Ledger())
    in_numpy = Llama(config, DecodedParameters(weights.path, weights.tensors))
    model = load_path(path)
    assert isinstance(model, LlamaModel)
    prompt = [token_id % config.n_vocab for token_id in PROMPT]
    cache, of_kernels = in_numpy.new_cache(), model.new_cache()
    for token_ids in (prompt, *([token_id] for token_id in range(10, 30))):
        segment = Segment(token_ids, cache)
        cache.reserve(cache.length + len(token_ids))
        hidden = numpy_llama.hidden(in_numpy, segment)
        cache.length += len(token_ids)
        expected = model.forward(token_ids, of_kernels)
        assert same_bits(numpy_llama.linear(hidden, in_numpy.output), expected)
    for one, other in zip(cache.copy_of(0, 25), of_kernels.copy_of(0, 25), strict=True):
        assert same_bits(one, other)


def numbers(shape: tuple[int, ...], kind: str, rng: np.random.Generator) -> Floats:
    """Numbers whose sums are rounded in all ways: also to denormal ones and to infinities."""
    normal = rng.standard_normal(shape).astype(np.float32)
    if kind == "far apart":
        return normal * np.float32(2.0) ** rng.integers(-40, 40, shape).astype(np.float32)
    if kind == "denormal":
        return normal * np.float32(2.0**-65)
    if kind == "large":
        return normal * np.float32(2.0**64)
    if kind == "few bits":
        return rng.integers(-9, 10, shape).astype(np.float32) / np.float32(8)
    return normal


@pytest.mark.parametrize("kind", ["normal", "far apart", "denormal", "large", "few bits"])
@pytest.mark.parametrize("n_batch", [1, 3])
def test_sums_of_products_are_those_of_the_oracle(kind: str, n_batch: int) -> None:
    rng = np.random.default_rng(1)
    x, w = numbers((n_batch, 150), kind, rng), numbers((70, 150), kind, rng)
    with np.errstate(all="ignore"):
        expected = oracle.matmul(x, w)
        assert np.array_equal(sums_of_products(x, w.T[None]), expected, equal_nan=True)
        each = np.ascontiguousarray(np.broadcast_to(w.T, (n_batch, 150, 70)))
        assert np.array_equal(sums_of_products(x, each), expected, equal_nan=True)


def rounded_once(exact: Fraction) -> np.float32:
    """The float32 nearest to a number, of two the even one."""
    near = np.float32(float(exact))
    around = [np.nextafter(near, np.float32(side)) for side in (-np.inf, np.inf)]
    return min(
        (near, *around),
        key=lambda y: (abs(Fraction(float(y)) - exact), int(y.view(np.int32)) & 1),
    )


def test_sums_are_rounded_once_where_a_float64_is_halfway() -> None:
    rng = np.random.default_rng(2)
    k = rng.integers(1, 1 << 12, 500)
    a = (1 + k * 2.0**-12).astype(np.float32)
    b = np.where(k % 2, 1 + 2.0**-12, 1 - 2.0**-20).astype(np.float32)
    # 2^24 + 2 + (1 − 2^-40) is just below halfway between two float32, and as a float64 halfway.
    c = np.where(k % 3, 2.0**24 + 2, 2.0**24).astype(np.float32)
    a[0], b[0], c[0] = 1 + 2.0**-20, 1 - 2.0**-20, 2**24 + 2
    for i in range(500):
        x = np.array([[1, b[i]]], np.float32)
        got = sums_of_products(x, np.array([[[c[i]], [a[i]]]], np.float32))[0, 0]
        exact = Fraction(float(a[i])) * Fraction(float(b[i])) + Fraction(float(c[i]))
        assert got == rounded_once(exact)


@pytest.mark.parametrize("name", QUANTIZABLE)
def test_weights_are_decoded_to_the_same_bits_without_a_kernel(name: str) -> None:
    values = np.random.default_rng(3).standard_normal((4, 512)).astype(np.float32)
    tensor = quantized("weight", values, name)
    assert same_bits(decoded(tensor), tensor.array())


def test_probabilities_and_likeliest_tokens_are_those_of_the_kernels() -> None:
    rng = np.random.default_rng(4)
    for scale in (0.1, 5.0, 300.0):
        logits = rng.standard_normal(1536) * scale
        logits[7] = logits[99] = logits.max()  # equal ones
        logits[5] = -1e6  # e^x is 0
        assert same_bits(numpy_llama.softmax(logits), math64.softmax(logits))
        for k in (1, 40):
            assert numpy_llama.topk(logits, k).tolist() == topk(logits, k).tolist()


# --- The change to kernels -----------------------------------------------------------------------


class Processes:
    """In place of the processes that compile: kernels are on disk when the test says so."""

    started: list[dict[str, object]]

    def __init__(self) -> None:
        self.started = []
        self.is_done = False

    def __call__(
        self,
        function: str,
        arguments: dict[str, object],
        *,
        n_kernels: int,
        is_in_background: bool = False,
    ) -> Processes:
        assert function.endswith("compile_steps")
        assert n_kernels > 0
        assert arguments.get("is_in_background", False) == is_in_background
        self.started.append(arguments)
        return self

    def __len__(self) -> int:
        return 2

    def wait_for(self, _kernels: object) -> bool:
        self.is_done = True
        return True


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Processes]:
    """An empty folder of kernels, for a process that has loaded all of them."""
    stub = Processes()
    folder = tmp_path / "kernels"
    folder.mkdir()
    kernel = Missing("refllm.kernels.linear.gemv", folder / "gemv.nbc", None, ())
    monkeypatch.setattr(Missing, "is_kept", property(lambda _: stub.is_done))
    monkeypatch.setattr(compiling, "Workers", stub)
    monkeypatch.setattr(starting_llama, "missing_of_llama", lambda *_: [kernel])
    monkeypatch.delenv("REFLLM_COMPILE", raising=False)
    yield stub
    stand_in(math64.softmax, None)
    stand_in(topk, None)


def text_of(engine: LocalEngine, stop_waiting: Processes | None = None, after: int = 0) -> str:
    """What tiny-chat generates; the kernels are there after so many tokens."""
    text = ""
    options = GenerationOptions(ignore_eos=True)
    params = InferencingParams(max_tokens=24)
    chunks = engine.stream("tiny-chat", "Once upon a time", params, generation_options=options)
    for i, chunk in enumerate(chunks):
        text += chunk.text
        if stop_waiting is not None and i == after:
            stop_waiting.is_done = True
    return text


@pytest.mark.parametrize("after", [0, 9, 100])
def test_the_text_is_the_same_whenever_the_kernels_are_there(
    processes: Processes, after: int
) -> None:
    engine = LocalEngine(compiles_apart=True, roots=[ROOT])
    network = engine.inferencing_model("tiny-chat").network
    text = text_of(engine, processes, after)
    assert text == text_of(LocalEngine(roots=[ROOT]))
    assert isinstance(network, StartingLlama)
    assert network._is_in_numpy == (after == 100)
    assert len(processes.started) == 1
    assert processes.started[0]["is_in_background"]


def test_a_text_after_an_interrupted_packing_is_the_same(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = LocalEngine(compiles_apart=True, roots=[ROOT])
    engine.inferencing_model("tiny-chat")

    def interrupt(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(starting_llama, "Llama", interrupt)
        with pytest.raises(KeyboardInterrupt):
            text_of(engine, processes, after=3)
    assert text_of(engine) == text_of(LocalEngine(roots=[ROOT]))


def test_a_large_llama_waits_for_its_kernels(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting_llama, "MAX_WEIGHTS", 1000)
    engine = LocalEngine(compiles_apart=True, roots=[ROOT])
    assert text_of(engine) == text_of(LocalEngine(roots=[ROOT]))
    assert processes.is_done
    assert "is_in_background" not in processes.started[0]


def test_a_long_prompt_waits_for_its_kernels(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting_llama, "MAX_PRODUCTS", 1000)
    assert text_of(LocalEngine(compiles_apart=True, roots=[ROOT]))
    assert processes.is_done


def test_int8_waits_for_its_kernels(processes: Processes) -> None:
    engine = LocalEngine(compiles_apart=True, roots=[ROOT], numerics="int8")
    assert text_of(engine) == text_of(LocalEngine(roots=[ROOT], numerics="int8"))
    assert processes.started[0]["numerics"] == "int8"


def test_no_process_is_started_where_the_environment_forbids_it(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFLLM_COMPILE", "here")
    engine = LocalEngine(compiles_apart=True, roots=[ROOT])
    assert text_of(engine)
    assert processes.started == []
    assert not engine.inferencing_model("tiny-chat").network._is_in_numpy  # type: ignore[attr-defined]


def test_without_a_folder_for_kernels_a_small_llama_stays_in_numpy(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting_llama, "missing_of_llama", lambda *_: [])
    monkeypatch.setattr(disk_cache, "_folder", lambda: None)
    engine = LocalEngine(compiles_apart=True, roots=[ROOT])
    assert text_of(engine) == text_of(LocalEngine(roots=[ROOT]))
    assert processes.started == []


def test_a_missing_tensor_is_named_as_without_other_processes() -> None:
    weights = open_weights(TINY_CHAT)
    tensors = {name: t for name, t in weights.tensors.items() if name != "blk.1.ffn_down.weight"}
    with pytest.raises(Exception, match=r"blk\.1\.ffn_down\.weight is missing"):
        StartingLlama(llama_config(weights, ledger=Ledger()), Parameters(weights.path, tensors))


@pytest.mark.usefixtures("processes")
def test_intermediate_values_are_those_of_the_kernels() -> None:
    engine = LocalEngine(compiles_apart=True, roots=[ROOT])
    model = engine.inferencing_model("tiny-chat")
    seen: list[str] = []
    model.forward(PROMPT, tap=lambda name, _: seen.append(name))
    assert "kqv_out-3" in seen
