"""Recorded routing: traces, recording, forcing and replaying them, and figures of them."""
