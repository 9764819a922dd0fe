"""What refllm's benchmarks are asked to show, and whether they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from benchmarks.documents import CLIENTS, EMBED, FEWER_ROWS, RAY_DATA, SENTENCE_TRANSFORMERS
from benchmarks.embed import INT8
from benchmarks.results import REFLLM, Entry, Figure
from benchmarks.sharing import IDLE, SETTINGS, SITUATIONS
from benchmarks.synthetic import QUANTIZED_TYPES
from benchmarks.taps import WITHOUT

__all__ = ["ASKED", "Ask", "Latest", "Measured", "measured"]

Verdict = Literal["missed", "reached", "beyond"]
Latest: TypeAlias = Mapping[str, Sequence[Entry]]  # the runs that count, by benchmark

SHAPES = ("1.1B", "7B-8-layers")
EMBEDDERS = ("sentence-transformers", "onnxruntime")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A line of the table: which figures it is about, and the borders they are to keep.

    `labels` are the values that a figure's labels may have; `peers` those of which the best is
    compared with, none where refllm's own median counts.
    """

    text: str
    benchmark: str
    labels: Mapping[str, Sequence[str]]
    peers: Sequence[str] = ()
    unit: str = "×"
    sense: Literal["at least", "at most"] = "at least"
    asked: float
    beyond: float

    def holds(self, value: float, border: float) -> bool:
        """Whether a value is on the good side of a border."""
        return value >= border if self.sense == "at least" else value <= border

    def applies_to(self, figure: Figure) -> bool:
        """Whether a figure is one of those asked about."""
        return all(figure.labels.get(key) in values for key, values in self.labels.items())


@dataclass(frozen=True, slots=True)
class Measured:
    """The worst and the best of an ask's values, the figures they come from, and the verdict.

    `missing_shapes` are asked about, and in no run.
    """

    worst: tuple[float, Figure]
    best: tuple[float, Figure]
    verdict: Verdict
    missing_shapes: Sequence[str] = ()


def _llamas(work: str, types: Sequence[str], numerics: str, asked: float, beyond: float) -> Ask:
    return Ask(
        text=f"{work} {', '.join(types)} ({numerics})",
        benchmark=work,
        labels={"shape": SHAPES, "type": types, "numerics": (numerics,)},
        peers=("llama.cpp",),
        asked=asked,
        beyond=beyond,
    )


def _serving(numerics: str, asked: float) -> Ask:
    return Ask(
        text=f"8 clients of `refllm serve` together, ÷ one client, 1.1B Q8_0 ({numerics})",
        benchmark="serve",
        labels={"work": ("8 clients",), "model": ("1.1B-Q8_0",), "numerics": (numerics,)},
        peers=("one client",),
        asked=asked,
        beyond=4.0,
    )


ASKED: tuple[Ask, ...] = (
    _llamas("decode", ("F16", "Q8_0"), "exact", 1.0, 1.15),
    _llamas("decode", ("Q4_0", "Q4_K_M"), "exact", 0.8, 1.0),
    _llamas("decode", QUANTIZED_TYPES, "int8", 1.05, 1.3),
    _llamas("prefill", ("F16",), "exact", 1.0, 1.2),
    _llamas("prefill", QUANTIZED_TYPES, "int8", 2.2, 3.5),
    _llamas("prefill", QUANTIZED_TYPES, "exact", 0.8, 1.1),
    Ask(
        text="embeddings, 1000 real sentences of mixed length, ÷ the better peer",
        benchmark="embed",
        labels={"work": ("mixed lengths",)},
        peers=EMBEDDERS,
        asked=1.3,
        beyond=2.0,
    ),
    Ask(
        text="embeddings, uniform length, ÷ onnxruntime",
        benchmark="embed",
        labels={"work": ("uniform length",)},
        peers=("onnxruntime",),
        asked=1.0,
        beyond=1.2,
    ),
    Ask(
        text="embeddings, mixed lengths, int8 in Q8_0, ÷ the better float32 peer",
        benchmark="embed",
        labels={"work": (f"mixed lengths, {INT8}",)},
        peers=EMBEDDERS,
        asked=2.0,
        beyond=3.0,
    ),
    Ask(
        text="one sentence, latency, ÷ onnxruntime's",
        benchmark="embed",
        labels={"work": ("one sentence",)},
        peers=("onnxruntime",),
        sense="at most",
        asked=0.9,
        beyond=0.6,
    ),
    Ask(
        text="`refllm infer` on stories260K, warm cache, whole process, 20 tokens",
        benchmark="startup",
        labels={"work": ("refllm infer",), "cache": ("warm",)},
        unit="s",
        sense="at most",
        asked=1.2,
        beyond=0.7,
    ),
    Ask(
        text="first run ever, empty cache, tiny-chat, 96 tokens, whole process",
        benchmark="startup",
        labels={"work": ("first run ever, whole process",)},
        unit="s",
        sense="at most",
        asked=6,
        beyond=3,
    ),
    Ask(
        text="the same, until the first word",
        benchmark="startup",
        labels={"work": ("first run ever, first word",)},
        unit="s",
        sense="at most",
        asked=3,
        beyond=3,
    ),
    Ask(
        text="decode on stories260K",
        benchmark="startup",
        labels={"work": ("decode",)},
        unit="tokens/s",
        asked=3000,
        beyond=8000,
    ),
    Ask(
        text="decode on stories260K, ÷ the time without the calls of a tap",
        benchmark="taps",
        labels={"work": ("decode",)},
        peers=(WITHOUT,),
        sense="at most",
        asked=1.01,
        beyond=1.005,
    ),
    _serving("exact", 2.6),
    _serving("int8", 3.5),
    Ask(
        text="8 clients of a component of `refllm run` that computes and waits, ÷ one client",
        benchmark="components",
        labels={"component": ("waits 50 ms", "computes, waits 50 ms")},
        peers=("one client",),
        asked=3.0,
        beyond=6.0,
    ),
    Ask(
        text="beside busy processes, or with half a CPU, ÷ the best setting's time",
        benchmark="sharing",
        labels={"beside": SITUATIONS},
        peers=SETTINGS,
        sense="at most",
        asked=1.15,
        beyond=1.05,
    ),
    Ask(
        text="on an idle machine, ÷ the time of all CPUs' threads waiting actively",
        benchmark="sharing",
        labels={"beside": (IDLE,)},
        peers=("all CPUs",),
        sense="at most",
        asked=1.02,
        beyond=1.0,
    ),
    Ask(
        text="first token of a repeated prompt of 400 tokens, tiny-chat, ÷ without a cache",
        benchmark="reuse",
        labels={"work": ("repeated prompt",)},
        peers=("without a cache",),
        sense="at most",
        asked=0.2,
        beyond=0.1,
    ),
    Ask(
        text="vectors of files by `refllm batch embed`, rows/s ÷ those of `embed`",
        benchmark="documents",
        labels={"work": ("vectors",)},
        peers=(EMBED,),
        asked=0.95,
        beyond=1.0,
    ),
    Ask(
        text="the same, all-MiniLM-L6-v2, ÷ sentence-transformers' `encode`",
        benchmark="documents",
        labels={"work": ("vectors",)},
        peers=(SENTENCE_TRANSFORMERS,),
        asked=1.3,
        beyond=2.0,
    ),
    Ask(
        text="the same, both on Ray",
        benchmark="documents",
        labels={"work": ("vectors on Ray",)},
        peers=(RAY_DATA,),
        asked=1.3,
        beyond=2.0,
    ),
    Ask(
        text="the same by int8 in Q8_0, ÷ sentence-transformers in float32",
        benchmark="documents",
        labels={"work": (f"vectors, {INT8}",)},
        peers=(SENTENCE_TRANSFORMERS,),
        asked=2.0,
        beyond=3.0,
    ),
    Ask(
        text="texts of files by `refllm batch infer`, ÷ eight clients of the server, without HTTP",
        benchmark="documents",
        labels={"work": ("texts",)},
        peers=(CLIENTS,),
        asked=0.9,
        beyond=1.0,
    ),
    Ask(
        text="peak memory of `refllm batch embed` beyond the model",
        benchmark="documents",
        labels={"work": ("peak memory",)},
        unit="GB",
        sense="at most",
        asked=1.2,
        beyond=0.5,
    ),
    Ask(
        text="the same, ÷ that of a tenth of the rows",
        benchmark="documents",
        labels={"work": ("peak memory",)},
        peers=(FEWER_ROWS,),
        sense="at most",
        asked=1.25,
        beyond=1.1,
    ),
    Ask(
        text="peak memory of loading, KV cache of one token included",
        benchmark="load",
        labels={"work": ("peak memory",), "shape": SHAPES},
        unit="× file",
        sense="at most",
        asked=1.07,
        beyond=1.0,
    ),
)


def measured(ask: Ask, latest: Latest) -> Measured | None:
    """What the latest runs of the ask's benchmark say; None where they say nothing."""
    values = []
    figures = [figure for run in latest.get(ask.benchmark, ()) for figure in run.figures]
    for figure in filter(ask.applies_to, figures):
        value = figure.ratio_to_best(among=ask.peers) if ask.peers else figure.median(REFLLM)
        if value is not None:
            values.append((value, figure))
    if not values:
        return None
    values.sort(key=lambda pair: pair[0], reverse=ask.sense == "at most")
    worst, best = values[0], values[-1]
    shapes = {figure.labels.get("shape") for _, figure in values}
    missing = [shape for shape in ask.labels.get("shape", ()) if shape not in shapes]
    if ask.holds(worst[0], ask.beyond):
        return Measured(worst, best, "beyond", missing)
    verdict: Verdict = "reached" if ask.holds(worst[0], ask.asked) else "missed"
    return Measured(worst, best, verdict, missing)
