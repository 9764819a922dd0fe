"""Right values of BERT's family, and of its activations, by transformers.

    python -m tools.peer_values.encoders    writes tests/support/peer_values/encoders.json

The vector of a text is the mean of the last layer over all of its tokens, special ones and padding
tokens within the text included, divided by its length; the first four numbers are recorded.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModel
from transformers.activations import ACT2FN

from tests.support.encoder_cases import ACTIVATION_INPUTS, CASES, TEXTS, EncoderCase
from tests.support.tiny_encoders import ENCODERS
from tools.peer_values import write_peer_values

# What a model of transformers has and the files of the tests have not.
NOT_NEEDED = "pooler.dense."


def vectors(case: EncoderCase, folder: Path) -> list[list[float]]:
    """Return the first numbers of each text's vector."""
    path = case.write(folder)
    model, loaded = AutoModel.from_pretrained(path, output_loading_info=True)
    missing = [name for name in loaded["missing_keys"] if NOT_NEEDED not in name]
    if missing or loaded["mismatched_keys"]:
        raise ValueError(f"{case}: transformers found no {missing}, {loaded['mismatched_keys']}")
    model.eval()
    result = []
    for text in TEXTS:
        token_ids = torch.tensor([text])
        with torch.no_grad():
            states = model(input_ids=token_ids, attention_mask=torch.ones_like(token_ids))
        mean = states.last_hidden_state[0].double().mean(dim=0)
        result.append([round(value, 8) for value in (mean / mean.norm())[:4].tolist()])
    return result


def activation(name: str) -> list[float]:
    """Return the activation of each of the inputs."""
    values = ACT2FN[name](torch.tensor(np.array(ACTIVATION_INPUTS, np.float32)))
    return [float(value) for value in values]


def stored_names(kind: str) -> list[str]:
    """Return the names under which models with a head save the tensors of a kind's model.

    Layers but the first are left out.
    """
    encoder = ENCODERS[kind]
    config = AutoConfig.for_model(
        encoder.model_type, **{**encoder.config, "tie_word_embeddings": False}
    )
    names: set[str] = set()
    for auto in (
        transformers.AutoModel,
        transformers.AutoModelForPreTraining,
        transformers.AutoModelForMaskedLM,
        transformers.AutoModelForSequenceClassification,
        transformers.AutoModelForTokenClassification,
        transformers.AutoModelForQuestionAnswering,
        transformers.AutoModelForMultipleChoice,
    ):
        names |= auto.from_config(config).state_dict().keys()
    return sorted(name for name in names if "layer.1." not in name)


def main() -> None:
    """Write the file."""
    cases: dict[str, object] = {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            cases[name] = vectors(case, Path(folder))
    computed = [name for name in ACT2FN if name not in ("prelu", "xielu")]
    cases["activations"] = {name: activation(name) for name in computed}
    cases["all activations"] = sorted(ACT2FN)
    cases["keys of config.json"] = {
        kind: sorted(AutoConfig.for_model(encoder.model_type).to_dict())
        for kind, encoder in ENCODERS.items()
    }
    cases["tensors"] = {kind: stored_names(kind) for kind in ENCODERS}
    write_peer_values("encoders", packages=("transformers", "torch"), cases=cases)


if __name__ == "__main__":
    main()
