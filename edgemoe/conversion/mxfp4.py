"""MXFP4 tensors of safetensors checkpoints: a tensor of codes and one of scales are joined, and read as blocks of m4.

Two programs write such pairs, both with two e2m1 codes in a byte, the low nibble first, and a byte of e8m0 for each 32:

    openai's gpt-oss      X_blocks         (..., rows, columns / 32, 16)   X_scales         (..., rows, columns / 32)
    compressed-tensors    X.weight_packed  (..., rows, columns / 2)        X.weight_scale   (..., rows, columns / 32)

A source shows each pair as one tensor `(..., rows, columns)` of the dtype MXFP4: `X_blocks`, or `X.weight`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgemoe.conversion.source import TensorInfo
from edgemoe.errors import SourceError
from edgemoe.kernels.blocks import Blocks
from edgemoe.kernels.formats import FORMATS, GROUP_COLUMNS

Bytes = npt.NDArray[np.uint8]

_SCALE_DTYPES = ("U8", "F8_E8M0")
_BLOCK_BYTES = GROUP_COLUMNS // 2
_DAMAGED = "Was the checkpoint cut short or altered? Download it again."


@dataclass(frozen=True)
class Pair:
    """The names of two tensors of bytes that are one MXFP4 tensor."""

    codes: str
    scales: str


@dataclass(frozen=True)
class Joined:
    """The tensors of a checkpoint with MXFP4 pairs joined."""

    tensors: Mapping[str, TensorInfo]
    """A pair's shard is the last of the two that hold it."""
    pairs: Mapping[str, Pair]
    """The pair behind each MXFP4 tensor."""
    needed: Mapping[str, frozenset[str]]
    """Shards that were listed earlier and that tensors of this shard need too, by the name of the shard."""

    def may_go(self, released: Iterable[str]) -> Iterator[str]:
        """Yield the released shards that no pair of an unreleased shard needs."""
        gone = set(released)
        held = {earlier for shard, needed in self.needed.items() if shard not in gone for earlier in needed}
        yield from sorted(gone - held)


def joined_name(codes: str) -> str:
    """The name that the tensor of a pair has, by the name of its codes."""
    stem = codes.removesuffix(".weight_packed")
    return codes if stem == codes else f"{stem}.weight"


def pairs_among(names: Iterable[str]) -> Iterator[Pair]:
    """Yield what the names of tensors suggest as pairs, in order; the scales need not be among the names."""
    for name in names:
        if name.endswith("_blocks"):
            yield Pair(name, name.removesuffix("_blocks") + "_scales")
        elif name.endswith(".weight_packed"):
            yield Pair(name, name.removesuffix("_packed") + "_scale")


def join_names(names: Iterable[str]) -> dict[str, bool]:
    """Join pairs by their names alone: the names of the tensors, and whether each is MXFP4.

    Raises SourceError for codes of gpt-oss without scales.
    """
    found = dict.fromkeys(names, False)
    for pair in list(pairs_among(found)):
        if pair.scales in found:
            del found[pair.scales], found[pair.codes]
            found[joined_name(pair.codes)] = True
        elif pair.codes.endswith("_blocks"):
            raise _without_scales(pair)
    return found


def join_pairs(tensors: Mapping[str, TensorInfo], shards: Sequence[str]) -> Joined:
    """Join the MXFP4 pairs among the tensors of a checkpoint, whose order is kept.

    What only has the names of a pair, such as codes of other formats, is left as it is. Raises SourceError for a pair
    whose shapes contradict each other, and for one of gpt-oss without scales or of another dtype.
    """
    pairs: dict[str, Pair] = {}
    infos: dict[str, TensorInfo] = {}
    needed: dict[str, set[str]] = {}
    for pair in pairs_among(tensors):
        codes, scales = tensors[pair.codes], tensors.get(pair.scales)
        if pair.codes.endswith("_blocks"):
            _check_half(pair, codes, scales)
        if codes.dtype != "U8" or scales is None or scales.dtype not in _SCALE_DTYPES:
            continue
        if joined_name(pair.codes) != pair.codes and joined_name(pair.codes) in tensors:
            raise SourceError(f"{pair.codes}: expected this or {joined_name(pair.codes)}, found both.", _DAMAGED)
        earlier, last = sorted((codes.shard, scales.shard), key=shards.index)
        infos[pair.codes] = TensorInfo(_shape(pair, codes.shape, scales.shape), "MXFP4", last)
        pairs[joined_name(pair.codes)] = pair
        if earlier != last:
            needed.setdefault(last, set()).add(earlier)
    hidden = {pair.scales for pair in pairs.values()}
    together = {
        joined_name(name) if name in infos else name: infos.get(name, info)
        for name, info in tensors.items()
        if name not in hidden
    }
    return Joined(together, pairs, {shard: frozenset(others) for shard, others in needed.items()})


def _check_half(pair: Pair, codes: TensorInfo, scales: TensorInfo | None) -> None:
    """Raise SourceError where codes of gpt-oss have no scales, or one of the two is not of bytes."""
    if scales is None:
        if codes.dtype == "U8":
            raise _without_scales(pair)
        return
    for name, dtype, expected in ((pair.codes, codes.dtype, ("U8",)), (pair.scales, scales.dtype, _SCALE_DTYPES)):
        if dtype not in expected:
            raise SourceError(f"{name}: expected bytes of MXFP4 ({' or '.join(expected)}), found {dtype}.", _DAMAGED)


def _without_scales(pair: Pair) -> SourceError:
    return SourceError(f"{pair.scales}: missing; {pair.codes} has codes of MXFP4, which need their scales.", _DAMAGED)


def _shape(pair: Pair, codes: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, ...]:
    """The shape `(..., rows, columns)` of a pair. Raises SourceError where its two shapes do not fit each other."""
    if len(scales) >= 2 and min(scales) > 0:
        last = (scales[-1], _BLOCK_BYTES) if pair.codes.endswith("_blocks") else (scales[-1] * _BLOCK_BYTES,)
        if codes == (*scales[:-1], *last):
            return (*scales[:-1], scales[-1] * GROUP_COLUMNS)
    raise SourceError(
        f"{pair.codes}: expected {_BLOCK_BYTES} bytes of codes for each scale of {pair.scales}, found the shapes"
        f" {codes} and {scales}.",
        _DAMAGED,
    )


def read_pair(
    pair: Pair,
    shape: tuple[int, ...],
    index: int | None,
    row_start: int,
    row_stop: int,
    read: Callable[[str, int, int], Bytes],
) -> Blocks:
    """Rows of an MXFP4 tensor of this shape, or of its matrix `index`, as blocks of m4; no bit is changed.

    `read` reads a number of bytes from a place on, counted from the beginning of the tensor of that name.
    """
    rows, groups = shape[-2], shape[-1] // GROUP_COLUMNS
    first, count = ((index or 0) * rows + row_start) * groups, (row_stop - row_start) * groups
    codes = read(pair.codes, first * _BLOCK_BYTES, count * _BLOCK_BYTES)
    values = np.stack([codes & 15, codes >> 4], axis=1).reshape(row_stop - row_start, -1)
    return Blocks(FORMATS["m4"], values, read(pair.scales, first, count).reshape(row_stop - row_start, -1))
