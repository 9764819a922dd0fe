"""A BERT with mean pooling as an ONNX graph that onnxruntime can fuse completely.

N texts, S tokens of the longest, H heads, E head width, D model width.

The layers are written out in the form that onnxruntime's optimizer looks for: today's transformers
library exports its own form, of which the optimizer fuses only a part.
"""

# mypy: disable-error-code="import-not-found", allow-subclassing-any

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import BertModel

__all__ = ["export"]

INPUTS = ["input_ids", "attention_mask", "token_type_ids"]
HIDDEN = -10000.0  # what is added to the score of a padding token


class Embedder(torch.nn.Module):
    """Token ids to normalized embeddings."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.bert: Any = BertModel.from_pretrained(folder)

    def forward(self, token_ids: Any, mask: Any, token_types: Any) -> Any:
        """[N, S], three times → [N, D]."""
        x = self.bert.embeddings(input_ids=token_ids, token_type_ids=token_types)  # [N, S, D]
        bias = (1.0 - mask.unsqueeze(1).unsqueeze(2).to(torch.float32)) * HIDDEN  # [N, 1, 1, S]
        for layer in self.bert.encoder.layer:
            attended = layer.attention.output(self._attention(layer.attention.self, x, bias), x)
            x = layer.output(layer.intermediate(attended), attended)
        weights = mask[..., None].to(x.dtype)  # [N, S, 1]
        mean = (x * weights).sum(1) / weights.sum(1)
        return torch.nn.functional.normalize(mean, dim=1)

    def _attention(self, layer: Any, x: Any, bias: Any) -> Any:
        q, k, v = (self._heads(part(x)) for part in (layer.query, layer.key, layer.value))
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.size(-1)) + bias  # [N, H, S, S]
        merged = torch.matmul(torch.softmax(scores, -1), v).permute(0, 2, 1, 3).contiguous()
        return merged.view(merged.size(0), merged.size(1), self.bert.config.hidden_size)

    def _heads(self, x: Any) -> Any:
        """[N, S, D] → [N, H, S, E]."""
        n_heads = self.bert.config.num_attention_heads
        head_dim = self.bert.config.hidden_size // n_heads
        return x.view(x.size(0), x.size(1), n_heads, head_dim).permute(0, 2, 1, 3)


def export(folder: Path, target: Path) -> None:
    """Write the model in `folder` to `target`, fused."""
    from onnxruntime.transformers import optimizer

    token_ids = torch.full((2, 16), 1000)
    mask = torch.ones_like(token_ids)
    mask[1, 9:] = 0
    plain = target.with_suffix(".partial")
    axes = {name: {0: "N", 1: "S"} for name in INPUTS} | {"embedding": {0: "N"}}
    embedder = Embedder(folder).eval()
    torch.onnx.export(
        embedder,
        (token_ids, mask, torch.zeros_like(token_ids)),
        str(plain),
        input_names=INPUTS,
        output_names=["embedding"],
        dynamic_axes=axes,
        dynamo=False,
    )
    config = embedder.bert.config
    fused = optimizer.optimize_model(
        str(plain),
        model_type="bert",
        num_heads=config.num_attention_heads,
        hidden_size=config.hidden_size,
    )
    if fused.get_fused_operator_statistics()["Attention"] != config.num_hidden_layers:
        raise RuntimeError("onnxruntime's optimizer did not fuse the attention of every layer")
    fused.save_model_to_file(str(target))
    plain.unlink()
