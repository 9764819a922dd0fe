"""tiny-chat while it learns: the llama of `refllm.llama` in PyTorch, which can differentiate it.

B sequences, T tokens of each, D model width, H heads, K key/value heads, E head width, F
feed-forward width, V vocabulary. Parameters have GGUF's names, and RoPE turns neighbours (2i,
2i + 1), as GGUF has them, so that nothing needs to be renamed or reordered afterwards.

Source: Touvron et al. 2023, arXiv:2302.13971.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Shape", "TinyLlama"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The hyperparameters; widths are whole blocks of every GGML format, the largest being 256."""

    n_vocab: int = 1536
    n_ctx: int = 512
    n_embd: int = 256
    n_layers: int = 4
    n_heads: int = 8
    n_kv_heads: int = 2
    n_ff: int = 512
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        """E."""
        return self.n_embd // self.n_heads


class Layer(nn.Module):  # type: ignore[misc]
    """Attention and a feed-forward network, each added to what came in."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        s = shape
        self.shape = shape
        self.attn_norm = nn.RMSNorm(s.n_embd, s.rms_norm_eps)
        self.attn_q = nn.Linear(s.n_embd, s.n_heads * s.head_dim, bias=False)
        self.attn_k = nn.Linear(s.n_embd, s.n_kv_heads * s.head_dim, bias=False)
        self.attn_v = nn.Linear(s.n_embd, s.n_kv_heads * s.head_dim, bias=False)
        self.attn_output = nn.Linear(s.n_heads * s.head_dim, s.n_embd, bias=False)
        self.ffn_norm = nn.RMSNorm(s.n_embd, s.rms_norm_eps)
        self.ffn_gate = nn.Linear(s.n_embd, s.n_ff, bias=False)
        self.ffn_up = nn.Linear(s.n_embd, s.n_ff, bias=False)
        self.ffn_down = nn.Linear(s.n_ff, s.n_embd, bias=False)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """x [B, T, D] → [B, T, D]."""
        h = self.attn_norm(x)
        q = turned(self._heads(self.attn_q(h)), angles)  # [B, H, T, E]
        k = turned(self._heads(self.attn_k(h)), angles)  # [B, K, T, E]
        v = self._heads(self.attn_v(h))
        group = self.shape.n_heads // self.shape.n_kv_heads
        k, v = (each.repeat_interleave(group, dim=1) for each in (k, v))  # [B, H, T, E]
        # In float32 also where products are not: in bfloat16 its derivative is four times as slow.
        with torch.autocast("cpu", enabled=False):
            attended = functional.scaled_dot_product_attention(
                q.float(), k.float(), v.float(), is_causal=True
            )
        x = x + self.attn_output(attended.transpose(1, 2).flatten(2))
        h = self.ffn_norm(x)
        return x + self.ffn_down(functional.silu(self.ffn_gate(h)) * self.ffn_up(h))

    def _heads(self, x: Tensor) -> Tensor:
        """[B, T, heads · E] → [B, heads, T, E]."""
        return x.unflatten(2, (-1, self.shape.head_dim)).transpose(1, 2)


class TinyLlama(nn.Module):  # type: ignore[misc]
    """Token ids [B, T] → logits [B, T, V]; the output shares its weights with the embedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.n_vocab, shape.n_embd)
        self.blk = nn.ModuleList(Layer(shape) for _ in range(shape.n_layers))
        self.output_norm = nn.RMSNorm(shape.n_embd, shape.rms_norm_eps)
        pairs = torch.arange(0, shape.head_dim, 2, dtype=torch.float64) / shape.head_dim
        positions = torch.arange(shape.n_ctx, dtype=torch.float64)
        angles = torch.outer(positions, shape.rope_theta**-pairs).float()  # [T, E/2]
        self.register_buffer("angles", angles, persistent=False)
        self._initialize()

    def _initialize(self) -> None:
        """Normal, so that what a matrix makes is as large as what it is given.

        What is added to the residual stream, layer after layer, begins small beside the tokens.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                is_added = "attn_output" in name or "ffn_down" in name
                small = 0.01 / math.sqrt(2 * self.shape.n_layers)
                usual = 0.06 if "token_embd" in name else 1 / math.sqrt(parameter.shape[1])
                nn.init.normal_(parameter, std=small if is_added else usual)

    def hidden(self, token_ids: Tensor) -> Tensor:
        """What the scores are computed from: token ids [B, T] → [B, T, D]."""
        x = self.token_embd(token_ids)
        angles = self.get_buffer("angles")[: token_ids.shape[1]]
        for layer in self.blk:
            x = layer(x, angles)
        return self.output_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] → the score of every vocabulary entry, [..., V]."""
        return functional.linear(hidden, self.token_embd.weight)

    def forward(self, token_ids: Tensor) -> Tensor:
        """The score of every vocabulary entry after each token."""
        return self.logits(self.hidden(token_ids))


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """x [B, heads, T, E] with each pair (2i, 2i + 1) turned by its position's angle i."""
    cosine, sine = angles.cos(), angles.sin()  # [T, E/2]
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cosine - b * sine, a * sine + b * cosine), dim=-1).flatten(-2)
