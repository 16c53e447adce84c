"""Operations before there is any memory: each array of an operation becomes a placeholder of its shape and type."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np

from edgemoe.kernels import operations as op
from edgemoe.kernels.formats import Format, Matrix


def planned(value: Any) -> Any:
    """The same operation, or part of one, without memory."""
    if isinstance(value, np.ndarray):
        return op.Placeholder(value.shape, value.dtype)
    if isinstance(value, Matrix):
        return Matrix.planned(value.format, value.rows, value.columns)
    if isinstance(value, tuple):
        return tuple(planned(member) for member in value)
    if is_dataclass(value) and not isinstance(value, (type, Format)):
        known = ("layout_of",)  # as the formats of matrices, it is no part of the memory that is planned
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        return replace(value, **{name: part if name in known else planned(part) for name, part in parts.items()})
    return value
