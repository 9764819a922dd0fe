"""What llama-cpp-python, transformers and sentence-transformers compute of refllm's exports.

    python -m tools.peer_values.exports    writes tests/support/peer_values/exports.json

Beside what an engine computes stands the SHA-256 of the export. An export that changes asks for
another run.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path

from tests.support.exported_models import MODELS, said_by, sha256_of
from tools.peer_values import write_peer_values

__all__: list[str] = []

PACKAGES = ("llama-cpp-python", "transformers", "sentence-transformers", "torch")

# Their versions may change a file of a tokenizer.
WRITERS = ("tokenizers", "sentencepiece", "gguf")


def main() -> None:
    """Export every kind of model in every layout, ask its engine, and write the file."""
    cases: dict[str, object] = {"writers": {library: version(library) for library in WRITERS}}
    for name, model in MODELS.items():
        for layout in model.layouts:
            with tempfile.TemporaryDirectory() as folder:
                source, made = model.exported(Path(folder) / "m", layout)
                said = said_by(model, source, made)
                said["largest_difference"] = float(f"{said['largest_difference']:.2g}")
                cases[f"{name}, {layout}"] = {"sha256": sha256_of(made), "said": said}
    write_peer_values("exports", packages=PACKAGES, cases=cases)


if __name__ == "__main__":
    main()
