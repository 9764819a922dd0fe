#!/usr/bin/env bash
# One would guess that repeat_penalty of llama-cpp-python looks at the last 64 tokens, the prompt's
# among them, as llama.cpp's own server does and as it was before the samplers moved into llama.cpp.
# It looks at generated tokens only: the sampler is made new for each text, and the prompt is not
# shown to it. The first token of a text is never penalized.
# It matters to users who compare texts of the server of llama.cpp and of llama-cpp-python with the
# same parameters, and where a model shall not repeat its prompt.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet llama-cpp-python==0.3.36 gguf==0.19.0 numpy==2.4.6
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import sys
from importlib.metadata import version

import gguf
import llama_cpp
import numpy as np


def expect(condition, changed):
    """End with status 1 where the behaviour is no longer the one described above."""
    if not condition:
        sys.exit(f"CHANGED: {changed}")


V, D, F = 300, 32, 64  # vocabulary, model width, feed-forward width


def tiny_llama(path):
    """Write a random llama of one layer."""
    writer, random = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    writer.add_block_count(1)
    writer.add_context_length(256)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(F)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = ["<unk>", "<s>", "</s>", *bytes_]
    vocabulary += [f"word{i}" for i in range(V - len(vocabulary))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(vocabulary)
    writer.add_token_scores([0.0] * V)
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (V - 259))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {"token_embd": (V, D), "output": (V, D), "blk.0.ffn_gate": (F, D),
              "blk.0.ffn_up": (F, D), "blk.0.ffn_down": (D, F)}
    shapes |= {f"blk.0.attn_{name}": (D, D) for name in ("q", "k", "v", "output")}
    for name, shape in shapes.items():
        values = 2 * random.standard_normal(shape) / shape[1] ** 0.5
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(D, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


print(*(f"{name} {version(name)}" for name in ("llama-cpp-python", "gguf")), sep=", ")
model = llama_cpp.Llama(tiny_llama("llama.gguf"), n_ctx=64, n_threads=1, logits_all=True, verbose=False)
prompt = [1, *range(3, 40)]
for _ in range(20):  # until the most likely next token is in the prompt
    model.reset()
    model.eval(prompt)
    logits = model.scores[len(prompt) - 1].copy()
    likely = int(np.argmax(logits))
    if likely in prompt:
        break
    prompt.insert(1, likely)
expect(likely in prompt, "no prompt with its own continuation was found")
penalized = logits.copy()
seen = sorted(set(prompt[-64:]))
penalized[seen] = np.where(logits[seen] > 0, logits[seen] / 100, logits[seen] * 100)
wanted = int(np.argmax(penalized))
model.reset()
given = next(model.generate(prompt, temp=0.0, repeat_penalty=100.0))
print(f"the most likely token, {likely}, is in the prompt of {len(prompt)} tokens")
print(f"repeat_penalty 100: the next token is {given}; with the prompt's tokens penalized {wanted}")
expect(wanted != likely, "the penalty would not change this token")
expect(given == likely, "the prompt is penalized")
print("seen: the prompt's tokens are not penalized")
PY
