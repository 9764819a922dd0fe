"""Trace a llama of llama.cpp, for refllm diff: every value, by the evaluation callback.

    python trace_llama_cpp.py MODEL.gguf "Once upon a time" run.safetensors --steps 2

Needs llama-cpp-python, numpy and safetensors. llama.cpp quantizes activations before it multiplies
them with quantized weights: compare a quantized model with MODEL@int8, one of F32 with MODEL.
"""

import argparse
import ctypes
import json
import os
from pathlib import Path

import llama_cpp
import numpy as np
from safetensors.numpy import save_file

# As llama-cpp-python finds its library.
LIBRARIES = os.environ.get("LLAMA_CPP_LIB_PATH") or Path(llama_cpp.__file__).parent / "lib"
GGML = ctypes.CDLL(str(next(Path(LIBRARIES).glob("*ggml-base*"))))
GGML.ggml_get_name.restype = GGML.ggml_op_desc.restype = ctypes.c_char_p
GGML.ggml_nbytes.restype = ctypes.c_size_t
F32 = 0  # of enum ggml_type
VIEWS = (b"VIEW", b"RESHAPE", b"PERMUTE", b"TRANSPOSE")  # they compute nothing
BASES = (
    *("attn_norm", "Qcur", "Kcur", "Vcur", "kq_soft_max", "kqv_out", "attn_out", "ffn_inp"),
    *("ffn_norm", "ffn_gate", "ffn_up", "ffn_swiglu", "ffn_out", "l_out"),
)
RENAMED = {"embd": "inp_embd"}
QUIET = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)
LAST = ("inp_embd", "result_norm", "result_output")  # the values outside the layers


class Tracer:
    """Keeps the values of one call of llama_decode."""

    def __init__(self) -> None:
        self.values: dict[str, np.ndarray] = {}
        self.heads = {"Qcur": 0, "Kcur": 0, "Vcur": 0}
        self.head_dim = self.n_seen = 0
        self.callback = llama_cpp.ggml_backend_sched_eval_callback(self.see)

    def see(self, tensor: int, ask: bool, _data: int) -> bool:
        """Return whether a value is wanted; copy one that is computed."""
        pointer = ctypes.c_void_p(tensor)
        name = GGML.ggml_get_name(pointer).decode()
        name = RENAMED.get(name, name)
        base = name.rpartition("-")[0]
        is_wanted = base in BASES or name in LAST
        if not is_wanted or GGML.ggml_op_desc(pointer) in VIEWS:
            return not ask
        if ask:
            return True
        # struct ggml_tensor begins with its type, its buffer, and its shape, the last axis first.
        shape = (ctypes.c_int64 * 4).from_address(tensor + 16)[::-1]
        if ctypes.c_int.from_address(tensor).value != F32:
            return True
        value = np.empty(shape, np.float32)
        at = ctypes.c_void_p(value.ctypes.data)
        GGML.ggml_backend_tensor_get(
            pointer, at, ctypes.c_size_t(0), ctypes.c_size_t(GGML.ggml_nbytes(pointer))
        )
        if base in self.heads:  # [1, T, H, E] after RoPE, [1, 1, T, H·E] before
            value = value.reshape(-1, self.heads[base], self.head_dim)
        elif base == "kq_soft_max":  # [1, H, T, S], S rounded up
            value = value[0, ..., : self.n_seen]
        else:
            value = value.reshape(-1, shape[-1])
        self.values[f"{name}#2" if name in self.values else name] = value.copy()
        return True

    def take(self) -> dict[str, np.ndarray]:
        """Return the values of the call, and forget them."""
        taken, self.values = self.values, {}
        return taken


def main() -> None:
    """Trace the model of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("prompt")
    parser.add_argument("to")
    parser.add_argument("--steps", type=int, default=1, help="tokens to draw, the likeliest ones")
    asked = parser.parse_args()
    llama_cpp.llama_log_set(QUIET, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    tracer = Tracer()
    model = llama_cpp.llama_model_load_from_file(
        asked.model.encode(), llama_cpp.llama_model_default_params()
    )
    if not model:
        parser.error(f"{asked.model} cannot be loaded")
    vocab = llama_cpp.llama_model_get_vocab(model)
    tracer.heads["Qcur"] = llama_cpp.llama_model_n_head(model)
    tracer.heads["Kcur"] = tracer.heads["Vcur"] = llama_cpp.llama_model_n_head_kv(model)
    tracer.head_dim = llama_cpp.llama_model_n_embd(model) // tracer.heads["Qcur"]
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 512
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it has no kq_soft_max
    params.type_k = params.type_v = F32
    params.cb_eval = tracer.callback
    text = asked.prompt.encode()
    tokens = (llama_cpp.llama_token * params.n_ctx)()
    n = llama_cpp.llama_tokenize(vocab, text, len(text), tokens, params.n_ctx, True, False)
    if n < 0:
        parser.error(f"the prompt has {-n} tokens, and this program traces {params.n_ctx}")
    ids = list(tokens[:n])
    # A fault is planted here in the tests of refllm diff.
    context = llama_cpp.llama_init_from_model(model, params)
    n_vocab = llama_cpp.llama_vocab_n_tokens(vocab)
    n_given, computed, calls, arrays = len(ids), 0, [], {}
    for step in range(max(1, asked.steps)):
        new = ids[computed:]
        batch = llama_cpp.llama_batch_init(len(new), 0, 1)
        batch.n_tokens = len(new)
        for i, token in enumerate(new):
            batch.token[i], batch.pos[i], batch.logits[i] = token, computed + i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        tracer.n_seen = len(ids)
        if llama_cpp.llama_decode(context, batch) != 0:
            parser.error("llama_decode failed")
        logits = llama_cpp.llama_get_logits_ith(context, len(new) - 1)[:n_vocab]
        values = tracer.take()
        calls.append({"text": 0, "first": computed, "n_tokens": len(new), "values": [*values]})
        arrays |= {f"calls/{step}/{name}": value for name, value in values.items()}
        computed = len(ids)
        if step < asked.steps:
            ids.append(int(np.argmax(logits)))
    metadata = {
        "format": "refllm trace",
        "version": 1,
        "program": {
            "name": "llama.cpp",
            "version": f"llama-cpp-python {llama_cpp.__version__}",
            "libraries": {"numpy": np.__version__},
        },
        "model": asked.model,
        "architecture": "llama",
        "numerics": "llama.cpp",
        "texts": [
            {
                "text": asked.prompt,
                "token_ids": ids,
                "pieces": [llama_cpp.llama_vocab_get_text(vocab, i).decode() for i in ids],
                "n_given": n_given,
            }
        ],
        "calls": calls,
    }
    save_file(arrays, asked.to, {"refllm.trace": json.dumps(metadata)})


if __name__ == "__main__":
    main()
