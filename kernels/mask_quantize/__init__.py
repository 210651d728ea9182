"""Preparation: mask, ternary quantization and packing of a weight; int8 quantization of activations."""
