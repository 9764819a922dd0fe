"""tiny-embed while it learns: the BERT of `refllm.bert` in PyTorch, its parameters' names GGUF's.

B sentences, T tokens of each, D model width, H heads, E head width, F feed-forward width.

Source: Devlin et al. 2018, arXiv:1810.04805; pooling: Reimers and Gurevych 2019, arXiv:1908.10084.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Shape", "TinyBert"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The hyperparameters; an embedding is as wide as the model."""

    n_vocab: int
    n_ctx: int = 256
    n_embd: int = 384
    n_layers: int = 2
    n_heads: int = 12
    n_ff: int = 512
    layer_norm_eps: float = 1e-12


class Layer(nn.Module):  # type: ignore[misc]
    """Attention and a feed-forward network, each added to what came in and normalized."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        D, F = shape.n_embd, shape.n_ff
        self.n_heads = shape.n_heads
        self.attn_q, self.attn_k, self.attn_v = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        self.attn_output = nn.Linear(D, D)
        self.attn_output_norm = nn.LayerNorm(D, shape.layer_norm_eps)
        self.ffn_up, self.ffn_down = nn.Linear(D, F), nn.Linear(F, D)
        self.layer_output_norm = nn.LayerNorm(D, shape.layer_norm_eps)

    def forward(self, x: Tensor, is_token: Tensor) -> Tensor:
        """x [B, T, D] → [B, T, D]; is_token [B, T] says what is no padding."""
        q, k, v = (
            part(x).unflatten(2, (self.n_heads, -1)).transpose(1, 2)  # [B, H, T, E]
            for part in (self.attn_q, self.attn_k, self.attn_v)
        )
        mask = is_token[:, None, None, :]  # [B, 1, 1, T]
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = self.attn_output_norm(x + self.attn_output(attended.transpose(1, 2).flatten(2)))
        return self.layer_output_norm(x + self.ffn_down(functional.gelu(self.ffn_up(x))))


class TinyBert(nn.Module):  # type: ignore[misc]
    """Token ids [B, T], padded with 0 → a vector of length 1 for each sentence, [B, D]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.n_vocab, shape.n_embd)
        self.token_types = nn.Embedding(2, shape.n_embd)
        self.position_embd = nn.Embedding(shape.n_ctx, shape.n_embd)
        self.token_embd_norm = nn.LayerNorm(shape.n_embd, shape.layer_norm_eps)
        self.blk = nn.ModuleList(Layer(shape) for _ in range(shape.n_layers))
        for embedding in (self.token_embd, self.token_types, self.position_embd):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, token_ids: Tensor) -> Tensor:
        """The mean of each sentence's last layer, scaled to length 1."""
        is_token = token_ids != 0  # [B, T]
        positions = torch.arange(token_ids.shape[1])
        first_type = self.token_types.weight[0]
        x = self.token_embd(token_ids) + first_type + self.position_embd(positions)  # [B, T, D]
        x = self.token_embd_norm(x)
        for layer in self.blk:
            x = layer(x, is_token)
        weights = is_token.float()[..., None]  # [B, T, 1]
        mean = (x * weights).sum(1) / weights.sum(1)  # [B, D]
        return functional.normalize(mean, dim=1)
