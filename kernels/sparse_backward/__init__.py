"""The backward pass of a sparse ternary layer: input gradient, weight gradient, whole training step."""
