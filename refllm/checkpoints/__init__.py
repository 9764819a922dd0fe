"""Checkpoints: a model's files as tensors, hyperparameters, chat templates and pooling.

`open.py` opens a GGUF file (`gguf.py`) or a folder (`safetensors.py`) as `Weights` under GGUF's
names (`names.py`), with rows in one order (`rope_layout.py`); start there. `config.py` reads the
hyperparameters by the rows of `hyperparameters.py`, `sentence_config.py` what makes a text's
vector, `chat_template.py` the chat's prompt, rendered in a process of its own. `gguf_writer.py`
writes a file. May import networks (`refllm.llama`, `refllm.bert`), `refllm.quant` and
`refllm.files`, and no model loader.
"""
