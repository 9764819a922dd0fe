"""Trains tiny-embed to place sentences as all-MiniLM-L6-v2 does.

    python -m tools.train_tiny_embed tiny-embed.gguf [--teacher all-minilm-l6-v2] [--steps N]

PyTorch is needed here and nowhere else; the teacher is refllm's own. Prints the correlation of the
similarities of held-out sentences with the teacher's, as the finished file computes them.
"""

from __future__ import annotations

import argparse
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from refllm.loading import BertModel, load
from tools.tiny_embed.gguf_file import write_tiny_embed
from tools.tiny_embed.network import Shape
from tools.tiny_embed.sentences import of_documents, of_generator, split
from tools.tiny_embed.training import Plan, correlation, trained
from tools.tiny_embed.vocabulary import learned, tokenizer_of

PROJECT = Path(__file__).parent.parent
DOCUMENTS = ("*.md", "docs/*.md", "refllm/**/*.py", "tests/*.py", "tools/**/*.py")
N_SAMPLES, N_PIECES, N_MEASURED = 12_000, 3072, 1000


def main() -> None:
    """Train, write the file, and measure it."""
    parser = argparse.ArgumentParser(description="Trains tiny-embed.")
    parser.add_argument("file", type=Path, help="the GGUF file to write")
    parser.add_argument("--teacher", default="all-minilm-l6-v2")
    parser.add_argument("--steps", type=int, default=Plan().steps)
    arguments = parser.parse_args()
    plan = Plan(steps=arguments.steps)
    files = {file for pattern in DOCUMENTS for file in PROJECT.glob(pattern)}
    kept, measured = split(chain(of_documents(files), of_generator(plan.seed, N_SAMPLES)))
    pieces = learned(kept, N_PIECES)
    tokenizer = tokenizer_of(pieces)
    teacher = _bert(arguments.teacher)
    print(f"{len(kept)} sentences to learn from, {len(measured)} held out", flush=True)
    vectors = teacher.embed(kept)
    shape = Shape(n_vocab=len(pieces))
    network = trained(shape, plan, [tokenizer.encode(text).ids for text in kept], vectors)
    tensors = {name: parameter.detach().numpy() for name, parameter in network.named_parameters()}
    description = f"distilled from all-MiniLM-L6-v2, seed {plan.seed}, {plan.steps} steps, "
    description += f"PyTorch {torch.__version__}"
    write_tiny_embed(arguments.file, shape, tensors, pieces, description=description)
    print(f"{arguments.file}: {arguments.file.stat().st_size / 1e6:.2f} MB")
    chosen = np.random.default_rng(plan.seed).permutation(len(measured))[:N_MEASURED]
    texts = [measured[i] for i in chosen]
    found = correlation(_bert(str(arguments.file)).embed(texts), teacher.embed(texts))
    print(f"correlation with the teacher's similarities, {len(texts)} held-out: {found:.3f}")


def _bert(name_or_path: str) -> BertModel:
    model = load(name_or_path)
    if not isinstance(model, BertModel):
        raise TypeError(f"{name_or_path} is not a BERT")
    return model


if __name__ == "__main__":
    main()
