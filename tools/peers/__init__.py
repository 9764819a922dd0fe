"""The golden suite, asked of other engines as their packages are: docs/peers.md."""
