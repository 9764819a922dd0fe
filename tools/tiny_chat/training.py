"""How tiny-chat learns: which tokens in which order, and what is done with each batch.

What is learned is what follows a prompt: a question's words are drawn at random, and no model can
learn to foresee them. Each sample counts as much as each other, however long its answer is; so the
one word of a fact that has to be looked up in the question is not lost among the words of stories.

B sequences in a batch, T tokens of each, V vocabulary.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import sentencepiece
import torch
from torch import Tensor, nn
from torch.nn import functional

from tools.tiny_chat.corpus import samples
from tools.tiny_chat.earlier import begin_as
from tools.tiny_chat.induction import draw_induction_heads
from tools.tiny_chat.network import Shape, TinyLlama
from tools.tiny_chat.plan import Plan
from tools.tiny_chat.sample import Sample
from tools.tiny_chat.vocabulary import BOS, EOS

__all__ = ["trained"]

REPORT_EVERY = 50  # steps
# Samples are sorted by length, so many batches' at a time: one long sample makes a batch long.
SORTED_TOGETHER = 16
# One batch in so many has sequences of the whole context, several samples one after the other:
# else no position beyond the longest sample would ever be seen.
LONG_ONE_IN = 8
LONG_ROWS = 8


def trained(
    shape: Shape,
    plan: Plan,
    processor: sentencepiece.SentencePieceProcessor,
    *,
    earlier: Path | None = None,
    say: Callable[[str], object] = print,
) -> TinyLlama:
    """A network that has learned; the same on one machine for the same plan and libraries.

    It begins as the `earlier` model; without one, at random but for its heads of induction.
    """
    torch.manual_seed(plan.seed)
    network = TinyLlama(shape)
    draw_induction_heads(network)
    if earlier is not None:
        begin_as(earlier, network, processor)
    optimizer = _optimizer(network, plan)
    batches = _batches(processor, plan, shape.n_ctx + 1)
    start, losses = time.monotonic(), []
    for step, batch in zip(range(plan.steps), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(step)
        loss = _loss(network, *batch)
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


def _loss(network: TinyLlama, token_ids: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean cross-entropy of each next token; token_ids [B, T + 1], weights [B, T]."""
    is_learned = weights > 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = network.hidden(token_ids[:, :-1])  # [B, T, D]
        logits = network.logits(hidden[is_learned])  # [learned, V]
    losses = functional.cross_entropy(
        logits.float(), token_ids[:, 1:][is_learned], reduction="none"
    )
    weights = weights[is_learned]
    return (losses * weights).sum() / weights.sum()


def _optimizer(network: TinyLlama, plan: Plan) -> torch.optim.Optimizer:
    """AdamW, which lets matrices decay and leaves norms alone."""
    matrices = [p for p in network.parameters() if p.dim() == 2]
    vectors = [p for p in network.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": plan.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.95))


@dataclass(frozen=True, slots=True)
class Lesson:
    """A sample's tokens between <s> and </s>, and how much foreseeing each of them counts."""

    token_ids: list[int]
    weights: list[float]


def _lesson(sample: Sample, processor: sentencepiece.SentencePieceProcessor) -> Lesson:
    token_ids = [BOS, *processor.encode(sample.text), EOS]
    n_given = 1 + len(processor.encode(sample.prompt))
    n_learned = len(token_ids) - n_given
    return Lesson(token_ids, [0.0] * n_given + [1 / n_learned] * n_learned)


def _batches(
    processor: sentencepiece.SentencePieceProcessor, plan: Plan, length: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end: token ids [B, T + 1] and weights [B, T]."""
    lessons = (_lesson(sample, processor) for sample in samples(plan.seed))
    order = random.Random(plan.seed)
    while True:
        pool = sorted(
            islice(lessons, plan.batch * SORTED_TOGETHER), key=lambda each: len(each.token_ids)
        )
        batches = [
            _rows([[lesson] for lesson in pool[first : first + plan.batch]], length)
            for first in range(0, len(pool), plan.batch)
        ]
        n_long = len(batches) // LONG_ONE_IN
        batches += [
            _rows([_filling(lessons, length) for _ in range(LONG_ROWS)], length)
            for _ in range(n_long)
        ]
        order.shuffle(batches)
        yield from batches


def _filling(lessons: Iterator[Lesson], length: int) -> list[Lesson]:
    """Lessons that together have at least so many tokens."""
    chosen: list[Lesson] = []
    while sum(len(lesson.token_ids) for lesson in chosen) < length:
        chosen.append(next(lessons))
    return chosen


def _rows(rows: Sequence[Sequence[Lesson]], length: int) -> tuple[Tensor, Tensor]:
    """Each row's lessons one after the other, cut at a length; what fills a row is not learned."""
    token_ids = [[i for lesson in row for i in lesson.token_ids][:length] for row in rows]
    weights = [[w for lesson in row for w in lesson.weights][1:length] for row in rows]
    longest = max(map(len, token_ids))
    padded = [ids + [EOS] * (longest - len(ids)) for ids in token_ids]
    unlearned = [each + [0.0] * (longest - 1 - len(each)) for each in weights]
    return torch.tensor(padded), torch.tensor(unlearned)
