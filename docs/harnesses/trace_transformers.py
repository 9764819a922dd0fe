"""Trace a llama of transformers, for refllm diff: every value, by forward hooks.

    python trace_transformers.py FOLDER "Once upon a time" run.safetensors --steps 2

FOLDER has config.json, tokenizer.json and safetensors, as refllm models export --format hf writes
them. Queries and keys are put into the order of GGUF's rows, in which RoPE turns neighbors.
"""

import argparse
import json
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
RIGHT_ROPE = modeling_llama.apply_rotary_pos_emb


def in_gguf_order(x: torch.Tensor) -> torch.Tensor:
    """Reorder heads [..., E]: a pair (i, i + E/2) becomes (2i, 2i + 1)."""
    return torch.stack(x.chunk(2, dim=-1), dim=-1).flatten(-2)


class Tracer:
    """Keeps the values of one call of the model."""

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


def main() -> None:
    """Trace the model of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("prompt")
    parser.add_argument("to")
    parser.add_argument("--steps", type=int, default=1, help="tokens to draw, the likeliest ones")
    asked = parser.parse_args()
    tokenizer = transformers.AutoTokenizer.from_pretrained(asked.folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        asked.folder, dtype=torch.float32, attn_implementation="eager"
    )
    ids = tokenizer(asked.prompt)["input_ids"]
    # A fault is planted here in the tests of refllm diff.
    n_given, calls, arrays, cache = len(ids), [], {}, transformers.DynamicCache()
    tracer = Tracer(model)
    computed = 0
    with torch.inference_mode():
        for step in range(max(1, asked.steps)):
            new = torch.tensor([ids[computed:]])
            logits = model(new, past_key_values=cache, use_cache=True).logits[0, -1]
            values = tracer.take()
            calls.append(
                {"text": 0, "first": computed, "n_tokens": new.shape[1], "values": [*values]}
            )
            arrays |= {f"calls/{len(calls) - 1}/{name}": v for name, v in values.items()}
            computed = len(ids)
            if step < asked.steps:
                ids.append(int(logits.argmax()))
    metadata = {
        "format": "refllm trace",
        "version": 1,
        "program": {
            "name": "transformers",
            "version": transformers.__version__,
            "libraries": {"torch": torch.__version__, "numpy": np.__version__},
        },
        "model": asked.folder,
        "architecture": "llama",
        "numerics": "float32",
        "texts": [
            {
                "text": asked.prompt,
                "token_ids": ids,
                "pieces": tokenizer.convert_ids_to_tokens(ids),
                "n_given": n_given,
            }
        ],
        "calls": calls,
    }
    save_file(arrays, asked.to, {"refllm.trace": json.dumps(metadata)})


if __name__ == "__main__":
    main()
