"""Answers of a model taken apart: what it says, what it says to itself, and the tools that it calls."""
