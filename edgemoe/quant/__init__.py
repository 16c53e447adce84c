"""Quantisers: from float32 weights to the blocks that the kernels take."""
