#!/usr/bin/env bash
# One would guess that transformers and llama.cpp compute the same from a llama checkpoint that
# holds biases.
# transformers drops the biases as unexpected where attention_bias and mlp_bias are false or
# absent in config.json; llama.cpp adds each bias that its file has, and has no key for it.
# It matters for checkpoints whose config.json lacks the two entries: one set of tensors is two
# models.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 llama-cpp-python==0.3.36 gguf==0.19.0 numpy==2.4.6
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import json
import pathlib
import sys
from importlib.metadata import version

import gguf
import llama_cpp
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM


def expect(condition, changed):
    """End with status 1 where the behaviour is no longer the one described above."""
    if not condition:
        sys.exit(f"CHANGED: {changed}")


def change(**entries):
    """Replace entries of the config.json in the folder."""
    path = pathlib.Path("folder/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


V, D, F, H = 300, 32, 64, 4


def pairs_of_rows(array):
    """Order the rows of q and k as llama.cpp rotates them: neighbours, not halves."""
    rows = array.reshape(H, 2, D // H // 2, -1).transpose(0, 2, 1, 3)
    return rows.reshape(array.shape)


def write(path, state):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(256)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(F)
    writer.add_head_count(H)
    writer.add_layer_norm_rms_eps(1e-5)
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
        new_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(new_name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


print(*(f"{name} {version(name)}" for name in ("torch", "transformers", "llama-cpp-python", "gguf")), sep=", ")
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=V, hidden_size=D, intermediate_size=F, num_hidden_layers=2, num_attention_heads=H,
    max_position_embeddings=256, initializer_range=0.3, rms_norm_eps=1e-5, attention_bias=True,
    mlp_bias=True,
)
model = LlamaForCausalLM(config).eval()
tokens = [(i * 37) % V for i in range(40)]
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            parameter.normal_()
    with_biases = model(torch.tensor([tokens])).logits[0].numpy()
    model.save_pretrained("folder")
    change(attention_bias=False, mlp_bias=False)
    loaded = LlamaForCausalLM.from_pretrained("folder").eval()
    by_transformers = loaded(torch.tensor([tokens])).logits[0].numpy()
write("llama.gguf", model.state_dict())
cpp = llama_cpp.Llama(
    "llama.gguf", n_ctx=256, logits_all=True, verbose=False, n_threads=1, type_k=0, type_v=0
)  # keys and values cached as float32
cpp.eval(tokens)
by_llama_cpp = np.array(cpp.scores[:40])
print("largest difference of a logit to the model with its biases:")
print(f"transformers {np.abs(by_transformers - with_biases).max():.3f}")
print(f"llama.cpp {np.abs(by_llama_cpp - with_biases).max():.6f}")
expect(np.abs(by_transformers - with_biases).max() > 0.1, "transformers adds the biases now")
expect(np.abs(by_llama_cpp - with_biases).max() < 1e-2, "llama.cpp no longer adds the biases")
print("seen: the same tensors are a model with biases in llama.cpp and without in transformers")
PY
