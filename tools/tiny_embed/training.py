"""How tiny-embed learns: its vectors shall be the teacher's, and be as far from each other.

B sentences in a batch, N sentences, T tokens, D width of a vector.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tools.schedule import warmed_cosine
from tools.tiny_embed.network import Shape, TinyBert

__all__ = ["Plan", "trained"]

Floats = NDArray[np.float32]
REPORT_EVERY = 50  # steps
# Batches are cut from so many batches' sentences, sorted by length: one long sentence makes a whole
# batch long.
SORTED_TOGETHER = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long and how fast to learn; `of_pairs` is the weight of the pairs' similarities."""

    seed: int = 1
    steps: int = 1200
    batch: int = 128
    learning_rate: float = 1e-3
    warm_up: int = 100
    of_pairs: float = 10.0

    def rate(self, step: int) -> float:
        """The learning rate of a step: up in a line, down to nothing as a cosine."""
        return warmed_cosine(
            step,
            steps=self.steps,
            warm_up=self.warm_up,
            peak=self.learning_rate,
            last=0.0,
        )


def trained(
    shape: Shape,
    plan: Plan,
    token_ids: Sequence[Sequence[int]],
    teacher: Floats,
    *,
    known_pieces: Mapping[int, Floats],
    say: Callable[[str], object] = print,
) -> TinyBert:
    """A network that has learned the teacher's vectors [N, D] of N sentences.

    It begins with the teacher's embeddings [D] of the pieces that both vocabularies have, by id.
    """
    torch.manual_seed(plan.seed)
    network = TinyBert(shape)
    with torch.no_grad():
        for piece, embedding in known_pieces.items():
            network.token_embd.weight[piece] = torch.tensor(embedding)
    optimizer = torch.optim.AdamW(network.parameters(), lr=plan.learning_rate, weight_decay=0.01)
    batches = _batches([len(sentence) for sentence in token_ids], plan)
    start = time.monotonic()
    for step, chosen in zip(range(plan.steps), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(step)
        theirs = torch.from_numpy(teacher[chosen])  # [B, D]
        ours = network(padded([token_ids[i] for i in chosen], shape.n_ctx))  # [B, D]
        alone = (1 - (ours * theirs).sum(1)).mean()
        pairs = ((ours @ ours.T - theirs @ theirs.T) ** 2).mean()
        loss = alone + plan.of_pairs * pairs
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == plan.steps:
            minutes = (time.monotonic() - start) / 60
            said = f"cosine {1 - alone.item():.3f}, pairs {pairs.item():.5f}, {minutes:.1f} minutes"
            say(f"step {step + 1} of {plan.steps}: {said}")
    return network


def padded(sentences: Sequence[Sequence[int]], n_ctx: int) -> Tensor:
    """Token ids [B, T] with 0 after the end of the shorter ones."""
    longest = min(max(map(len, sentences)), n_ctx)
    rows = torch.zeros(len(sentences), longest, dtype=torch.int64)
    for row, sentence in zip(rows, sentences, strict=True):
        row[: len(sentence)] = torch.tensor(sentence[:longest])
    return rows


def _batches(lengths: Sequence[int], plan: Plan) -> Iterator[NDArray[np.int64]]:
    """Places of B sentences of like lengths, all once before any a second time but for a rest."""
    random = np.random.default_rng(plan.seed)
    n, n_together = len(lengths), plan.batch * SORTED_TOGETHER
    by_length = np.array(lengths)
    while True:
        order = random.permutation(n)
        for first in range(0, n, n_together):
            together = order[first : first + n_together]
            together = together[np.argsort(by_length[together], kind="stable")]
            cuts = np.arange(0, len(together) - plan.batch + 1, plan.batch)
            for cut in random.permutation(cuts):
                yield together[cut : cut + plan.batch]
