"""The operations of a model: what each means, and the backends that do them."""
