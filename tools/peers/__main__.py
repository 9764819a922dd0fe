"""The golden suite, asked of other engines.

    python -m tools.peers [NAME …]       every engine, or those named, then the page
    python -m tools.peers --page         the page alone, from the kept reports
    python -m tools.peers --list         the names

Each engine is installed in an environment of its own, with fixed versions, in a folder that stays.
It runs as its makers mean it to, on models that refllm exported. What it answers otherwise than the
suite is written into docs/peers/NAME.json, and docs/peers.md is rendered from these files.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.peers.ask import REPORTS, ask
from tools.peers.catalog import PEERS
from tools.peers.models import write_models
from tools.peers.page import PAGE, kept_reports, render

CACHE = Path.home() / ".cache" / "refllm-peers"


def main() -> int:
    """Ask, write reports and the page; return 1 if an engine could not be asked."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.peers", description="Asks other engines the golden suite."
    )
    names = [peer.name for peer in PEERS]
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="an engine; all that need no compiler if none")
    add("--list", action="store_true", help="print the names of the engines")
    add("--page", action="store_true", help="write the page only")
    add("--cache", type=Path, default=CACHE, metavar="DIR", help=f"environments; {CACHE} if absent")
    add(
        "--python",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="an interpreter that has the packages of an environment",
    )
    add("--stories", type=Path, metavar="FILE", help="stories260K.gguf")
    add("--minilm", type=Path, metavar="DIR", help="all-minilm-l6-v2, as refllm models pull has it")
    given = parser.parse_args()
    if given.list:
        for peer in PEERS:
            print(f"{peer.name:24} {', '.join(peer.environment.packages)}")
        return 0
    unknown = sorted(set(given.names) - set(names))
    if unknown:
        parser.error(f"there is no engine {unknown[0]!r}; --list prints their names")
    pythons = dict(each.split("=", 1) for each in given.python)
    chosen = [
        peer
        for peer in PEERS
        if (
            peer.name in given.names
            if given.names
            else not peer.compiles or peer.environment.name in pythons
        )
    ]
    failed = []
    if not given.page:
        REPORTS.mkdir(exist_ok=True)
        with TemporaryDirectory() as folder:
            models = write_models(Path(folder), stories=given.stories, minilm=given.minilm)
            for peer in chosen:
                print(f"asking {peer.name}", file=sys.stderr)
                try:
                    ask(
                        peer,
                        models,
                        given.cache.resolve(),
                        python=pythons.get(peer.environment.name),
                    )
                except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
                    print(f"{peer.name}: {error}", file=sys.stderr)
                    failed.append(peer.name)
    PAGE.write_text(render(kept_reports()), "utf-8")
    if failed:
        print(f"not asked: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
