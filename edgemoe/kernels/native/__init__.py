"""The C library and its binding; other packages import `backend.py` and `reader.py`."""
