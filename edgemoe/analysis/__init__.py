"""Measures what routed experts do on a text, layer by layer, and makes stores that have fewer of them."""
