#!/usr/bin/env bash
# One would guess that llama.attention.sliding_window of a GGUF limits the attention as
# sliding_window of a Mistral's config.json does, since Mistral models are converted to the
# architecture "llama".
# The key is accepted and ignored: llama.cpp computes the logits of the same weights without a
# window, transformers the logits with the window.
# It matters for prompts longer than the window of a Mistral of the first generation: the two
# programs compute different models.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 llama-cpp-python==0.3.36 gguf==0.19.0 numpy==2.4.6
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import sys
from importlib.metadata import version

import gguf
import llama_cpp
import numpy as np
import torch
from transformers import MistralConfig, MistralForCausalLM


def expect(condition, changed):
    """End with status 1 where the behaviour is no longer the one described above."""
    if not condition:
        sys.exit(f"CHANGED: {changed}")


V, D, F, H, WINDOW = 300, 32, 64, 4, 8


def mistral(window):
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=V, hidden_size=D, intermediate_size=F, num_hidden_layers=2,
        num_attention_heads=H, num_key_value_heads=H, max_position_embeddings=256,
        initializer_range=0.3, sliding_window=window, rms_norm_eps=1e-5,
    )
    return MistralForCausalLM(config).eval()


def pairs_of_rows(matrix):
    """Order the rows of q and k as llama.cpp rotates them: neighbours, not halves."""
    return matrix.reshape(H, 2, D // H // 2, D).transpose(0, 2, 1, 3).reshape(D, D)


def write(path, state):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(256)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(F)
    writer.add_head_count(H)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_sliding_window(WINDOW)
    writer.add_tokenizer_model("llama")
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    writer.add_token_list(["<unk>", "<s>", "</s>", *bytes_, *(f"word{i}" for i in range(V - 259))])
    writer.add_token_scores([0.0] * V)
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (V - 259))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, tensor in state.items():
        values = tensor.numpy()
        if ".q_proj" in name or ".k_proj" in name:
            values = pairs_of_rows(values)
        new_name = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(new_name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


print(*(f"{name} {version(name)}" for name in ("torch", "transformers", "llama-cpp-python", "gguf")), sep=", ")
tokens = [(i * 37) % V for i in range(40)]
with torch.no_grad():
    windowed, full = (mistral(w)(torch.tensor([tokens])).logits[0].numpy() for w in (WINDOW, None))
write("mistral.gguf", mistral(WINDOW).state_dict())
model = llama_cpp.Llama(
    "mistral.gguf", n_ctx=256, logits_all=True, verbose=False, n_threads=1, type_k=0, type_v=0
)  # keys and values cached as float32
model.eval(tokens)
seen = np.array(model.scores[:40])
print(f"transformers, with the window of {WINDOW} against without: {np.abs(windowed - full).max():.3f}")
print(f"llama.cpp against transformers with the window: {np.abs(seen - windowed).max():.3f}")
print(f"llama.cpp against transformers without a window: {np.abs(seen - full).max():.5f}")
expect(np.abs(windowed - full).max() > 0.1, "transformers no longer computes the window")
expect(np.abs(seen - full).max() < 1e-2, "llama.cpp no longer computes the model without a window")
print("seen: llama.cpp ignores the sliding window of the architecture llama")
PY
