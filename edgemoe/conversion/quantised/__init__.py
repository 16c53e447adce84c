"""Quantised checkpoints of safetensors files: several tensors are shown as one of blocks, whose bits they keep."""
