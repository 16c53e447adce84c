"""Quantisers: convert float32 weights to the blocks that the kernels read."""
