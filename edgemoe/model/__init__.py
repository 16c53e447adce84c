"""ModelSpec, the decoder that interprets it, and the engine that runs it within a memory budget."""
