"""ggml."""
