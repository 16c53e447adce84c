"""The C library and its binding; `backend.py` and `reader.py` are what others use."""
