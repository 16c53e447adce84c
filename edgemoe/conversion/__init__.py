"""Checkpoints to stores: sources (folder, hub id, GGUF) and the streaming, resumable pipeline."""
