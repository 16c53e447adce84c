"""Token ids as callers give them, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Union

import numpy as np
import numpy.typing as npt

from edgemoe.errors import UsageError

TokenIds = Union[Sequence[int], npt.NDArray[np.integer]]


def check_ids(token_ids: TokenIds, vocab_size: int) -> npt.NDArray[np.int64]:
    """The ids as integers. Raises UsageError for an empty list, another kind of data, or ids outside the vocabulary."""
    # Every decoded token comes here as a list. NumPy's checks would take a hundredth of its time, since their code has
    # left the processor's caches by then.
    are_ints = type(token_ids) is list and set(map(type, token_ids)) == {int}
    if are_ints and min(token_ids) >= 0 and max(token_ids) < vocab_size:
        return np.array(token_ids, np.int64)
    try:
        ids = np.asarray(token_ids)
    except ValueError:  # lists of unequal lengths
        raise UsageError(
            "Token ids: expected a list of integers, found nested lists.", "Give one sequence's ids."
        ) from None
    if ids.size == 0:
        raise UsageError("The model was given no tokens.", "Give at least one token id, as a list of integers.")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        found = f"{ids.dtype} of shape {ids.shape}"
        raise UsageError(f"Token ids: expected a list of integers, found {found}.", "Give one sequence's ids.")
    if ids.min() < 0 or ids.max() >= vocab_size:
        wrong = ids[(ids < 0) | (ids >= vocab_size)][0]
        raise UsageError(
            f"Token id {wrong} is outside the vocabulary of {vocab_size}.",
            "Use the tokenizer that belongs to the model.",
        )
    return ids.astype(np.int64)
