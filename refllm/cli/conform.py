"""`refllm conform TARGET`: test a backend with the golden suite, and find which part is wrong."""

from __future__ import annotations

import shlex
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refllm.cli.common import one_line, write_text
from refllm.errors import InvalidInput, LlmRuntimeError

if TYPE_CHECKING:
    from refllm.conform.bits import PublishedBits
    from refllm.conform.case import Case
    from refllm.conform.profiles import Profile
    from refllm.conform.report import Report
    from refllm.conform.suite import Suite
    from refllm.conform.targets import Options

__all__ = ["conform"]

NOT_ASKED = 2  # the target could not be reached or started, so no case has a verdict
SECONDS = 60.0  # the limit of one case
MAX_LISTED = 3  # patterns of a profile


class Protocol(StrEnum):
    """The protocol of an HTTP server."""

    spin = "spin"
    openai = "openai"


def conform(
    *,
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="TARGET",
            help="A URL, a command that speaks JSON lines, module:object, or a .wasm component.",
            show_default=False,
        ),
    ] = None,
    protocol: Annotated[
        Protocol | None,
        typer.Option(help="The protocol of a URL's server.", show_default=Protocol.spin.value),
    ] = None,
    token: Annotated[str | None, typer.Option(help="The server's token, if any.")] = None,
    group: Annotated[
        list[str] | None, typer.Option(metavar="GROUP", help="Only this group; repeatable.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Only cases whose id matches, as text/*; repeatable."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few cases of each group.")] = False,
    profile: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Known deviations: a name, or the path of a .toml file."),
    ] = None,
    model_map: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=THEIRS", help="A server's name for a model; repeatable."),
    ] = None,
    have: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A model of the suite that the target has; repeatable.",
            show_default="tiny-chat and tiny-embed for a server, every one otherwise",
        ),
    ] = None,
    draws_as_refllm: Annotated[
        bool,
        typer.Option(
            "--draws-as-refllm", help="The server has refllm's random numbers, with seed 0."
        ),
    ] = False,
    claims_revision: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="The numerics revision whose bits the target must compute.",
            show_default="the target's own claim, or none",
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="Time limit of a case; a Python object has none.")
    ] = SECONDS,
    junit: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="Write a report for CI systems."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="Write a report for people, one file."),
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="Write a report for programs."),
    ] = None,
    badge: Annotated[
        Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Write an SVG for a README.")
    ] = None,
    write_models: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", file_okay=False, help="Only write the suite's models into DIR."
        ),
    ] = None,
) -> None:
    """Run the golden suite against a backend of the interface.

    Exit code 0: all cases have the expected result. 1: a case does not. 2: no case was tried: wrong
    usage, a target that cannot be reached or started, or no case for it.
    """
    if write_models is not None:
        _write_models(write_models)
        return
    if target is None:
        raise typer.BadParameter("give TARGET: a URL, a command, module:object, or a .wasm file")
    from refllm.conform.profiles import load_profile, require_known_cases
    from refllm.conform.report.files import require_writable, write_reports
    from refllm.conform.report.text import text_of
    from refllm.conform.suite import chosen, is_bits_chosen, load_suite
    from refllm.conform.targets import Options

    files = {
        kind: path
        for kind, path in {"junit": junit, "html": html, "json": json, "badge": badge}.items()
        if path is not None
    }
    with _errors_as_wrong_usage():
        _refuse_unless_server(
            target,
            {
                "--protocol": protocol,
                "--token": token,
                "--model-map": model_map,
                "--draws-as-refllm": draws_as_refllm or None,
            },
        )
        # Reports are checked before the run, which takes minutes.
        require_writable(files)
        if html is not None:
            from refllm.conform.report.html import require_packages

            require_packages()
        suite = load_suite()
        cases = chosen(suite, groups=group or (), only=only or (), quick=quick)
        asks_bits = is_bits_chosen(suite, groups=group or (), only=only or ())
        if claims_revision is not None:
            _check_claim(claims_revision, target, suite.bits)
            asks_bits = True  # whatever --group and --only leave out
        names = _pairs(model_map or ())
        known = None if profile is None else load_profile(profile)
        if known is not None:
            require_known_cases(known, [case.id for case in suite.cases])
            _warn_of_unmatched(known, cases)
        asked = (*cases, suite.bits.case) if asks_bits else cases
        absent = _absent_models(asked, target, have, names)
    options = Options(
        protocol=(protocol or Protocol.spin).value,
        token=token,
        model_map=names,
        draws_as_refllm=draws_as_refllm,
        seconds=seconds,
    )
    given = {
        "--protocol": [protocol.value] if protocol else [],
        "--profile": [profile] if profile is not None else [],
        "--model-map": model_map or [],
        "--have": have or [],
        "--claims-revision": [str(claims_revision)] if claims_revision is not None else [],
        "--seconds": [f"{seconds:g}"] if seconds != SECONDS else [],
    }
    words = [
        *("refllm", "conform", target),
        *(word for name in given for value in given[name] for word in (name, value)),
        *(["--draws-as-refllm"] if draws_as_refllm else []),
    ]
    command = shlex.join(words)
    if token is not None:
        command += ' --token "$TOKEN"'  # reports are published, tokens are not
    report = _run(
        target,
        options,
        cases,
        absent,
        known,
        suite,
        command,
        asks_bits=asks_bits,
        claims_revision=claims_revision,
    )
    try:
        write_text(text_of(report))
    finally:  # also where standard output is closed
        write_reports(report, files)
    raise typer.Exit(report.exit_code)


def _run(
    target: str,
    options: Options,
    cases: Sequence[Case],
    absent: Collection[str],
    profile: Profile | None,
    suite: Suite,
    command: str,
    *,
    asks_bits: bool,
    claims_revision: int | None,
) -> Report:
    """Start the target, run the cases, stop it. Exits with 2 where it does not start."""
    from refllm.conform.bits import ask_bits
    from refllm.conform.reply import TargetError
    from refllm.conform.report import Report, environment_here
    from refllm.conform.report.text import progress
    from refllm.conform.runner import run_cases
    from refllm.conform.targets import target_of

    started, begin = datetime.now(UTC), time.perf_counter()
    try:
        tested = target_of(target, options)
        try:
            implementation = tested.start()
            with progress(len(cases)) as each:
                verdicts = run_cases(
                    tested, implementation, cases, profile=profile, absent_models=absent, each=each
                )
            bits = None
            if asks_bits:
                bits = ask_bits(
                    tested,
                    implementation,
                    suite.bits,
                    claim=claims_revision,
                    absent_models=absent,
                )
        finally:
            tested.stop()
    except TargetError as error:
        typer.echo(f"refllm: {error}", err=True)
        raise typer.Exit(NOT_ASKED) from error
    return Report(
        implementation=implementation,
        target=target,
        verdicts=verdicts if bits is None or bits.verdict is None else (*verdicts, bits.verdict),
        suite_version=suite.version,
        numerics_revision=suite.numerics_revision,
        profile=None if profile is None else profile.name,
        environment=environment_here(),
        started=started,
        seconds=time.perf_counter() - begin,
        command=command,
        bits=bits,
    )


@contextmanager
def _errors_as_wrong_usage() -> Iterator[None]:
    """Turn errors before the run, such as a missing package, into wrong usage: exit code 2."""
    try:
        yield
    except (InvalidInput, LlmRuntimeError) as error:
        raise typer.BadParameter("\n".join(map(one_line, map(str, error.args)))) from error


def _refuse_unless_server(target: str, options: Mapping[str, object]) -> None:
    """Raise `InvalidInput` for a given option, one that is not None, that only servers have."""
    from refllm.conform.targets import is_url

    given = [name for name, value in options.items() if value is not None]
    if given and not is_url(target):
        raise InvalidInput(
            f"{given[0]} is for servers, and {target!r:.200} is none: a server's URL begins with "
            f"http:// or https://; leave {given[0]} out"
        )


def _check_claim(revision: int, target: str, published: PublishedBits) -> None:
    """Raise `InvalidInput` for a claim of bits that cannot be compared."""
    from refllm.conform.targets import is_url

    if is_url(target):
        raise InvalidInput(
            f"--claims-revision is for targets that give logits, and a server such as "
            f"{target!r:.200} gives none: leave it out, or write a harness"
        )
    if revision not in published.sha256s:
        raise InvalidInput(
            f"--claims-revision {revision}: golden/bits has numerics revisions "
            f"{published.revisions} only"
        )


def _warn_of_unmatched(profile: Profile, cases: Sequence[Case]) -> None:
    """Write a warning about patterns of the profile that match none of the chosen cases."""
    unmatched = profile.unmatched([case.id for case in cases])
    if unmatched:
        named = [*unmatched[:MAX_LISTED], *(["…"] if len(unmatched) > MAX_LISTED else [])]
        typer.echo(
            "refllm: --group, --only or --quick leave out all cases that the profile "
            f"{profile.name} has as {', '.join(named)}",
            err=True,
        )


def _pairs(given: Sequence[str]) -> dict[str, str]:
    """Return NAME=THEIRS as a dict. Raises `InvalidInput` for a name that the suite lacks."""
    from refllm.conform.models import MODEL_NAMES
    from refllm.conform.suite import nearest

    pairs = {}
    for text in given:
        name, equals, theirs = text.partition("=")
        if not equals or not theirs or name not in MODEL_NAMES:
            raise InvalidInput(
                f"--model-map takes NAME=THEIRS, got {text!r:.80}{nearest(name, MODEL_NAMES)} "
                f"NAME is one of {', '.join(MODEL_NAMES)}"
            )
        pairs[name] = theirs
    return pairs


def _absent_models(
    cases: Sequence[Case], target: str, have: Sequence[str] | None, names: Mapping[str, str]
) -> set[str]:
    """Return the models whose cases are skipped.

    A server has the models of --have, or else the bundled ones; other targets report a missing
    model in each case.
    """
    from refllm.conform.models import MODEL_NAMES
    from refllm.conform.suite import nearest
    from refllm.conform.targets import is_url

    unknown = sorted(set(have or ()) - set(MODEL_NAMES))
    if unknown:
        raise InvalidInput(
            f"the suite has no model {unknown[0]!r:.80}{nearest(unknown[0], MODEL_NAMES)} Its "
            f"models are {', '.join(MODEL_NAMES)}"
        )
    if not have and not is_url(target):
        return set()
    present = {*(have or ("tiny-chat", "tiny-embed")), *names}
    return {name for case in cases for name in case.models} - present


def _write_models(folder: Path) -> None:
    from refllm.conform.models import MODEL_NAMES, is_shipped_or_made, suite_model
    from refllm.files.whole import whole_file

    with tempfile.TemporaryDirectory() as made:
        for name in filter(is_shipped_or_made, MODEL_NAMES):
            source = suite_model(name, Path(made))
            assert source is not None  # these are on every machine
            target = folder / f"{name}.gguf"
            with whole_file(target, parents=True) as unfinished:
                shutil.copyfile(source, unfinished)
            write_text(f"{target}\n")
