"""Write every golden file of the suite, and the manifest: `just goldens`.

    python -m tools.goldens            write them
    python -m tools.goldens check      write them elsewhere, and say which are not the same bytes

Each group has a tool of its own, which takes the folder to write into. What another library
answered (golden/embeddings/all-minilm-l6-v2.json, golden/text/llama.cpp.json) needs that library
and is not written here; the manifest says by which command it was.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from refllm.conform.case import GROUPS
from refllm.interface import NUMERICS_REVISION
from refllm.models.bundled import ROOT as EMBEDDED

__all__ = ["GOLDEN", "SUITE_VERSION", "manifest", "unlike"]

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
# A new case makes a new minor version; another answer to an old one, a new major version.
SUITE_VERSION = "2.0.0"
TOOLS: Mapping[str, str] = {
    "tokenizer": "tools.golden_tokenizer",
    "quant": "tools.golden_quant",
    "ops": "tools.golden_ops",
    "sampling": "tools.make_sampling_goldens",
    "logits": "tools.golden_logits",
    "text": "tools.golden_text",
    "embeddings": "tools.golden_embeddings",
    "api": "tools.golden_api",
}
# What another library answered, and the command that asked it.
ELSEWHERE = {
    "embeddings/all-minilm-l6-v2.json": "python tools/make_embedding_goldens.py MODEL_DIR",
    "text/llama.cpp.json": "python -m tools.greedy_by_llama_cpp MODEL FILE",
}
MODELS = {
    "tiny-chat": "llama/tiny-chat.gguf",
    "tiny-embed": "bert/tiny-embed.gguf",
}
NUMERICS = {
    "exact": "float32, each product and its sum rounded once together (fused multiply-add), left "
    "to right (SPEC.md)",
    "int8": "activations quantized as ggml does, integer products, block sums by fused "
    "multiply-adds in float32",
}


def main() -> int:
    """0; or 1 where a file is not what its tool writes."""
    is_check = sys.argv[1:] == ["check"]
    if not is_check:
        for group, tool in TOOLS.items():
            _run(tool, GOLDEN / group)
        _write_manifest(GOLDEN)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        others = list(unlike(Path(folder)))
    for path in others:
        sys.stderr.write(f"golden/{path} is not what `python -m tools.goldens` writes\n")
    return 1 if others else 0


def unlike(folder: Path) -> Iterator[str]:
    """Writes everything into an empty folder; yields the files that are other bytes in golden/."""
    for group, tool in TOOLS.items():
        into = folder / group
        into.mkdir()
        _run(tool, into)
        for path in sorted(into.iterdir()):
            if path.read_bytes() != (GOLDEN / group / path.name).read_bytes():
                yield f"{group}/{path.name}"
    if manifest(GOLDEN) != json.loads((GOLDEN / "manifest.json").read_text(encoding="utf-8")):
        yield "manifest.json"


def manifest(golden: Path) -> dict[str, Any]:
    """What the suite consists of: files with hashes and makers, models, numerics, tolerances."""
    return {
        "$schema": "manifest.schema.json",
        "suite": SUITE_VERSION,
        "numerics_revision": NUMERICS_REVISION,
        "files": [_file(golden, path) for path in _published(golden)],
        "models": [
            {"name": name, "file": path, "sha256": _sha256(EMBEDDED / path)}
            for name, path in MODELS.items()
        ],
        "numerics": NUMERICS,
        "tolerances": [each for group in GROUPS for each in _tolerances(golden, group)],
    }


def _published(golden: Path) -> Iterator[Path]:
    for group in GROUPS:
        folder = golden / group
        yield from sorted(
            path
            for path in folder.iterdir()
            if path.suffix in (".json", ".safetensors") and "schema" not in path.name
        )


def _file(golden: Path, path: Path) -> dict[str, str]:
    name = path.relative_to(golden).as_posix()
    command = ELSEWHERE.get(name, f"python -m {TOOLS[path.parent.name]}")
    return {"path": name, "sha256": _sha256(path), "command": command}


def _tolerances(golden: Path, group: str) -> Iterator[dict[str, Any]]:
    """Each reason for a tolerance, once, and how many cases of the group rest on it."""
    document = json.loads((golden / group / "cases.json").read_text(encoding="utf-8"))
    reasons: dict[str, int] = {}
    for case in document["cases"]:
        reason = case.get("tolerance", {}).get("reason")
        if reason is not None:
            reasons[reason] = reasons.get(reason, 0) + 1
    for reason, n_cases in reasons.items():
        yield {"group": group, "cases": n_cases, "reason": reason}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _run(tool: str, folder: Path) -> None:
    sys.stderr.write(f"{tool} …\n")
    subprocess.run([sys.executable, "-m", tool, str(folder)], cwd=GOLDEN.parent, check=True)


def _write_manifest(golden: Path) -> None:
    text = json.dumps(manifest(golden), indent=1) + "\n"
    (golden / "manifest.json").write_text(text, encoding="ascii")


if __name__ == "__main__":
    raise SystemExit(main())
