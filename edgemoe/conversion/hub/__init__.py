"""Models of the Hugging Face hub: what a person types, downloads, and the cache that all programs share."""
