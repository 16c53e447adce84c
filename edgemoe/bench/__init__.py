"""Measurements: speed against the memory's read rate and interleaved with other engines, and where the time goes."""
