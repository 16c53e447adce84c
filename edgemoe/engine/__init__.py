"""Runs a model: opening it within a memory budget, the steps of a token, and where its time goes."""
