"""Whether a llama's query and key rows are in the order that its file promises.

RoPE turns pairs of rows, and there are two conventions of where a pair's rows lie
(`refllm.checkpoints.rope_layout.interleaved`). A file whose rows are in the other one loads, runs,
and writes nonsense after a few words. Nothing in the file tells; but a text that people write is
far less likely to a model that computes wrongly. So one is read in both ways.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from refllm.checkpoints.config_llama import llama_config
from refllm.checkpoints.open import Weights
from refllm.checkpoints.rope_layout import interleaved
from refllm.llama import Llama, Segment
from refllm.parameters import Parameters
from refllm.quant import Tensor

__all__ = ["SAMPLE", "Losses", "losses_by_layout"]

SAMPLE = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park "
    "with her friends. One day, she saw a big box near the tree. She wanted to know what was in "
    "the box, so she ran to her mom and asked if she could open it. Her mom smiled and said yes."
)
QUERIES_AND_KEYS = re.compile(r"blk\.[0-9]+\.attn_([qk])\.(weight|bias)")


@dataclass(frozen=True, slots=True)
class Losses:
    """The mean of −ln p of each token of the sample: with the rows as they are, and reordered."""

    as_they_are: float
    reordered: float


def losses_by_layout(weights: Weights, token_ids: Sequence[int]) -> Losses:
    """The losses of these tokens. The model is loaded twice, one after the other.

    Errors: as `Llama`.
    """
    other = replace(weights, tensors=_reordered(weights))
    return Losses(_loss(weights, token_ids), _loss(other, token_ids))


def _reordered(weights: Weights) -> Mapping[str, Tensor]:
    """The tensors, with query and key rows as they must be if they were half-split."""
    config = llama_config(weights)
    heads = {"q": config.n_heads, "k": config.n_kv_heads}
    result = dict(weights.tensors)
    for name, tensor in weights.tensors.items():
        match = QUERIES_AND_KEYS.fullmatch(name)
        if match is not None:
            rows = interleaved(tensor.data.reshape(tensor.shape[0], -1), n_heads=heads[match[1]])
            result[name] = replace(tensor, data=rows.reshape(tensor.data.shape))
    return result


def _loss(weights: Weights, token_ids: Sequence[int]) -> float:
    network = Llama(llama_config(weights), Parameters(weights.path, weights.tensors))
    [logits] = network.forward([Segment(token_ids, network.new_cache())])  # [T, V]
    scores = logits[:-1].astype(np.float64)
    largest = scores.max(axis=1)
    normalizer = np.log(np.exp(scores - largest[:, None]).sum(axis=1)) + largest  # [T − 1]
    said = scores[np.arange(len(scores)), list(token_ids[1:])]
    return float(np.mean(normalizer - said))
