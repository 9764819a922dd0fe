"""Models of BERT's family and texts, of which transformers computed the right values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.tiny_encoders import ENCODERS, tiny_encoder_folder

__all__ = ["ACTIVATION_INPUTS", "CASES", "TEXTS", "EncoderCase"]

# The padding tokens of all kinds (0, 1 and 3) stand within a text and at its end, too; the longest
# text has two tokens in every bucket of MPNet's distances.
TEXTS = (
    [2, 17, 5, 33, 6],
    [2, 9, 1, 0, 3, 11, 1, 1, 44, 6, 0, 3],
    [2, *(4 + (7 * i) % 50 for i in range(140)), 6],
)
ACTIVATION_INPUTS = (
    -20.0,
    -4.25,
    -1.75,
    -0.75,
    -0.125,
    0.0,
    0.0625,
    0.5,
    1.0,
    2.5,
    6.5,
    9.75,
    30.0,
)
OLD_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}


@dataclass(frozen=True, slots=True)
class EncoderCase:
    """A kind of `ENCODERS`, and in what its files differ from it."""

    kind: str
    with_prefix: bool = False
    old_names: bool = False
    config: Mapping[str, object] | None = None

    def write(self, folder: Path) -> Path:
        """Write the model into `folder` and return it."""
        return tiny_encoder_folder(
            folder,
            self.kind,
            prefix=ENCODERS[self.kind].prefix if self.with_prefix else "",
            suffixes=OLD_NAMES if self.old_names else None,
            config=self.config,
        )


CASES = {
    **{kind: EncoderCase(kind) for kind in ENCODERS},
    **{f"{kind} saved with a head": EncoderCase(kind, with_prefix=True) for kind in ENCODERS},
    **{
        f"{kind} with gamma and beta": EncoderCase(kind, with_prefix=True, old_names=True)
        for kind in ("bert", "roberta")
    },
    "roberta whose padding is 0": EncoderCase("roberta", config={"pad_token_id": 0}),
    "mpnet whose padding is 3": EncoderCase("mpnet", config={"pad_token_id": 3}),
    "bert with gelu_new": EncoderCase("bert", config={"hidden_act": "gelu_new"}),
    "roberta with relu": EncoderCase("roberta", config={"hidden_act": "relu"}),
    "distilbert with silu": EncoderCase("distilbert", config={"activation": "silu"}),
    "mpnet with quick_gelu": EncoderCase("mpnet", config={"hidden_act": "quick_gelu"}),
    "distilbert with other epsilon": EncoderCase("distilbert", config={"layer_norm_eps": 0.5}),
    "distilbert by BERT's keys": EncoderCase(
        "distilbert",
        config={
            **{"dim": None, "n_layers": None, "n_heads": None},
            **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
        },
    ),
}
