"""How tiny-chat learns: which tokens in which order, and what is done with each batch.

B sequences in a batch, T tokens of each, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import sentencepiece
import torch
from torch import Tensor, nn
from torch.nn import functional

from tools.schedule import warmed_cosine
from tools.tiny_chat.corpus import samples
from tools.tiny_chat.network import Shape, TinyLlama
from tools.tiny_chat.vocabulary import BOS, EOS

__all__ = ["Plan", "trained"]

REPORT_EVERY = 50  # steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long and how fast to learn.

    The learning rate rises for `warm_up` steps, then falls as a cosine does to a tenth.
    """

    seed: int = 1
    steps: int = 3000
    batch: int = 8
    learning_rate: float = 3e-3
    warm_up: int = 100
    weight_decay: float = 0.1
    largest_gradient: float = 1.0

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return warmed_cosine(
            step,
            steps=self.steps,
            warm_up=self.warm_up,
            peak=self.learning_rate,
            last=self.learning_rate / 10,
        )


def trained(
    shape: Shape,
    plan: Plan,
    processor: sentencepiece.SentencePieceProcessor,
    *,
    say: Callable[[str], object] = print,
) -> TinyLlama:
    """A network that has learned; the same on one machine for the same plan and libraries."""
    torch.manual_seed(plan.seed)
    network = TinyLlama(shape)
    optimizer = _optimizer(network, plan)
    batches = _batches(processor, plan.seed, plan.batch, shape.n_ctx + 1)
    start, losses = time.monotonic(), []
    for step, batch in zip(range(plan.steps), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(step)
        loss = _loss(network, batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), plan.largest_gradient)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == plan.steps:
            mean = sum(losses) / len(losses)
            minutes = (time.monotonic() - start) / 60
            say(f"step {step + 1} of {plan.steps}: loss {mean:.3f}, {minutes:.1f} minutes")
            losses.clear()
    return network


def _loss(network: TinyLlama, batch: Tensor) -> Tensor:
    """The mean cross-entropy of each next token; batch [B, T + 1]."""
    logits = network(batch[:, :-1])  # [B, T, V]
    return functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def _optimizer(network: TinyLlama, plan: Plan) -> torch.optim.Optimizer:
    """AdamW, which lets matrices decay and leaves norms alone."""
    matrices = [p for p in network.parameters() if p.dim() == 2]
    vectors = [p for p in network.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": plan.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.95))


def _batches(
    processor: sentencepiece.SentencePieceProcessor, seed: int, n: int, length: int
) -> Iterator[Tensor]:
    """Batches [B, T + 1] without end: samples one after the other, each between <s> and </s>.

    Where a sequence ends, so does its last sample, cut; the next begins with a new one, because
    that is what the first position of a prompt always is.
    """
    stream = samples(seed)
    while True:
        sequences = []
        for _ in range(n):
            token_ids: list[int] = []
            while len(token_ids) < length:
                token_ids += [BOS, *processor.encode(next(stream).text), EOS]
            sequences.append(token_ids[:length])
        yield torch.tensor(sequences)
