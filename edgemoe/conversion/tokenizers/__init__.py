"""Makes a tokenizer.json from what a checkpoint has in its place."""
