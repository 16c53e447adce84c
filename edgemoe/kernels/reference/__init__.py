"""The meaning of each operation in NumPy; every other backend is tested against it.

Letters as in `operations.py`. Every function returns new float32 arrays. Between its inputs and its
result each works in float64, so the result counts as the exact value, and a backend's distance from it
is that backend's own rounding. Rounding that *is* part of the definition is done here too: activations
multiplied by quantised weights become int8 in groups of 32, and hidden values of an FFN become float32.

Beside the functions of an operation stands the step that applies them to its buffers, which `@means` registers. Steps
call the functions through `kernels`: another backend has functions of the same names, or runs these.

Inputs are finite. Each token is computed alone, so a run cut in two gives the same bits.
"""
