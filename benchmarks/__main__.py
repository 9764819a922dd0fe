"""`python -m benchmarks COMMAND`, from the project's folder; README.md explains the commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import llamas
from benchmarks.batch import measure_batches
from benchmarks.compare import Bench, Options
from benchmarks.components import measure_components
from benchmarks.contestants.serve import versions
from benchmarks.documents import measure_documents
from benchmarks.embed import measure_embedding, minilm_folder
from benchmarks.first_token import measure_first_token
from benchmarks.growth import fits_of, measure_embedding_growth, measure_llama_growth
from benchmarks.guests import measure_guests
from benchmarks.limits import measure_limits
from benchmarks.llamas import Work, measure_llamas
from benchmarks.load import measure_load
from benchmarks.machine import this_machine
from benchmarks.peer import PROJECT, Unavailable
from benchmarks.plot import plot_growth
from benchmarks.report import latest_entries, tables, with_tables
from benchmarks.results import REFLLM, Entry, append, read
from benchmarks.reuse import measure_reuse
from benchmarks.serve import measure_serve
from benchmarks.sharing import measure_sharing
from benchmarks.sources import revision, sha256_of_sources
from benchmarks.startup import measure_startup
from benchmarks.taps import measure_taps

__all__ = ["app"]

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results.json"
STORIES = Path("stories260K", "stories260K.gguf")
DATA = Path(os.environ.get("REFLLM_TEST_DATA") or PROJECT.parent / "shared" / "data")

WORK = Path("~/.cache/refllm-benchmarks").expanduser()
N_CPUS = len(os.sched_getaffinity(0))
ROUNDS = 7
QUICK_ROUNDS = 1

ShapesOption = Annotated[list[str] | None, typer.Option("--shape", help="Only this shape.")]
TypesOption = Annotated[list[str] | None, typer.Option("--type", help="Only this type.")]
ModelOption = Annotated[
    Path | None, typer.Option(help="A folder of all-MiniLM-L6-v2; fetched where none is given.")
]


@dataclass(frozen=True, slots=True)
class Session:
    """What the options before the command say."""

    options: Options
    results: Path | None

    def run(
        self, benchmark: str, measure: Callable[[Bench], None], *, is_partial: bool = False
    ) -> None:
        """Measure, and keep what comes of it; exit with 1 where what is needed is not there."""
        options = self.options
        # Before anything runs: contestants start at different times, and must start the same code.
        machine, name, sources = this_machine(), revision(), sha256_of_sources()
        bench = Bench(options)
        bench.versions[REFLLM] = versions("refllm", "numpy", "numba", "llvmlite")
        try:
            measure(bench)
        except Unavailable as error:
            typer.echo(f"{benchmark}: {error}; --peer-python names an interpreter", err=True)
            raise typer.Exit(1) from error
        has_changed = sha256_of_sources() != sources
        if has_changed:
            bench.skip("report", "refllm's sources changed during the run")
        entry = Entry(
            benchmark=benchmark,
            revision=name,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            is_complete=not (options.is_quick or is_partial or has_changed),
            machine=machine,
            threads=options.threads,
            rounds=options.rounds,
            versions=bench.versions,
            figures=bench.figures,
            fits=fits_of(bench.figures),
            skipped=bench.skipped,
        )
        if self.results is not None:
            append(self.results, entry)
            print(f"kept in {self.results}")


app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@app.callback()
def benchmarks(
    context: typer.Context,
    *,
    work: Annotated[
        Path, typer.Option(help="Keeps the files that are made: all models are 14 GB.")
    ] = WORK,
    peer_python: Annotated[
        Path, typer.Option(help="The interpreter that has the peers.", show_default="this one")
    ] = Path(sys.executable),
    threads: Annotated[
        int, typer.Option(min=1, help="Threads of each contestant.", show_default="all CPUs")
    ] = N_CPUS,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Samples of each contestant.", show_default="7")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny work, one sample: does everything run?")
    ] = False,
    results: Annotated[
        Path | None,
        typer.Option(help="Where to keep the result.", show_default="here; nowhere if --quick"),
    ] = None,
) -> None:
    """Measure refllm beside what people use."""
    options = Options(
        work=work,
        python=Path(sys.executable),
        peer_python=peer_python,
        threads=threads,
        rounds=rounds or (QUICK_ROUNDS if quick else ROUNDS),
        is_quick=quick,
    )
    context.obj = Session(options, results if quick else results or RESULTS)


@app.command()
def decode(
    context: typer.Context, *, shape: ShapesOption = None, type_: TypesOption = None
) -> None:
    """Tokens one at a time, beside llama.cpp."""
    session = _session(context)
    work = llamas.decode(8, 4) if session.options.is_quick else llamas.decode(64, 32)
    _measure_llamas(session, work, shape, type_)


@app.command()
def prefill(
    context: typer.Context, *, shape: ShapesOption = None, type_: TypesOption = None
) -> None:
    """A prompt of 512 tokens, beside llama.cpp."""
    session = _session(context)
    _measure_llamas(session, llamas.prefill(16 if session.options.is_quick else 512), shape, type_)


@app.command()
def batch(
    context: typer.Context,
    *,
    size: Annotated[list[int] | None, typer.Option("--texts", min=1, help="Texts at once.")] = None,
    shape: ShapesOption = None,
    type_: TypesOption = None,
) -> None:
    """Tokens of 8 and of 64 texts at once, beside llama.cpp."""
    _session(context).run(
        "batch",
        lambda bench: measure_batches(
            bench, sizes=size or (), shapes=shape or (), types=type_ or ()
        ),
        is_partial=bool(type_ or size),
    )


@app.command()
def first_token(
    context: typer.Context, *, shape: ShapesOption = None, type_: TypesOption = None
) -> None:
    """From a prompt of 512 tokens to the first one, new and kept, beside llama.cpp."""
    _session(context).run(
        "first-token",
        lambda bench: measure_first_token(bench, shapes=shape or (), types=type_ or ()),
        is_partial=bool(type_),
    )


@app.command()
def load(context: typer.Context, *, shape: ShapesOption = None, type_: TypesOption = None) -> None:
    """Seconds and memory until a model is there, beside llama.cpp."""
    _session(context).run(
        "load",
        lambda bench: measure_load(bench, shapes=shape or (), types=type_ or ()),
        is_partial=bool(type_),
    )


@app.command()
def embed(context: typer.Context, *, model: ModelOption = None) -> None:
    """Texts to embeddings, beside sentence-transformers and onnxruntime."""
    session = _session(context)
    folder = model or minilm_folder(session.options.work)
    session.run("embed", lambda bench: measure_embedding(bench, folder))


@app.command()
def documents(
    context: typer.Context,
    *,
    model: ModelOption = None,
    rows: Annotated[int, typer.Option(min=10, help="Documents for tiny-embed.")] = 200_000,
    minilm_rows: Annotated[
        int, typer.Option(min=10, help="Documents for all-MiniLM-L6-v2.")
    ] = 20_000,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts for tiny-chat.")] = 2000,
    ray: Annotated[bool, typer.Option(help="Also on a Ray cluster of this machine.")] = True,
) -> None:
    """`refllm batch` over files, beside sentence-transformers, the server and llama.cpp."""
    session = _session(context)
    folder = model or minilm_folder(session.options.work)
    session.run(
        "documents",
        lambda bench: measure_documents(
            bench,
            folder,
            n_rows=rows,
            n_minilm_rows=minilm_rows,
            n_prompts=prompts,
            with_ray=ray,
        ),
        is_partial=(rows, minilm_rows, prompts, ray) != (200_000, 20_000, 2000, True),
    )


@app.command()
def startup(
    context: typer.Context,
    *,
    model: Annotated[Path, typer.Option(help="stories260K.gguf.")] = DATA / STORIES,
) -> None:
    """The whole `refllm infer`, and the speed of a tiny model."""
    _session(context).run("startup", lambda bench: measure_startup(bench, model))


@app.command()
def growth(
    context: typer.Context,
    *,
    shape: Annotated[str, typer.Option(help="The shape that grows in prompt and batch.")] = "60M",
    type_: Annotated[str, typer.Option("--type", help="The models' type.")] = "Q8_0",
    numerics: Annotated[str, typer.Option(help="The numerics.")] = "exact",
    model: ModelOption = None,
) -> None:
    """How costs grow with prompt, batch and model size, and the exponents."""
    session = _session(context)
    folder = model or minilm_folder(session.options.work)

    def measure(bench: Bench) -> None:
        measure_llama_growth(bench, shape=shape, type_name=type_, numerics=numerics)
        measure_embedding_growth(bench, folder)

    session.run("growth", measure)


@app.command()
def serve(context: typer.Context) -> None:
    """Clients of `refllm serve`, one and eight at a time."""
    _session(context).run("serve", measure_serve)


@app.command()
def guests(context: typer.Context) -> None:
    """Components of Spin's SDKs, from their file to the first response, and each later one."""
    _session(context).run("guests", measure_guests)


@app.command()
def components(context: typer.Context) -> None:
    """Requests to a Spin component, one and eight at a time."""
    _session(context).run("components", measure_components)


@app.command()
def sharing(
    context: typer.Context,
    *,
    model: Annotated[Path, typer.Option(help="stories260K.gguf.")] = DATA / STORIES,
) -> None:
    """Ways to run threads, on an idle machine and on a busy one."""
    _session(context).run("sharing", lambda bench: measure_sharing(bench, model))


@app.command()
def reuse(context: typer.Context) -> None:
    """The first token of a prompt that was asked before, beside an engine that keeps none."""
    _session(context).run("reuse", measure_reuse)


@app.command()
def taps(
    context: typer.Context,
    *,
    model: Annotated[Path, typer.Option(help="stories260K.gguf.")] = DATA / STORIES,
) -> None:
    """Decoding with the calls of a tap that drops everything, and without them."""
    _session(context).run("taps", lambda bench: measure_taps(bench, model))


@app.command()
def limits(context: typer.Context) -> None:
    """What this CPU can do at most, with two roundings and with one."""
    _session(context).run("limits", measure_limits)


@app.command()
def report(context: typer.Context) -> None:
    """Write the latest complete results into the README.md and the growth.png beside them.

    The plot needs matplotlib.
    """
    path = _session(context).results or RESULTS
    readme = path.with_name("README.md")
    latest = latest_entries(read(path))
    readme.write_text(with_tables(readme.read_text("utf-8"), tables(latest)), "utf-8")
    if "growth" in latest:
        plot_growth(latest["growth"][-1], path.with_name("growth.png"))


def _session(context: typer.Context) -> Session:
    assert isinstance(context.obj, Session)
    return context.obj


def _measure_llamas(
    session: Session, work: Work, shapes: list[str] | None, types: list[str] | None
) -> None:
    session.run(
        work.name,
        lambda bench: measure_llamas(bench, work, shapes=shapes or (), types=types or ()),
        is_partial=bool(types),
    )


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
