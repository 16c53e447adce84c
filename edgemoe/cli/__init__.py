"""The command line: one file per verb; `render.py` alone draws with rich."""
