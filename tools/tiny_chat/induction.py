"""The beginning of finding a word again: heads of attention that are drawn by hand, then trained.

To repeat what once stood beside a word, one layer has to note beside each token what stood before
it, and a later one has to look for the note that reads like the present (Olsson et al. 2022,
arXiv:2209.11895, "induction heads"). Neither helps without the other, so a training as short as
tiny-chat's does not find them. Here they are, rough; what else they need, training adds.

D model width, E head width, d how far back.

    layer 0, heads 0 … 3, key/value head 0   look 1, 2, 3, 4 tokens back, and note what is there
    layer 1, heads 0 … 3, key/value head 0   this token, among the notes of 1 token back
    layer 1, heads 4 … 7, key/value head 1   the notes of 1 to 3 back, among those of 2 to 4 back

Those of layer 1 repeat what they find. The last is how "Anna likes" finds the cake of "Anna likes
cake": where Anna was two tokens back.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tools.tiny_chat.network import Layer, TinyLlama

__all__ = ["draw_induction_heads"]

# Dimension 0 of every embedding: what keys and queries can rest on that know only where they are.
CONSTANT = 0.3
# How many of a head's pairs see a distance: the fastest of RoPE. And those that see a content: the
# slowest, which hardly turn within a few hundred tokens.
PLACE_PAIRS, CONTENT_PAIRS = 6, 8
PLACE_SIZE, CONTENT_SIZE = 1.0, 2.0
NOTE_SIZE, COPY_SIZE = 0.15, 0.06
LEFT = 0.25  # of what was there at random: what is exactly zero would never be learned


@torch.no_grad()  # type: ignore[untyped-decorator]
def draw_induction_heads(network: TinyLlama) -> None:
    """Write the heads of the table into a network that is random so far."""
    shape = network.shape
    group = shape.n_heads // shape.n_kv_heads
    network.token_embd.weight[:, 0] = CONSTANT
    # How a token is seen, and where a note of it is put for each d: [E, D], apart from each other.
    seen, *notes = _orthonormal((group + 1) * shape.head_dim, shape.n_embd).split(shape.head_dim)
    _look_back(network.blk[0], network.get_buffer("angles")[1], seen, notes)
    recent, earlier = sum(notes[:-1]), sum(notes[1:])
    _look_for(network.blk[1], 0, wanted=seen, noted=notes[0])
    _look_for(network.blk[1], 1, wanted=recent, noted=earlier)


def _look_back(layer: Layer, angles: Tensor, seen: Tensor, notes: list[Tensor]) -> None:
    """Heads that look d = 1, 2, … tokens back, whatever is there, and note it.

    RoPE turns a query and a key by their places, so a query that is turned by d places less than
    its own fits the key d places before it best. `angles` are those of one place, [E/2].
    """
    e = layer.shape.head_dim
    turned = angles[:PLACE_PAIRS]
    _fade(layer.attn_k, 0, e)
    layer.attn_k.weight[: 2 * PLACE_PAIRS : 2, 0] = PLACE_SIZE
    layer.attn_v.weight[:e] = seen
    for head, note in enumerate(notes):
        rows = slice(head * e, (head + 1) * e)
        _fade(layer.attn_q, rows.start, rows.stop)
        query = layer.attn_q.weight[rows]
        query[: 2 * PLACE_PAIRS : 2, 0] = PLACE_SIZE * (-(head + 1) * turned).cos()
        query[1 : 2 * PLACE_PAIRS : 2, 0] = PLACE_SIZE * (-(head + 1) * turned).sin()
        layer.attn_output.weight[:, rows] = NOTE_SIZE * note.T


def _look_for(layer: Layer, kv_head: int, *, wanted: Tensor, noted: Tensor) -> None:
    """Heads that look for tokens whose `noted` is like this one's `wanted`, and repeat them."""
    e = layer.shape.head_dim
    group = layer.shape.n_heads // layer.shape.n_kv_heads
    content = 2 * CONTENT_PAIRS
    key = slice(kv_head * e, (kv_head + 1) * e)
    _fade(layer.attn_k, key.start, key.stop)
    layer.attn_k.weight[key][-content:] = CONTENT_SIZE * noted[-content:]
    copied = _orthonormal(e, layer.shape.n_embd)
    layer.attn_v.weight[key] = copied
    for head in range(kv_head * group, (kv_head + 1) * group):
        rows = slice(head * e, (head + 1) * e)
        _fade(layer.attn_q, rows.start, rows.stop)
        layer.attn_q.weight[rows][-content:] = CONTENT_SIZE * wanted[-content:]
        layer.attn_output.weight[:, rows] = COPY_SIZE * copied.T


def _fade(linear: nn.Linear, first: int, last: int) -> None:
    linear.weight[first:last] *= LEFT


def _orthonormal(n_rows: int, n_columns: int) -> Tensor:
    """Random rows of length 1 that are at right angles, and know nothing of dimension 0."""
    rows = torch.linalg.qr(torch.randn(n_columns - 1, n_rows)).Q.T
    return nn.functional.pad(rows, (1, 0))
