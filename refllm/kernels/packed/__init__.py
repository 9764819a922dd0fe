"""kernels/packed."""
