"""Conversion by the inputs that a text gives to weights: their importance, and the feedback of errors."""
