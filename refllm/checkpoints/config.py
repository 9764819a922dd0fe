"""Hyperparameters: GGUF metadata or config.json → `LlamaConfig`, `BertConfig`."""

from __future__ import annotations

from refllm.checkpoints.config_bert import bert_config
from refllm.checkpoints.config_llama import llama_config

__all__ = ["bert_config", "llama_config"]
