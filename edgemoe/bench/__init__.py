"""Measurements: speed against the memory's read rate and against other engines, in turn, and where the time goes."""
