"""Text to ids and back: tokenizer, chat template, sampling, generation and conversations."""
