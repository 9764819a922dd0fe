"""Plant faults in copies of the harnesses of docs/harnesses/, and record what `refllm diff` needs.

    python -m tools.record_traces transformers PYTHON
    python -m tools.record_traces llama.cpp PYTHON --only "BOS missing"

PYTHON is an interpreter that has the engine. For each fault a copy of the harness gets one line
more, in place of its comment, and its trace is written to tests/support/traces/, cut after the
first value that the fault changes. "right" has no fault.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from refllm.export import export, quantize
from refllm.models.find import default_roots, find_model
from refllm.trace import Trace, open_trace
from refllm.trace.expected import layer_of
from refllm.trace.metadata import METADATA_KEY
from refllm.trace.writer import array_file
from tests.support.exported_models import MODELS

__all__ = [
    "ENGINES",
    "FAULTS",
    "FOLDER",
    "MPNET_TEXTS",
    "PROJECT",
    "PROMPT",
    "STEPS",
    "TEXTS",
    "Engine",
    "Planted",
]

PROJECT = Path(__file__).resolve().parent.parent
FOLDER = PROJECT / "tests" / "support" / "traces"
HERE = "# A fault is planted here in the tests of refllm diff."
PROMPT, STEPS = "Once upon", 2
TEXTS = ("A cat sat", "Dogs")  # the second one is padded
MPNET_TEXTS = ("the cafe playing. " * 6,)  # with distances in half of all buckets


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How an engine is traced: the harness, the model, and what the harness is asked."""

    script: str
    model: str
    asked: Sequence[str]
    options: Sequence[str] = ()


ENGINES: Mapping[str, Engine] = {
    "llama.cpp": Engine(
        script="trace_llama_cpp.py",
        model="tiny-chat",
        asked=(PROMPT,),
        options=("--steps", str(STEPS)),
    ),
    "transformers": Engine(
        script="trace_transformers.py",
        model="tiny-chat",
        asked=(PROMPT,),
        options=("--steps", str(STEPS)),
    ),
    "sentence-transformers": Engine(
        script="trace_transformers.py", model="tiny-embed", asked=TEXTS
    ),
}


@dataclass(frozen=True, slots=True)
class Planted:
    """A fault in a copy of a harness.

    Attributes:
        line: The line of Python that makes it.
        value: The first value that it changes; "" for a fault of the tokens.
        call: The call in which it changes it first.
        is_named: Whether the trace has what the fault computes with, so that `refllm diff` can
            name it.
        weights: What it does to the tensors of a copy of the model, by name, in place.
        epsilon: The epsilon of RMSNorm in a copy of the model.
    """

    line: str
    value: str
    call: int = 0
    is_named: bool = True
    weights: Callable[[Mapping[str, NDArray[np.float32]]], object] | None = None
    epsilon: float | None = None


EACH = "for layer in model.model.layers: "
BERT = "bert = model[0].auto_model; "
LAYERS = f"{BERT}layers = bert.encoder.layer; output = type(layers[0].attention.output); "

Tensors = Mapping[str, NDArray[np.float32]]


def _each(change: Callable[[Tensors, str], object]) -> Callable[[Tensors], None]:
    """Return a change of all layers, made of one of the layer whose tensors begin so."""

    def change_all(tensors: Tensors) -> None:
        for prefix in sorted({name[: name.index(".", 4)] for name in tensors if "blk." in name}):
            change(tensors, prefix)

    return change_all


def _exchange(one: str, other: str) -> Callable[[Tensors], None]:
    def exchange(tensors: Tensors, prefix: str) -> None:
        a, b = (tensors[f"{prefix}.{name}.weight"] for name in (one, other))
        a[...], b[...] = b.copy(), a.copy()

    return _each(exchange)


def _transpose(name: str) -> Callable[[Tensors], None]:
    def transpose(tensors: Tensors, prefix: str) -> None:
        matrix = tensors[f"{prefix}.{name}.weight"]
        matrix[...] = matrix.T.copy()

    return _each(transpose)


def _norm(change: Callable[[NDArray[np.float32]], object]) -> Callable[[Tensors], None]:
    return _each(lambda tensors, prefix: change(tensors[f"{prefix}.attn_norm.weight"]))


FAULTS: Mapping[str, Mapping[str, Planted]] = {
    "llama.cpp": {
        "BOS missing": Planted("ids = ids[1:]", ""),
        "RoPE base 500000": Planted("params.rope_freq_base = 500000.0", "Qcur-0#2"),
        "RoPE base 1000000": Planted("params.rope_freq_base = 1000000.0", "Qcur-0#2"),
        "RoPE backwards": Planted("params.rope_freq_scale = -1.0", "Qcur-0#2"),
        "causal mask missing": Planted("params.attention_type = 1", "kq_soft_max-0"),
        "RMSNorm epsilon 1e-06": Planted("", "attn_norm-0", epsilon=1e-6),
        "RMSNorm epsilon 1e-12": Planted("", "attn_norm-0", epsilon=1e-12),
        "RMSNorm without weight": Planted(
            "", "attn_norm-0", weights=_norm(lambda weight: weight.fill(1.0))
        ),
        "RMSNorm weight from one": Planted(
            "", "attn_norm-0", weights=_norm(lambda weight: np.add(weight, 1.0, out=weight))
        ),
        "norms exchanged": Planted("", "attn_norm-0", weights=_exchange("attn_norm", "ffn_norm")),
        "gate and up exchanged": Planted("", "ffn_gate-0", weights=_exchange("ffn_gate", "ffn_up")),
        "attn_output transposed": Planted("", "attn_out-0", weights=_transpose("attn_output")),
        "attn_q transposed": Planted("", "Qcur-0", weights=_transpose("attn_q")),
        "embeddings scaled": Planted(
            "",
            "inp_embd",
            weights=lambda t: np.multiply(t["token_embd.weight"], 16.0, out=t["token_embd.weight"]),
        ),
    },
    "transformers": {
        "BOS missing": Planted("ids = ids[1:]", ""),
        "RMSNorm epsilon 1e-06": Planted(
            f"{EACH}layer.input_layernorm.variance_epsilon = 1e-6", "attn_norm-0"
        ),
        "RMSNorm without weight": Planted(
            f"{EACH}layer.input_layernorm.weight.data.fill_(1.0)", "attn_norm-0"
        ),
        "RMSNorm weight from one": Planted(
            f"{EACH}layer.input_layernorm.weight.data.add_(1.0)", "attn_norm-0"
        ),
        "embeddings scaled": Planted(
            "model.model.embed_tokens.register_forward_hook(lambda _m, _i, out: out * 16)",
            "inp_embd",
        ),
        "RoPE base 500000": Planted(
            "model.model.rotary_emb.inv_freq = 500000.0 ** (-torch.arange(0, 32, 2) / 32)",
            "Qcur-0#2",
        ),
        "RoPE backwards": Planted("model.model.rotary_emb.inv_freq.neg_()", "Qcur-0#2"),
        "RoPE missing": Planted("model.model.rotary_emb.inv_freq.zero_()", "Qcur-0#2"),
        "RoPE layout of GGUF": Planted(
            "turn = lambda x, c, s: x * c + torch.stack((-x[..., 1::2], x[..., ::2]), -1)"
            ".flatten(-2) * s; wide = lambda a: a[:, None, :, : a.shape[-1] // 2]"
            ".repeat_interleave(2, -1); globals().update(RIGHT_ROPE=lambda q, k, c, s, *_a, **_n: "
            "(turn(q, wide(c), wide(s)), turn(k, wide(c), wide(s))))",
            "Qcur-0#2",
        ),
        "scores not scaled": Planted(f"{EACH}layer.self_attn.scaling = 1.0", "kq_soft_max-0"),
        "GQA heads by modulo": Planted(
            "modeling_llama.repeat_kv = lambda x, n: x.repeat(1, n, 1, 1)", "kq_soft_max-0"
        ),
        "causal mask missing": Planted(
            "modeling_llama.create_causal_mask = lambda **_named: None", "kq_soft_max-0"
        ),
        "attn_output transposed": Planted(
            f"{EACH}layer.self_attn.o_proj.weight.data = "
            "layer.self_attn.o_proj.weight.data.T.contiguous()",
            "attn_out-0",
        ),
        "gate and up exchanged": Planted(
            f"{EACH}layer.mlp.gate_proj, layer.mlp.up_proj = layer.mlp.up_proj, "
            "layer.mlp.gate_proj",
            "ffn_gate-0",
        ),
        "GELU for SiLU": Planted(f"{EACH}layer.mlp.act_fn = torch.nn.GELU()", "ffn_swiglu-0"),
        "sigmoid for SiLU": Planted(f"{EACH}layer.mlp.act_fn = torch.nn.Sigmoid()", "ffn_swiglu-0"),
        "position one too small": Planted(
            "turn = model.model.rotary_emb.forward; model.model.rotary_emb.forward = "
            "lambda x, position_ids: turn(x, position_ids - int(position_ids.shape[1] == 1))",
            "Qcur-0#2",
            call=1,
        ),
    },
    "sentence-transformers": {
        "special tokens missing": Planted(
            "features = {name: rows[:1, 1:-1] for name, rows in features.items() if "
            "name != 'modality'}; ids = [ids[0][1:-1]]; asked.prompt = asked.prompt[:1]",
            "",
        ),
        "token types missing": Planted(
            f"{BERT}bert.embeddings.token_type_embeddings.weight.data.zero_()", "inp_embd"
        ),
        "second token type": Planted("features['token_type_ids'].fill_(1)", "inp_embd"),
        "positions from one": Planted(f"{BERT}bert.embeddings.position_ids.add_(1)", "inp_embd"),
        "positions missing": Planted(
            f"{BERT}bert.embeddings.position_embeddings.weight.data.zero_()", "inp_embd"
        ),
        "LayerNorm epsilon 1e-05": Planted(
            f"{BERT}[setattr(each, 'eps', 1e-5) for each in bert.modules()]", "inp_norm"
        ),
        "LayerNorm without bias": Planted(
            f"{BERT}[each.bias.data.zero_() for each in bert.modules() "
            "if isinstance(each, torch.nn.LayerNorm)]",
            "inp_norm",
        ),
        "biases missing": Planted(
            f"{BERT}[each.bias.data.zero_() for each in bert.modules() "
            "if isinstance(each, torch.nn.Linear)]",
            "Qcur-0",
        ),
        "LayerNorm before the block": Planted(
            f"{LAYERS}output.forward = lambda self, x, given: self.dense(x) + given; "
            "[layer.attention.self.register_forward_pre_hook(lambda _m, given, "
            "norm=layer.attention.output.LayerNorm: (norm(given[0]), *given[1:])) "
            "for layer in layers]",
            "Qcur-0",
        ),
        "LayerNorm before the sum": Planted(
            f"{LAYERS}output.forward = lambda self, x, given: "
            "self.LayerNorm(self.dense(x)) + given",
            "ffn_inp-0",
        ),
        "encoder residual missing": Planted(
            f"{LAYERS}output.forward = lambda self, x, _given: self.LayerNorm(self.dense(x))",
            "ffn_inp-0",
        ),
        "scores not scaled": Planted(
            f"{LAYERS}[setattr(layer.attention.self, 'scaling', 1.0) for layer in layers]",
            "kq_soft_max-0",
        ),
        "encoder attends causally": Planted(
            f"{LAYERS}hides = torch.full((1, 1, 512, 512), -torch.inf).triu(1); "
            "[layer.attention.self.register_forward_pre_hook(lambda _m, given, named: "
            "(given, named | {'attention_mask': hides[..., :given[0].shape[1], "
            ":given[0].shape[1]]}), with_kwargs=True) for layer in layers]",
            "kq_soft_max-0",
        ),
        "no attention mask": Planted(
            "features['attention_mask'].fill_(1)", "kq_soft_max-0", call=1
        ),
        **{
            name: Planted(
                f"{LAYERS}[setattr(layer.intermediate, 'intermediate_act_fn', {function}) "
                "for layer in layers]",
                "ffn_gelu-0",
            )
            for name, function in {
                "tanh GELU": "torch.nn.GELU('tanh')",
                "sigmoid GELU": "transformers.activations.QuickGELUActivation()",
            }.items()
        },
        **{
            name: Planted(f"model[1].pooling_mode = '{mode}'", "result_embd_pooled")
            for name, mode in {
                "CLS pooling": "cls",
                "max pooling": "max",
                "last token pooling": "lasttoken",
                "weighted mean pooling": "weightedmean",
                "mean by the root of the length": "mean_sqrt_len_tokens",
            }.items()
        },
        "padding in the mean": Planted(
            "model[1].register_forward_pre_hook(lambda _m, given: given[0].update("
            "attention_mask=torch.ones_like(given[0]['attention_mask'])))",
            "result_embd_pooled",
            call=1,
            is_named=False,
        ),
        "embeddings not normalized": Planted(
            "model[2].forward = lambda features: features", "result_embd"
        ),
    },
}
"""By engine and the name that `refllm diff` has for the fault."""

RIGHT: Mapping[str, Mapping[str, Planted]] = {
    "llama.cpp": {"right": Planted("", ""), "right Q8_0": Planted("", "")},
    "transformers": {"right": Planted("", "")},
    "sentence-transformers": {"right": Planted("", "", call=1), "right mpnet": Planted("", "")},
}
"""Traces without a fault; tiny-chat's own file is quantized, which transformers does not read."""


def main() -> None:
    """Record the traces of one engine."""
    parser = argparse.ArgumentParser(description="Record traces of other engines.")
    parser.add_argument("engine", choices=sorted(FAULTS))
    parser.add_argument("python", help="an interpreter that has the engine")
    parser.add_argument("--only", action="append", metavar="FAULT", help="this one; repeatable")
    arguments = parser.parse_args()
    engine, name_of_engine = ENGINES[arguments.engine], arguments.engine
    to = FOLDER / name_of_engine
    to.mkdir(parents=True, exist_ok=True)
    quantized = find_model(engine.model, default_roots())
    with tempfile.TemporaryDirectory() as folder:
        model = _model(name_of_engine, quantized, Path(folder))
        script = PROJECT / "docs" / "harnesses" / engine.script
        text = script.read_text("utf-8")
        assert text.count(HERE) == 1
        for name, planted in {**RIGHT[name_of_engine], **FAULTS[name_of_engine]}.items():
            if arguments.only and name not in arguments.only:
                continue
            changed, asked = _changed(model, planted), engine.asked
            if name == "right Q8_0":
                changed = quantized
            if name == "right mpnet":
                changed, asked = MODELS["mpnet"].make(_new_folder(folder)), MPNET_TEXTS
            copy = Path(folder, "planted_harness.py")
            copy.write_text(text.replace(HERE, planted.line), "utf-8")
            made = Path(folder, "made.safetensors")
            command = [arguments.python, copy, changed, *asked, made, *engine.options]
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            file = to / f"{name.replace(' ', '-')}.safetensors"
            _cut(open_trace(made), planted, file, model=engine.model)
            sys.stdout.write(f"{file.relative_to(PROJECT)}: {file.stat().st_size:,} bytes\n")


def _model(engine: str, quantized: Path, folder: Path) -> Path:
    """Make the model in float32 for the engine, and return its path."""
    if engine != "llama.cpp":
        return export(quantized, to=folder, name=quantized.stem, layout="hf")
    file = folder / "tiny-chat.gguf"
    quantize(quantized, file, type_name="F32")
    return file


def _new_folder(folder: str) -> Path:
    return Path(tempfile.mkdtemp(dir=folder))


def _changed(model: Path, planted: Planted) -> Path:
    """Return the model, or a copy with the fault's weights and epsilon."""
    if planted.weights is None and planted.epsilon is None:
        return model
    copy = model.with_name("changed.gguf")
    shutil.copyfile(model, copy)
    reader = gguf.GGUFReader(copy, "r+")
    if planted.epsilon is not None:
        field = reader.fields["llama.attention.layer_norm_rms_epsilon"]
        field.parts[field.data[0]][0] = planted.epsilon
    if planted.weights is not None:
        planted.weights({tensor.name: tensor.data for tensor in reader.tensors})
    reader.data.flush()
    return copy


def _cut(trace: Trace, planted: Planted, to: Path, *, model: str) -> None:
    """Write the values of the layers and calls up to the first one that is changed."""
    calls = []
    arrays: dict[str, NDArray[np.float32]] = {}
    for i, call in enumerate(trace.metadata.calls[: planted.call + 1]):
        names = list(call.values)
        if i < planted.call and planted.value and trace.metadata.architecture == "bert":
            names = []  # texts are apart
        elif planted.value:
            last = names.index(planted.value)
            names = names[: last + 1] if i == planted.call else names
            layer, outputs = layer_of(planted.value)[1], [n for n in names if "l_out-" in n]
            names = [
                name
                for name in names
                # What pooling is of, beside the values before the layer's end.
                if layer_of(name)[1] <= layer or (layer < 0 and name in outputs[-1:])
            ]
        elif planted.line:  # the tokens differ
            names = names[:1]
        calls.append(
            type(call)(
                text=call.text, first=call.first, n_tokens=call.n_tokens, values=tuple(names)
            )
        )
        arrays |= {f"calls/{i}/{name}": trace.value(name, i) for name in names}
    with array_file(to, overwrite=True) as writer:
        for key, array in arrays.items():
            writer.add(key, array)
        fields = {
            name: getattr(trace.metadata, name)
            for name in ("program", "architecture", "numerics", "texts")
        }
        metadata = type(trace.metadata)(calls=tuple(calls), model=model, **fields)
        writer.metadata = {METADATA_KEY: metadata.to_json()}


if __name__ == "__main__":
    main()
