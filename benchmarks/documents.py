"""`documents`: `refllm batch` over files of rows: rows and tokens per second, and memory.

Vectors beside the rate of `embed` in the same run, and beside sentence-transformers' `encode`;
texts beside eight clients of the server's worker, without HTTP, and beside llama.cpp, which decodes
sequences in parallel.
Memory is that of a process that reads ten times as many rows.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.compare import Bench, Entrant, Outcome, alternate, figure_of
from benchmarks.embed import (
    INT8,
    LARGEST_DIFFERENCE,
    LARGEST_INT8_DIFFERENCE,
    best_batch_size,
    model_tokenizer,
    quantized_model,
)
from benchmarks.llamas import PEER as LLAMA_CPP
from benchmarks.peer import Contestant, Unavailable
from benchmarks.results import REFLLM, Figure
from benchmarks.texts import real_sentences
from refllm.models.bundled import ROOT

__all__ = [
    "CLIENTS",
    "EMBED",
    "FEWER_ROWS",
    "RAY_DATA",
    "SENTENCE_TRANSFORMERS",
    "measure_documents",
]

EMBED = "embed"
RAY_DATA = "sentence-transformers on Ray Data"
SENTENCE_TRANSFORMERS = "sentence-transformers"
CLIENTS = "eight clients"
FEWER_ROWS = "a tenth of the rows"
N_CLIENTS = 8
N_FILES = 10
MAX_TOKENS = 120  # of a document: no library cuts one
TINY_EMBED = ROOT / "bert" / "tiny-embed.gguf"
TINY_CHAT = ROOT / "llama" / "tiny-chat.gguf"
GIGABYTE = 1e9
# Of llama.cpp: as many sequences as `refllm batch infer` computes at once.
N_SEQUENCES = 32
NAMES = ("Lily", "Tom", "The cat", "A little girl", "The old man", "Ben", "Mia", "A brave dog")
PLACES = ("park", "forest", "garden", "school", "beach", "farm", "kitchen", "river")


def measure_documents(
    bench: Bench,
    folder: Path,
    *,
    n_rows: int,
    n_minilm_rows: int,
    n_prompts: int,
    with_ray: bool = True,
) -> None:
    """Vectors of tiny-embed and of the model in `folder`, texts of tiny-chat, and memory.

    Errors: `ValueError` if a program computes something else.
    """
    is_quick = bench.options.is_quick
    work = bench.options.work.absolute() / "documents"
    n_rows, n_minilm_rows, n_prompts = (
        (40, 40, 6) if is_quick else (n_rows, n_minilm_rows, n_prompts)
    )
    tokenizer = model_tokenizer(folder)
    longest, n_sentences, most = (20, 20, 40) if is_quick else (60, 1000, MAX_TOKENS)
    sentences = real_sentences(tokenizer, n_sentences, max_tokens=longest)
    lengths = [len(tokenizer.encode(sentence).ids) for sentence in sentences]
    for name, model, n in (
        ("tiny-embed", TINY_EMBED, n_rows),
        ("all-MiniLM-L6-v2", folder.absolute(), n_minilm_rows),
    ):
        source = random.Random(0)
        files = [work / f"{name}-{n}-{i}.parquet" for i in range(N_FILES)]
        for file in files:
            n_texts = max(n // N_FILES, 1)
            texts = [_document(source, sentences, lengths, most) for _ in range(n_texts)]
            _write(file, texts)
        _vectors(bench, name, model, files[0])
        if model.is_dir() and with_ray:
            _vectors_on_ray(bench, name, model, files[0])
        _memory(bench, name, model, files)
    prompts = [_prompt(i) for i in range(n_prompts)]
    _write(work / "prompts.parquet", prompts)
    _texts(bench, work / "prompts.parquet", n_tokens=4 if is_quick else 64)


def _vectors(bench: Bench, name: str, model: Path, file: Path) -> None:
    """The rates of one file; those by `int8` beside a peer that computes the model in float32."""
    texts = pq.read_table(file)["text"].to_pylist()
    with ExitStack() as stack:
        ours = _loaded(bench, "refllm_batch", {"model": str(model)}, stack)
        alone = _loaded(bench, "refllm_batch", {"model": str(model)}, stack)
        entrants = [
            Entrant(REFLLM, ours, "embed_files", {"files": [str(file)], "to": _folder(file)}),
            Entrant(EMBED, alone, "embed_texts", {"file": str(file)}),
        ]
        notes = {"rows": str(len(texts))}
        if model.is_dir():
            arguments = {"folder": str(model), "work": str(bench.options.work.absolute())}
            try:
                peer = _loaded(bench, "torch_bert", arguments, stack, is_peer=True)
                size = best_batch_size(peer, texts)
            except Unavailable as error:
                bench.skip(SENTENCE_TRANSFORMERS, error)
            else:
                notes["batch size of sentence-transformers"] = str(size)
                both = {"texts": texts, "repeat": 1, "batch_size": size}
                entrants.append(Entrant(SENTENCE_TRANSFORMERS, peer, "embed", both))
            quantized = {"model": str(quantized_model(bench, model)), "numerics": "int8"}
            others = _loaded(bench, "refllm_batch", quantized, stack)
            both = {"files": [str(file)], "to": _folder(file)}
            entrants.append(Entrant(INT8, others, "embed_files", both))
        outcomes = alternate(entrants, rounds=bench.options.rounds, bench=bench)
    if SENTENCE_TRANSFORMERS in outcomes:
        peers = outcomes[SENTENCE_TRANSFORMERS]
        peers.answer = peers.answer[: len(outcomes[REFLLM].answer)]
    int8 = outcomes.pop(INT8, None)
    of_file = partial(figure_of, unit="rows/s", amount=len(texts), notes=notes)
    figure = of_file({"work": "vectors", "model": name}, outcomes)
    if figure.differences.get(EMBED) != 0:
        raise ValueError(f"{figure.name}: batch embed and embed compute different vectors")
    if figure.differences.get(SENTENCE_TRANSFORMERS, 0) > LARGEST_DIFFERENCE:
        raise ValueError(f"{figure.name}: sentence-transformers computes something else")
    bench.add(figure)
    if int8 is not None and SENTENCE_TRANSFORMERS in outcomes:
        both = {REFLLM: int8, SENTENCE_TRANSFORMERS: outcomes[SENTENCE_TRANSFORMERS]}
        figure = of_file({"work": f"vectors, {INT8}", "model": name}, both)
        if figure.differences[SENTENCE_TRANSFORMERS] > LARGEST_INT8_DIFFERENCE:
            raise ValueError(f"{figure.name}: int8 computes something else")
        bench.add(figure)


def _vectors_on_ray(bench: Bench, name: str, model: Path, file: Path) -> None:
    """The rates of one file on a cluster of this machine, for each program with one of its own."""
    n_rows = pq.read_metadata(file).num_rows
    arguments = {"files": [str(file)], "to": _folder(file)}
    with ExitStack() as stack:
        try:
            ours = _loaded(bench, "ray_batch", {"model": str(model)}, stack)
        except Unavailable as error:
            bench.skip("Ray", error)
            return
        entrants = [Entrant(REFLLM, ours, "embed_files", arguments)]
        try:
            peer = _loaded(bench, "ray_torch", {"model": str(model)}, stack, is_peer=True)
        except Unavailable as error:
            bench.skip(RAY_DATA, error)
        else:
            entrants.append(Entrant(RAY_DATA, peer, "embed_files", {**arguments, "batch_size": 32}))
        outcomes = alternate(entrants, rounds=bench.options.rounds, bench=bench)
    labels = {"work": "vectors on Ray", "model": name}
    figure = figure_of(labels, outcomes, unit="rows/s", amount=n_rows)
    if figure.differences.get(RAY_DATA, 0) > LARGEST_DIFFERENCE:
        raise ValueError(f"{figure.name}: sentence-transformers computes something else")
    bench.add(figure)


def _memory(bench: Bench, name: str, model: Path, files: Sequence[Path]) -> None:
    """The peak beyond the loaded model, of a process for each number of rows."""
    peaks: dict[str, list[float]] = {}
    n_rows = {REFLLM: len(files), FEWER_ROWS: 1}
    for who, n_files in n_rows.items():
        with ExitStack() as stack:
            ours = _loaded(bench, "refllm_batch", {"model": str(model)}, stack)
            arguments = {"files": list(map(str, files[:n_files])), "to": _folder(files[0])}
            reply = ours.run("embed_files", **arguments)
        if not reply["memory"]:  # another system than Linux
            return
        peaks[who] = [(reply["memory"]["VmHWM"] - reply["before"]["VmRSS"]) / GIGABYTE]
    bench.add(Figure(labels={"work": "peak memory", "model": name}, unit="GB", samples=peaks))


def _texts(bench: Bench, file: Path, *, n_tokens: int) -> None:
    model = {"model": str(TINY_CHAT)}
    files = [str(file)]
    with ExitStack() as stack:
        ours = _loaded(bench, "refllm_batch", model, stack)
        clients = _loaded(bench, "refllm_batch", model, stack)
        playing = {"files": files, "max_tokens": n_tokens, "n": N_CLIENTS}
        entrants = [
            Entrant(
                *(REFLLM, ours, "infer_files"),
                {"files": files, "to": _folder(file), "max_tokens": n_tokens},
            ),
            Entrant(CLIENTS, clients, "play_clients", playing),
        ]
        outcomes = alternate(entrants, rounds=bench.options.rounds, bench=bench)
        rates = {name: _rates(outcome) for name, outcome in outcomes.items()}
        if outcomes[REFLLM].difference(outcomes[CLIENTS]) != 0:
            raise ValueError("batch infer and the server draw different tokens")
        try:
            peer = _loaded(bench, "llama_cpp_llama", _of_llama_cpp(), stack, is_peer=True)
            peer.run("fill", prompts=[[1, *range(300 + i, 307 + i)] for i in range(N_SEQUENCES)])
            entrant = Entrant(LLAMA_CPP, peer, "continue_together", {"n_tokens": n_tokens})
            outcome = alternate([entrant], rounds=bench.options.rounds, bench=bench)
            rates |= {name: _rates(each) for name, each in outcome.items()}
        except Unavailable as error:
            bench.skip(LLAMA_CPP, error)
    labels = {"work": "texts", "model": "tiny-chat"}
    bench.add(Figure(labels=labels, unit="tokens/s", samples=rates))


def _rates(outcome: Outcome) -> list[float]:
    assert outcome.n_tokens is not None
    return [outcome.n_tokens / seconds for seconds in outcome.seconds]


def _of_llama_cpp() -> Mapping[str, object]:
    return {"path": str(TINY_CHAT), "n_ctx": 512}


def _loaded(
    bench: Bench,
    program: str,
    arguments: Mapping[str, object],
    stack: ExitStack,
    *,
    is_peer: bool = False,
) -> Contestant:
    """A contestant with its model. Errors: `Unavailable`."""
    contestant = stack.enter_context(bench.contestant(program, is_peer=is_peer))
    reply = contestant.run("load", **arguments, threads=bench.options.threads)
    names = {
        "refllm_batch": REFLLM,
        "torch_bert": SENTENCE_TRANSFORMERS,
        "ray_batch": f"{REFLLM} on Ray",
        "ray_torch": RAY_DATA,
    }
    bench.versions[names.get(program, LLAMA_CPP)] = reply["versions"]
    return contestant


def _folder(file: Path) -> str:
    return str(file.with_name("results"))


def _document(
    source: random.Random, sentences: Sequence[str], lengths: Sequence[int], most: int
) -> str:
    """One to eight sentences, so that short documents are frequent and long ones are there."""
    chosen: list[str] = []
    n_tokens = 0
    for _ in range(min(source.randint(1, 8), source.randint(1, 8))):
        i = source.randrange(len(sentences))
        n_tokens += lengths[i]
        if chosen and n_tokens > most:
            break
        chosen.append(sentences[i])
    return " ".join(chosen)


def _prompt(i: int) -> str:
    """The i-th of many different beginnings."""
    name, place = NAMES[i % len(NAMES)], PLACES[i // len(NAMES) % len(PLACES)]
    return f"{name} had {i} apples and went to the {place}."


def _write(file: Path, texts: Sequence[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts}), file)
