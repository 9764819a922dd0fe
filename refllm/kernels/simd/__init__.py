"""kernels/simd."""
