"""The operations of a model: their definitions, and the backends that run them."""
