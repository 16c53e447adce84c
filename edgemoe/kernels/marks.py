"""The words in which the fields of an operation are marked: kind, symbolic shape and role.

`definition.py` reads the marks of an operation, and says what a symbolic shape is.
"""

from typing import Literal, NamedTuple


class Role(NamedTuple):
    """How an operation uses a buffer, and which other buffer may not share its memory."""

    reads: bool = True
    writes: bool = False
    adds: bool = False
    """Whether the result is added to what the buffer holds."""
    adds_if: str = ""
    """Name of the operation's flag with which it is."""
    apart_from: str = ""
    """Name of an input that the operation still reads after it began to write this output."""
    may_replace: bool = False
    """Whether the output may be that very input, in place."""


INPUT = Role()
IN_PLACE = Role(writes=True)
"""Read, then overwritten with the result."""
ADDED = Role(writes=True, adds=True)
"""The result is added to it."""


def output(apart_from: str = "", may_replace: bool = False, adds_if: str = "") -> Role:
    """Return the role of a result, which the operation writes (see `Role`)."""
    return Role(reads=False, writes=True, adds_if=adds_if, apart_from=apart_from, may_replace=may_replace)


OUTPUT = output()

Kind = Literal[
    "buffer",
    "matrix",
    "cache",
    "float",
    "integer",
    "flag",
    "choice",
    "format",
    "pager",
    "row_pager",
    "struct",
    "structs",
]


SHAPED = ("buffer", "matrix", "cache")
"""The kinds of fields that have a shape."""


class Mark(NamedTuple):
    """The kind and shape of a field, where its type does not say them."""

    kind: Kind
    shape: tuple[str, ...] = ()
    """Symbolic extents; without `T` if `per_row`."""
    per_row: bool = False
    is_weight: bool = False
    aligned: bool = False
    """Whether a buffer begins at a multiple of 64 bytes, as matrices do; such a buffer may be empty."""
    letter: str = ""
    """The letter that an integer is, if not its own name."""
    wide: bool = False
    """Whether an integer has 64 bits."""
    most: int = 0
    """The largest number of structs in a tuple; the least is 1."""
    choices: tuple[str, ...] = ()
    """The words that a choice is one of: in C their numbers, in this order."""


def rows(*shape: str) -> Mark:
    """Mark a buffer `(T, *shape)` with a row for each token."""
    return Mark("buffer", shape, per_row=True)


def buffer(*shape: str, aligned: bool = False) -> Mark:
    """Mark a buffer that every row shares."""
    return Mark("buffer", shape, aligned=aligned)


def weight(*shape: str) -> Mark:
    """Mark a vector of the model's weights."""
    return Mark("buffer", shape, is_weight=True)


def matrix(row_count: str, columns: str) -> Mark:
    """Mark a matrix of the model's weights, in a format of its own."""
    return Mark("matrix", (row_count, columns), is_weight=True)


def cache(*shape: str) -> Mark:
    """Mark keys or values of a KV cache, in a format of their own."""
    return Mark("cache", shape)


def size(letter: str) -> Mark:
    """Mark an integer that gives the value of a letter."""
    return Mark("integer", letter=letter)


def up_to(most: int) -> Mark:
    """Mark a tuple of 1 to `most` structs; letters that only such a struct has are its own."""
    return Mark("structs", most=most)


OFFSET = Mark("integer", wide=True)
"""An integer of 64 bits: a number of bytes."""

NUMBER = Mark("integer", wide=True)
"""An integer that is not the extent of a shape."""

PAGER = Mark("pager")
"""The pager that the operation asks for records of experts."""

ROW_PAGER = Mark("row_pager")
"""The pager that the operation asks for pages of small rows."""
