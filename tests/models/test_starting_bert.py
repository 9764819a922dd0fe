"""An encoder before its kernels are compiled: other processes compile them, and it waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from refllm.checkpoints.config import bert_config
from refllm.checkpoints.open import open_weights
from refllm.engine import LocalEngine
from refllm.files.accounting.ledger import Ledger
from refllm.jit.compile import Missing, recorded
from refllm.models import compiling, starting_bert
from refllm.models.bundled import ROOT
from refllm.models.starting_bert import StartingBert
from refllm.parameters import Parameters

TINY_EMBED = ROOT / "bert" / "tiny-embed.gguf"
TEXTS = ["A cat sleeps.", "The harbor is frozen, and no ship has come for weeks."]


class Processes:
    """In place of the processes that compile: kernels are on disk once they are waited for."""

    def __init__(self) -> None:
        self.started: list[tuple[str, dict[str, Any]]] = []
        self.is_done = False

    def __call__(
        self, function: str, arguments: dict[str, Any], *, n_kernels: int, is_in_background: bool
    ) -> Processes:
        assert n_kernels > 0
        assert not is_in_background  # this process computes nothing meanwhile
        self.started.append((function, arguments))
        return self

    def __len__(self) -> int:
        return 2

    def wait_for(self, _kernels: object) -> bool:
        self.is_done = True
        return True


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Processes:
    """An empty folder of kernels, for a process that has loaded all of them."""
    stub = Processes()
    kernel = Missing("refllm.kernels.linear.gemv", tmp_path / "gemv.nbc", None, ())

    @contextmanager
    def with_one(result_of: Callable[..., Any]) -> Iterator[dict[Path, Missing]]:
        with recorded(result_of) as missing:
            if not stub.is_done:
                missing[kernel.path] = kernel
            yield missing

    monkeypatch.setattr(starting_bert, "recorded", with_one)
    monkeypatch.setattr(compiling, "Workers", stub)
    monkeypatch.delenv("REFLLM_COMPILE", raising=False)
    return stub


def test_the_first_vectors_wait_for_their_kernels_and_are_the_later_ones(
    processes: Processes,
) -> None:
    engine = LocalEngine(compiles_apart=True, roots=[ROOT])
    model = engine.embedding_model("tiny-embed")
    assert isinstance(model.network, StartingBert)
    assert processes.started == []  # the texts decide about the kernels
    result = engine.generate_embeddings("tiny-embed", TEXTS)
    assert processes.is_done
    [(function, arguments)] = processes.started
    assert function == "refllm.models.compiling:compile_texts"
    assert arguments["lengths"] == [len(ids) for ids in model.tokenize(TEXTS).token_ids]
    assert engine.generate_embeddings("tiny-embed", TEXTS) == result
    assert LocalEngine(roots=[ROOT]).generate_embeddings("tiny-embed", TEXTS) == result
    assert len(processes.started) == 1


def test_the_last_layer_alone_waits_for_the_weights_too(processes: Processes) -> None:
    network = LocalEngine(compiles_apart=True, roots=[ROOT]).embedding_model("tiny-embed").network
    texts = [[2, 50, 3], [2, 60, 61, 3]]
    plain = LocalEngine(roots=[ROOT]).embedding_model("tiny-embed").network
    assert network.hidden(texts).tobytes() == plain.hidden(texts).tobytes()
    assert processes.is_done


@pytest.mark.usefixtures("processes")
def test_texts_after_an_interrupted_packing_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LocalEngine(compiles_apart=True, roots=[ROOT])
    engine.embedding_model("tiny-embed")

    def interrupt(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(starting_bert, "Bert", interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine.generate_embeddings("tiny-embed", TEXTS)
    right = LocalEngine(roots=[ROOT]).generate_embeddings("tiny-embed", TEXTS)
    assert engine.generate_embeddings("tiny-embed", TEXTS) == right


def test_texts_of_another_size_wait_for_their_own_kernels(
    processes: Processes, tmp_path: Path
) -> None:
    engine = LocalEngine(compiles_apart=True, roots=[ROOT])
    engine.generate_embeddings("tiny-embed", TEXTS[:1])
    processes.is_done = False
    engine.generate_embeddings("tiny-embed", TEXTS[:1])
    assert len(processes.started) == 1
    (tmp_path / "gemv.nbc").touch()
    engine.generate_embeddings("tiny-embed", [" ".join(TEXTS * 9)])
    assert processes.is_done


@pytest.mark.parametrize(("threads", "told"), [(1, 1), (None, None)])
def test_processes_compile_the_forms_for_the_number_of_threads(
    threads: int | None, told: int | None, processes: Processes
) -> None:
    LocalEngine(compiles_apart=True, roots=[ROOT], threads=threads).generate_embeddings(
        "tiny-embed", TEXTS
    )
    assert [arguments["n_threads"] for _, arguments in processes.started] == [told]


def test_no_process_is_started_where_the_environment_forbids_it(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFLLM_COMPILE", "here")
    engine = LocalEngine(compiles_apart=True, roots=[ROOT])
    result = engine.generate_embeddings("tiny-embed", TEXTS)
    assert processes.started == []
    assert LocalEngine(roots=[ROOT]).generate_embeddings("tiny-embed", TEXTS) == result


@pytest.mark.usefixtures("processes")
def test_a_missing_tensor_is_named_as_without_other_processes() -> None:
    weights = open_weights(TINY_EMBED)
    tensors = {name: t for name, t in weights.tensors.items() if name != "blk.1.ffn_down.weight"}
    with pytest.raises(Exception, match=r"blk\.1\.ffn_down\.weight is missing"):
        StartingBert(bert_config(weights, ledger=Ledger()), Parameters(weights.path, tensors))
