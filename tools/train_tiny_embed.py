"""Trains tiny-embed to place sentences as all-MiniLM-L6-v2 does.

    python -m tools.train_tiny_embed tiny-embed.gguf [--teacher all-minilm-l6-v2] [--steps N]

PyTorch is needed here and nowhere else; the teacher is refllm's own. The sentences depend on the
seed and on the project's documents; the weights on PyTorch, the CPU and the number of threads too.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from refllm.checkpoints.open import open_weights
from refllm.models.load import BertModel
from tools.tiny_embed.gguf_file import write_tiny_embed
from tools.tiny_embed.network import Shape
from tools.tiny_embed.scores import bert_of, documents, scores
from tools.tiny_embed.sentences import of_documents, of_generator, parts_of, split
from tools.tiny_embed.training import Plan, trained
from tools.tiny_embed.vocabulary import learned, tokenizer_of

N_SAMPLES, N_PIECES, PARTS_OF_EACH = 8_000, 3072, 6

Floats = NDArray[np.float32]


def known_pieces(pieces: Sequence[str], teacher: BertModel) -> Mapping[int, Floats]:
    """The teacher's embeddings [D] of the pieces that it has, too, by their ids here."""
    embeddings = open_weights(teacher.path).tensors["token_embd.weight"].array()  # [V, D]
    theirs = {teacher.tokenizer.piece(i): i for i in range(teacher.tokenizer.n_vocab)}
    return {i: embeddings[theirs[piece]] for i, piece in enumerate(pieces) if piece in theirs}


def main() -> None:
    """Train, write the file, and score it."""
    parser = argparse.ArgumentParser(description="Trains tiny-embed.")
    parser.add_argument("file", type=Path, help="the GGUF file to write")
    parser.add_argument("--teacher", default="all-minilm-l6-v2")
    parser.add_argument("--steps", type=int, default=Plan().steps)
    arguments = parser.parse_args()
    plan = Plan(steps=arguments.steps)
    written, _ = split(of_documents(documents()))
    said, _ = split(of_generator(plan.seed, N_SAMPLES))
    parts = parts_of(written, n_each=PARTS_OF_EACH, seed=plan.seed)
    kept = list(dict.fromkeys([*written, *said, *parts]))
    pieces = learned([*written, *said], N_PIECES)
    tokenizer = tokenizer_of(pieces)
    teacher = bert_of(arguments.teacher)
    print(f"{len(kept)} sentences to learn from, {len(pieces)} pieces", flush=True)
    vectors = teacher.embed(kept)
    shape = Shape(n_vocab=len(pieces))
    token_ids = [tokenizer.encode(text).ids for text in kept]
    known = known_pieces(pieces, teacher)
    network = trained(shape, plan, token_ids, vectors, known_pieces=known)
    tensors = {name: parameter.detach().numpy() for name, parameter in network.named_parameters()}
    description = f"distilled from all-MiniLM-L6-v2, seed {plan.seed}, {plan.steps} steps, "
    description += f"PyTorch {torch.__version__}"
    write_tiny_embed(arguments.file, shape, tensors, pieces, description=description)
    print(f"{arguments.file}: {arguments.file.stat().st_size / 1e6:.2f} MB")
    for score in scores(bert_of(str(arguments.file)), teacher):
        print(f"correlation, {score.name}: {score.correlation:.3f} of {score.n_sentences}")


if __name__ == "__main__":
    main()
