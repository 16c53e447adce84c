"""The portable kernels, compiled by Numba when they are first called; `backend.py` gathers them."""
