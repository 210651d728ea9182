"""The ternary GEMM: int8 activations times packed ternary weights, with a scaling epilogue."""
