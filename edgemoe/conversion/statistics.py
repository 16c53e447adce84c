"""Statistics of a store's tensors, class by class: what the manifest says about formats, sizes and errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from edgemoe.conversion.plan import Piece


def statistics_of(pieces: Iterable[Piece], errors: Mapping[int, tuple[float, float]] | None) -> dict[str, Any]:
    """Statistics of each class of tensors: formats, parameters, bytes, bits per weight, relative error.

    Where the checkpoint has some in blocks: how many (`quantised`), and how many of these stand for the same numbers in
    the store (`exact`); in f32 that is the nearest float32.

    `errors` has, for the number of each piece, the sums of squared errors and of squared weights; None: no relative
    error is known.
    """
    classes: dict[str, list[Piece]] = {}
    for piece in pieces:
        if not piece.repeats:
            classes.setdefault(piece.kind, []).append(piece)
    return {kind: _of_class(members, errors) for kind, members in sorted(classes.items())}


def exactness(statistics: Mapping[str, Mapping[str, Any]]) -> str:
    """One sentence on how many quantised tensors of a checkpoint a store has exactly; empty if there were none."""
    total, exact = (sum(part.get(key, 0) for part in statistics.values()) for key in ("quantised", "exact"))
    if not total:
        return ""
    number = "all" if exact == total else f"{exact:,}"
    return f"Of {total:,} quantised tensors {number} stand for the same numbers as before."


def _of_class(pieces: list[Piece], errors: Mapping[int, tuple[float, float]] | None) -> dict[str, Any]:
    parameters = sum(piece.place.rows * piece.place.columns for piece in pieces)
    stored_bytes = sum(piece.place.stored_bytes for piece in pieces)
    found = {
        "formats": sorted({piece.place.format.name if piece.place.format else "f32" for piece in pieces}),
        "parameters": parameters,
        "bytes": stored_bytes,
        "bits_per_weight": round(8 * stored_bytes / parameters, 4),
    }
    if errors is None:
        return found
    sums = [errors[piece.number] for piece in pieces]
    of_blocks = [errors[piece.number][0] for piece in pieces if piece.quantised]
    if of_blocks:
        found |= {"quantised": len(of_blocks), "exact": of_blocks.count(0.0)}
    error, weight = math.fsum(e for e, _ in sums), math.fsum(w for _, w in sums)
    return {**found, "relative_error": float(f"{math.sqrt(error / weight) if weight else 0.0:.4g}")}
