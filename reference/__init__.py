"""What is right: the numerics of sparse ternary layers in plain torch, slow and believable. Imports nothing of ours."""
