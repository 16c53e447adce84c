"""Keeps experts in RAM: the cache, its policy, prefetch, and the reads that fill it."""
