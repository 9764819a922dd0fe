"""Trace a model of transformers, for refllm diff: every value, by forward hooks.

    python trace_transformers.py FOLDER "Once upon a time" run.safetensors --steps 2
    python trace_transformers.py FOLDER "A cat sat." "Dogs bark." run.safetensors

FOLDER has config.json, tokenizer.json and safetensors, as refllm models export --format hf writes
them. Of a llama, queries and keys are put into the order of GGUF's rows, in which RoPE turns
neighbors. An encoder (BERT, RoBERTa, DistilBERT, MPNet) runs in sentence-transformers, which pools
and normalizes; its texts are one padded batch, of which a trace has each text without the padding.

Needs torch, transformers, numpy and safetensors; for an encoder also sentence-transformers.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file
from transformers.models.llama import modeling_llama

# The values of a layer in the order of computation; "#2" is the second value of a name.
LAYER = [
    *("attn_norm", "Qcur", "Kcur", "Vcur", "Qcur#2", "Kcur#2", "kq_soft_max", "kqv_out"),
    *("attn_out", "ffn_inp", "ffn_norm", "ffn_gate", "ffn_up", "ffn_swiglu", "ffn_out", "l_out"),
]
# The values of an encoder's layer: what a module is given ("in") or returns ("out").
BERT = {
    "Qcur": ("attention.self.query", "out"),
    "Kcur": ("attention.self.key", "out"),
    "Vcur": ("attention.self.value", "out"),
    "kq_soft_max": ("attention.self", "weights"),
    "kqv_out": ("attention.output.dense", "in"),
    "attn_out": ("attention.output.dense", "out"),
    "ffn_inp": ("attention.output", "out"),
    "ffn_up": ("intermediate.dense", "out"),
    "ffn_gelu": ("output.dense", "in"),
    "ffn_out": ("output.dense", "out"),
    "l_out": ("output", "out"),
}
MPNET = {
    **BERT,
    "Qcur": ("attention.attn.q", "out"),
    "Kcur": ("attention.attn.k", "out"),
    "Vcur": ("attention.attn.v", "out"),
    "kq_soft_max": ("attention.attn.dropout", "in"),
    "kqv_out": ("attention.attn.o", "in"),
    "attn_out": ("attention.attn.o", "out"),
    "ffn_inp": ("attention.LayerNorm", "out"),
}
DISTILBERT = {
    "Qcur": ("attention.q_lin", "out"),
    "Kcur": ("attention.k_lin", "out"),
    "Vcur": ("attention.v_lin", "out"),
    "kq_soft_max": ("attention", "weights"),
    "kqv_out": ("attention.out_lin", "in"),
    "attn_out": ("attention.out_lin", "out"),
    "ffn_inp": ("sa_layer_norm", "out"),
    "ffn_up": ("ffn.lin1", "out"),
    "ffn_gelu": ("ffn.lin2", "in"),
    "ffn_out": ("ffn.lin2", "out"),
    "l_out": ("output_layer_norm", "out"),
}
RIGHT_ROPE = modeling_llama.apply_rotary_pos_emb


def in_gguf_order(x: torch.Tensor) -> torch.Tensor:
    """Reorder heads [..., E]: a pair (i, i + E/2) becomes (2i, 2i + 1)."""
    return torch.stack(x.chunk(2, dim=-1), dim=-1).flatten(-2)


class Tracer:
    """Keeps the values of one call of a llama."""

    def __init__(self, model: Any) -> None:
        self.values: dict[str, np.ndarray] = {}
        self.n_layers = len(model.model.layers)
        self.head_dim = model.model.layers[0].self_attn.head_dim
        self.turning = 0  # the layer whose RoPE is next
        modeling_llama.apply_rotary_pos_emb = self.rope
        modeling_llama.LlamaAttention.forward.__globals__["apply_rotary_pos_emb"] = self.rope
        self.output(model.model.embed_tokens, "inp_embd")
        for i, layer in enumerate(model.model.layers):
            attention, mlp = layer.self_attn, layer.mlp
            self.output(layer.input_layernorm, f"attn_norm-{i}")
            self.output(attention.q_proj, f"Qcur-{i}", heads=True)
            self.output(attention.k_proj, f"Kcur-{i}", heads=True)
            self.output(attention.v_proj, f"Vcur-{i}", heads=True)
            self.output(attention, f"kq_soft_max-{i}", item=1)
            self.input(attention.o_proj, f"kqv_out-{i}")
            self.output(attention.o_proj, f"attn_out-{i}")
            self.input(layer.post_attention_layernorm, f"ffn_inp-{i}")
            self.output(layer.post_attention_layernorm, f"ffn_norm-{i}")
            self.output(mlp.gate_proj, f"ffn_gate-{i}")
            self.output(mlp.up_proj, f"ffn_up-{i}")
            self.input(mlp.down_proj, f"ffn_swiglu-{i}")
            self.output(mlp.down_proj, f"ffn_out-{i}")
            self.output(layer, f"l_out-{i}")
        self.output(model.model.norm, "result_norm")
        self.output(model.lm_head, "result_output")

    def keep(self, name: str, value: torch.Tensor, heads: bool = False) -> None:
        """Keep a value of the one text, [T, ...]."""
        value = value[0].detach().float()
        if heads:
            value = value.unflatten(-1, (-1, self.head_dim))  # [T, H, E]
            value = value if name.startswith("Vcur") else in_gguf_order(value)
        self.values[name] = value.contiguous().numpy().copy()

    def output(self, module: Any, name: str, heads: bool = False, item: int = 0) -> None:
        """Keep what a module returns."""

        def hook(_module: Any, _inputs: Any, result: Any) -> None:
            self.keep(name, result[item] if isinstance(result, tuple) else result, heads)

        module.register_forward_hook(hook)

    def input(self, module: Any, name: str) -> None:
        """Keep what a module is given."""
        module.register_forward_pre_hook(lambda _module, inputs: self.keep(name, inputs[0]))

    def rope(self, q: torch.Tensor, k: torch.Tensor, *rest: Any, **named: Any) -> Any:
        """Keep queries and keys after RoPE, [1, H, T, E]."""
        turned = RIGHT_ROPE(q, k, *rest, **named)
        for name, value in zip(("Qcur", "Kcur"), turned, strict=True):
            self.keep(f"{name}-{self.turning}#2", in_gguf_order(value.transpose(1, 2)))
        self.turning = (self.turning + 1) % self.n_layers
        return turned

    def take(self) -> dict[str, np.ndarray]:
        """Return the values of the call in the order of computation, and forget them."""
        layers = [
            f"{name.partition('#')[0]}-{i}{'#2' * name.endswith('#2')}"
            for i in range(self.n_layers)
            for name in LAYER
        ]
        order = ["inp_embd", *layers, "result_norm", "result_output"]
        taken = {name: self.values[name] for name in order if name in self.values}
        self.values.clear()
        return taken


def continued(model: Any, ids: list[int], steps: int) -> tuple[list[Any], dict[str, np.ndarray]]:
    """Draw the likeliest tokens; return the calls and their arrays, and append to `ids`."""
    calls, arrays, cache = [], {}, transformers.DynamicCache()
    tracer = Tracer(model)
    computed = 0
    for step in range(max(1, steps)):
        new = torch.tensor([ids[computed:]])
        logits = model(new, past_key_values=cache, use_cache=True).logits[0, -1]
        values = tracer.take()
        calls.append({"text": 0, "first": computed, "n_tokens": new.shape[1], "values": [*values]})
        arrays |= {f"calls/{step}/{name}": value for name, value in values.items()}
        computed = len(ids)
        if step < steps:
            ids.append(int(logits.argmax()))
    return calls, arrays


def embedded(
    model: Any, features: dict[str, Any], ids: list[list[int]]
) -> tuple[list[Any], dict[str, np.ndarray]]:
    """Embed texts in one batch; return a call for each and their arrays, without padding."""
    encoder, values = model[0].auto_model, {}
    n_heads = encoder.config.num_attention_heads

    def watch(module: Any, name: str, what: str) -> None:
        def keep(_module: Any, given: Any, returned: Any = None) -> None:
            value = given[0] if what == "in" else returned
            if isinstance(value, tuple):
                value = value[what == "weights"]
            elif not isinstance(value, torch.Tensor):  # what modules behind an encoder pass on
                value = value["sentence_embedding"]
            value = value.detach().float()
            if name.startswith(("Qcur", "Kcur", "Vcur")):
                value = value.unflatten(-1, (n_heads, -1))  # [N, T, H, E]
            values[name] = value.clone().numpy()

        if what == "in":
            module.register_forward_pre_hook(keep)
        else:
            module.register_forward_hook(keep)

    watch(encoder.embeddings.LayerNorm, "inp_embd", "in")
    watch(encoder.embeddings.LayerNorm, "inp_norm", "out")
    is_distilbert = hasattr(encoder, "transformer")
    names = {"mpnet": MPNET, "distilbert": DISTILBERT}.get(encoder.config.model_type, BERT)
    for i, layer in enumerate((encoder.transformer if is_distilbert else encoder.encoder).layer):
        for name, (path, what) in names.items():
            watch(layer.get_submodule(path), f"{name}-{i}", what)
    n_dense = 0
    for module in model:
        if type(module).__name__ == "Pooling":
            watch(module, "result_embd_pooled", "out")
        elif type(module).__name__ == "Dense":
            watch(module, f"result_embd_dense-{n_dense}", "out")
            n_dense += 1
    values["result_embd"] = model(features)["sentence_embedding"][:, : model.truncate_dim].numpy()
    calls, arrays = [], {}
    for i, text in enumerate(ids):
        n = len(text)
        calls.append({"text": i, "first": 0, "n_tokens": n, "values": [*values]})
        for name, value in values.items():
            if name.startswith("kq_soft_max"):
                cut = value[i, :, :n, :n]  # [H, T, T]
            else:
                cut = value[i : i + 1] if name.startswith("result_") else value[i, :n]
            arrays[f"calls/{i}/{name}"] = np.ascontiguousarray(cut)
    return calls, arrays


def main() -> None:
    """Trace the model of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("prompt", nargs="+", help="one text; of an encoder one or more")
    parser.add_argument("to")
    parser.add_argument("--steps", type=int, default=1, help="tokens to draw, the likeliest ones")
    asked = parser.parse_args()
    config = json.loads(Path(asked.folder, "config.json").read_text("utf-8"))
    is_llama = config["model_type"] == "llama"
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    program, version = "transformers", transformers.__version__
    libraries = {"torch": torch.__version__, "numpy": np.__version__}
    if is_llama:
        if len(asked.prompt) > 1:
            parser.error("a llama continues one text")
        tokenizer = transformers.AutoTokenizer.from_pretrained(asked.folder)
        model = transformers.AutoModelForCausalLM.from_pretrained(asked.folder, **options)
        ids = tokenizer(asked.prompt[0])["input_ids"]
    else:
        import sentence_transformers

        libraries[program] = version
        program, version = "sentence-transformers", sentence_transformers.__version__
        model = sentence_transformers.SentenceTransformer(
            asked.folder, device="cpu", model_kwargs=options
        )
        tokenizer = model.tokenizer
        before = model.prompts.get(model.default_prompt_name) or None
        features = model.preprocess(asked.prompt, prompt=before)
        batch = zip(features["input_ids"], features["attention_mask"], strict=True)
        ids = [text[mask == 1].tolist() for text, mask in batch]
    # A fault is planted here in the tests of refllm diff.
    with torch.inference_mode():
        if is_llama:
            n_given = len(ids)
            calls, arrays = continued(model, ids, asked.steps)
        else:
            calls, arrays = embedded(model, features, ids)
    sequences = [ids] if is_llama else ids
    metadata = {
        "format": "refllm trace",
        "version": 1,
        "program": {"name": program, "version": version, "libraries": libraries},
        "model": asked.folder,
        "architecture": "llama" if is_llama else "bert",
        "numerics": "float32",
        "texts": [
            {
                "text": text,
                "token_ids": sequence,
                "pieces": tokenizer.convert_ids_to_tokens(sequence),
                "n_given": n_given if is_llama else len(sequence),
            }
            for text, sequence in zip(asked.prompt, sequences, strict=True)
        ],
        "calls": calls,
    }
    save_file(arrays, asked.to, {"refllm.trace": json.dumps(metadata)})


if __name__ == "__main__":
    main()
