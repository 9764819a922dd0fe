"""refllm: the reference implementation of Spin's Serverless AI interface."""
