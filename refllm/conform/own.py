"""`refllm.conform.own:Refllm`, the earlier name of `refllm.conform.targets.itself:Refllm`."""

from refllm.conform.targets.itself import Refllm

__all__ = ["Refllm"]
