"""Make a release's files and check them: `python -m tools.release DIR`, into an empty folder.

    pip install -e '.[release]'
    python -m tools.release dist                        build, compare, list, install
    python -m tools.release dist --python python3.13    install with these interpreters instead

The commit that is checked out is built, not the work tree. It is built twice, in two folders whose
files have other times and permissions; the wheel and the sdist must be the same bytes. Each
interpreter then gets an environment of its own, into which the wheel is installed with other wheels
alone, and answers the README's commands without a compiler on its `PATH`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath

__all__ = ["ReleaseError", "changes_of", "main", "wheel_differences"]

ROOT = Path(__file__).resolve().parent.parent
# The earliest time that a ZIP archive can state is 1980; hatchling's own default is 2020.
SOURCE_DATE_EPOCH = "1580601600"
SBOM = "refllm.cdx.json"
# Folders of the repository, and where the wheel has them.
IN_WHEEL = {"refllm/": "refllm/", "golden/": "refllm/golden/"}
ADDED_TO_WHEEL = {"refllm/py.typed"}
EXAMPLE = re.compile(r"^\$ (refllm .+)\n(.+)$", re.MULTILINE)


class ReleaseError(Exception):
    """A file of the release is not what it must be."""


def main(arguments: list[str] | None = None) -> int:
    """Build and check a release.

    Returns:
        0; or 1 after a line on standard error that names what is wrong.
    """
    parser = argparse.ArgumentParser(description="Build a release and check it.")
    parser.add_argument("folder", type=Path, help="an empty or new folder for the files")
    parser.add_argument("--python", nargs="+", default=[sys.executable], metavar="INTERPRETER")
    parser.add_argument("--version", help="the version that a tag has: pyproject.toml must agree")
    options = parser.parse_args(arguments)
    try:
        release(options.folder.resolve(), options.python, expected_version=options.version)
    except (ReleaseError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"`{shlex.join(map(str, error.cmd))}` ended with {error.returncode}\n")
        return 1
    return 0


def release(folder: Path, interpreters: Iterable[str], *, expected_version: str | None) -> None:
    """Write the wheel, the sdist, the SBOM and SHA256SUMS into `folder`, checked.

    Args:
        folder: Is made where it is missing, and must be empty.
        interpreters: Python interpreters that the wheel is installed with.
        expected_version: Without its "v"; None where no tag is built.

    Raises:
        ReleaseError: A check failed.
        subprocess.CalledProcessError: A tool ended with an error, which it has printed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ReleaseError(f"{folder} is not empty: name an empty folder, or remove it")
    version = _version(expected_version)
    built = _built_twice()
    for name, content in built.items():
        (folder / name).write_bytes(content)
    wheel, sdist = (next(folder.glob(pattern)) for pattern in ("*.whl", "*.tar.gz"))
    tracked = _output("git", "ls-files").splitlines()
    with zipfile.ZipFile(wheel) as archive:
        differences = wheel_differences(archive.namelist(), tracked)
    if differences:
        raise ReleaseError(f"{wheel.name} is not what the repository has: {'; '.join(differences)}")
    _run(sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist))
    for interpreter in interpreters:
        _install_and_ask(interpreter, wheel, version, folder / SBOM)
    _write_sums(folder)


def wheel_differences(names: Collection[str], tracked: Iterable[str]) -> list[str]:
    """Return what a wheel lacks, and what it has too much.

    Args:
        names: Of the wheel's files.
        tracked: The repository's files, relative to its root.

    Returns:
        One sentence a file, sorted; none if the wheel has the package, the golden suite and its own
        metadata, and nothing else.
    """
    expected = ADDED_TO_WHEEL | {
        target + path.removeprefix(source)
        for path in tracked
        for source, target in IN_WHEEL.items()
        if path.startswith(source)
    }
    found = {name for name in names if ".dist-info" not in PurePosixPath(name).parts[0]}
    return sorted(
        [f"{name} is missing" for name in expected - found]
        + [f"{name} should not be there" for name in found - expected]
    )


def changes_of(version: str, changelog: str) -> str:
    """Return the section of a version in CHANGELOG.md.

    Raises:
        ReleaseError: There is none; `towncrier build` writes it.
    """
    found = re.search(
        rf"^## {re.escape(version)} \(.*?(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL
    )
    if found is None:
        raise ReleaseError(
            f"CHANGELOG.md has no section {version}: run `towncrier build --version {version}`"
        )
    return found[0].strip() + "\n"


def _version(expected: str | None) -> str:
    """Return the version, which pyproject.toml, the package and a tag must agree on."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    version = str(project["version"])
    stated = re.search(
        r'^__version__ = "(.+)"$', (ROOT / "refllm/__init__.py").read_text("utf-8"), re.M
    )
    if stated is None or stated[1] != version:
        raise ReleaseError(f"pyproject.toml has version {version}, refllm/__init__.py another one")
    if expected is not None:
        if expected != version:
            raise ReleaseError(f"the tag is of version {expected}, pyproject.toml of {version}")
        changes_of(version, (ROOT / "CHANGELOG.md").read_text("utf-8"))
    return version


def _built_twice() -> dict[str, bytes]:
    """Return the wheel and the sdist of the commit by name.

    Raises:
        ReleaseError: The second build has other bytes.
    """
    commit = subprocess.run(
        ["git", "archive", "HEAD"], cwd=ROOT, check=True, stdout=subprocess.PIPE
    ).stdout
    builds = []
    for umask, time in ((0o022, 1_600_000_000), (0o077, 1_700_000_001)):
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "source"), Path(folder, "dist")
            with tarfile.open(fileobj=io.BytesIO(commit)) as archive:
                archive.extractall(source, filter="data")
            for path in [source, *source.rglob("*")]:
                path.chmod(path.stat().st_mode & ~umask)
                os.utime(path, (time, time))
            _run(
                *(sys.executable, "-m", "build", "--outdir", str(target), str(source)),
                environment={"SOURCE_DATE_EPOCH": SOURCE_DATE_EPOCH},
            )
            builds.append({path.name: path.read_bytes() for path in sorted(target.iterdir())})
    first, second = builds
    if first != second:
        others = sorted(
            name for name in first.keys() | second.keys() if first.get(name) != second.get(name)
        )
        raise ReleaseError(f"a second build has other bytes: {', '.join(others)}")
    return first


def _install_and_ask(interpreter: str, wheel: Path, version: str, sbom: Path) -> None:
    """Install the wheel with an interpreter, and compare its answers with the README's.

    The SBOM is written from the first interpreter's environment.

    Raises:
        ReleaseError: The version, or an answer, is another one.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder, "environment")
        # Without pip, which is no part of what users of refllm run, in the SBOM.
        _run(interpreter, "-m", "venv", "--without-pip", str(environment))
        scripts = environment / ("Scripts" if os.name == "nt" else "bin")
        python = str(scripts / "python")
        _run(
            *(sys.executable, "-m", "pip", "--python", python, "install", "--quiet"),
            *("--only-binary", ":all:", str(wheel)),
        )
        # Only the environment's own programs: no compiler, no linker.
        alone = {
            "PATH": str(scripts),
            "PYTHONPATH": "",
            "REFLLM_CACHE_DIR": str(Path(folder, "cache")),
        }
        stated = _output(str(scripts / "refllm"), "--version", cwd=folder, environment=alone)
        if not stated.startswith(f"refllm {version},"):
            raise ReleaseError(f"{interpreter}: `refllm --version` printed {stated!r}")
        for command, answer in EXAMPLE.findall((ROOT / "README.md").read_text("utf-8")):
            program, *rest = shlex.split(command)
            printed = _output(str(scripts / program), *rest, cwd=folder, environment=alone)
            if not printed.startswith(answer.removesuffix("…")):
                raise ReleaseError(f"{interpreter}: `{command}` printed {printed[:200]!r}")
            sys.stdout.write(f"{interpreter}: `{command}` answers as the README has it\n")
        if not sbom.exists():
            _run(
                *(sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible"),
                *("--pyproject", str(ROOT / "pyproject.toml"), "--output-file", str(sbom), python),
            )


def _write_sums(folder: Path) -> None:
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(folder.iterdir())
    ]
    (folder / "SHA256SUMS").write_text("".join(lines), "utf-8")
    sys.stdout.write("".join(lines))


def _run(*command: str, environment: dict[str, str] | None = None) -> None:
    subprocess.run(command, check=True, env={**os.environ, **(environment or {})})


def _output(
    *command: str, cwd: str | Path = ROOT, environment: dict[str, str] | None = None
) -> str:
    return subprocess.run(
        command,
        cwd=cwd,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={**os.environ, **(environment or {})},
    ).stdout


if __name__ == "__main__":
    raise SystemExit(main())
