"""kernels/int8."""
