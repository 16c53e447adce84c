"""Keeps experts in RAM: the cache, its policy, prediction, and the reads that fill it."""
