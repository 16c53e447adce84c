"""Reads the importance of columns that llama.cpp's imatrix program measured: its GGUF form, and the older .dat form.

GGUF: for a tensor NAME, `NAME.in_sum2` `(matrices, columns)` has sums of squared inputs and `NAME.counts`
`(matrices, 1)` how many there were. The older form: the number of entries; for each the length of its name, the name,
the number of calls, the number of values, and these in float32, of all experts one after another. All numbers are
32-bit, little-endian.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgemoe.conversion.formats import expert_of
from edgemoe.conversion.gguf.file import GgufTensor, read_gguf
from edgemoe.conversion.gguf.package import GGUF_MAGIC
from edgemoe.conversion.plan import Piece
from edgemoe.errors import SourceError, UsageError

Floats = npt.NDArray[np.float32]

MOST_BYTES = 1 << 30
_MOST_NAME_BYTES = 256

_ATTENTION = {"query": "attn_q", "key": "attn_k", "value": "attn_v", "output": "attn_output"}
_FUSED = dict.fromkeys(("query", "key", "value"), "attn_qkv")
_LAYER = re.compile(r"layers\.(\d+)\.(?:(ffn|shared|experts\.\d+)\.)?(\w+)")
_ENDS = {"ffn": "", "shared": "_shexp", "experts": "_exps"}
_WAY_OUT = "Give the file that was made for this model, or convert with a text in its place."


@dataclass(frozen=True)
class ImportanceFile:
    """The importance of columns by tensors' names in GGUF files: for each matrix of a tensor, `(matrices, columns)`."""

    path: Path
    values: Mapping[str, Floats]
    digest: str

    @classmethod
    def read(cls, path: Path) -> ImportanceFile:
        """Read a file of either form. Raises SourceError where it is damaged, or something else."""
        try:
            size = path.stat().st_size
            data = path.read_bytes() if size <= MOST_BYTES else b""
        except OSError as problem:
            raise SourceError(
                f"{path}: cannot be read ({problem.strerror or problem}).", "Check its name."
            ) from problem
        if size > MOST_BYTES:
            raise SourceError(f"{path}: over {MOST_BYTES} bytes, which no such file is.", _WAY_OUT)
        is_gguf = data[:4] == struct.pack("<I", GGUF_MAGIC)
        values = _read_gguf(path, data) if is_gguf else _read_plain(path, data)
        for name, own in values.items():
            if not (np.isfinite(own).all() and (own >= 0).all()):
                raise SourceError(f"{path}: {name}: expected finite numbers of at least 0, found others.", _WAY_OUT)
        return cls(path, values, hashlib.sha256(data).hexdigest()[:16])

    def described(self) -> str:
        """Return what a store says that it was calibrated with."""
        return f"importance of {self.path.name} ({self.digest})"

    def of_pieces(self, pieces: Iterable[Piece]) -> dict[int, Floats]:
        """The importance of the columns of matrices in formats with a trellis, by the numbers of their pieces.

        A matrix that the file lacks has none. Raises UsageError where it is of another model.
        """
        found: dict[int, Floats] = {}
        wanted = [
            piece for piece in pieces if piece.place.format is not None and piece.place.format.trellis is not None
        ]
        experts: dict[tuple[int, str], int] = {}
        for piece in wanted:
            if which := expert_of(piece.name):
                experts[which[0], which[2]] = max(experts.get((which[0], which[2]), 0), which[1] + 1)
        for piece in wanted:
            name = next((name for name in gguf_names(piece.name) if name in self.values), None)
            if name is None:
                continue
            which, own = expert_of(piece.name), self.values[name]
            matrices = experts[which[0], which[2]] if which else 1
            if own.size == matrices * piece.place.columns:
                own = own.reshape(matrices, -1)  # the older form has all of a tensor in one row
            if own.shape != (matrices, piece.place.columns):
                raise UsageError(
                    f"`importance`: {self.path} is of another model: expected {matrices} x {piece.place.columns}"
                    f" numbers for {name}, found {own.shape[0]} x {own.shape[1]}.",
                    _WAY_OUT,
                )
            found[piece.number] = own[which[1] if which else 0]
        if wanted and not found:
            raise UsageError(
                f"`importance`: {self.path} is of another model: it has none of this one's matrices, such as"
                f" {gguf_names(wanted[0].name)[0]}.",
                _WAY_OUT,
            )
        if not wanted:
            raise UsageError(
                "`importance`: expected weights in a format with a trellis, which alone take it; found none.",
                "Name one, such as `experts=n3`.",
            )
        return found


def gguf_names(name: str) -> list[str]:
    """The names that GGUF files have for a matrix of the model, alone or with those that share its input."""
    match = _LAYER.fullmatch(name)
    if match is None:
        return [name]
    layer, where, last = match.groups()
    if where is None:
        names = [_ATTENTION.get(last, last), *([_FUSED[last]] if last in _FUSED else [])]
        return [f"blk.{layer}.{own}.weight" for own in names]
    # Gate and up have one input, so either says what the other's columns are worth.
    parts = (last, "gate_up", "up", "gate") if last in ("gate", "up") else (last,)
    return [f"blk.{layer}.ffn_{part}{_ENDS[where.split('.')[0]]}.weight" for part in dict.fromkeys(parts)]


def _read_gguf(path: Path, data: bytes) -> dict[str, Floats]:
    file = read_gguf(path)
    kind = file.metadata.get("general.type")
    if kind != "imatrix":
        raise SourceError(f"{path}: expected a GGUF file of type imatrix, found {kind or 'a model'}.", _WAY_OUT)

    def numbers(tensor: GgufTensor) -> Floats:
        count = int(np.prod(tensor.shape))
        if tensor.type_name != "F32" or tensor.offset + 4 * count > len(data):
            raise SourceError(f"{path}: {tensor.name}: expected {count} numbers in F32, found others.", _WAY_OUT)
        return np.frombuffer(data, "<f4", count, tensor.offset).reshape(-1, tensor.shape[-1])

    found = {}
    for name, tensor in file.tensors.items():
        if name.endswith(".in_sum2"):
            counts = file.tensors.get(f"{name.removesuffix('.in_sum2')}.counts")
            sums = numbers(tensor)
            divisors = np.ones((len(sums), 1), np.float32) if counts is None else numbers(counts).reshape(-1, 1)
            if len(divisors) != len(sums):
                raise SourceError(f"{path}: {name}: expected {len(sums)} counts, found {len(divisors)}.", _WAY_OUT)
            found[name.removesuffix(".in_sum2")] = (sums / np.maximum(divisors, 1)).astype(np.float32)
    return found


def _read_plain(path: Path, data: bytes) -> dict[str, Floats]:
    """The older form, which does not say how many matrices a tensor has: all are in one row."""
    place = 0

    def take(size: int) -> bytes:
        nonlocal place
        if size < 0 or place + size > len(data):
            raise SourceError(f"{path}: expected the importance of columns (imatrix), found other data.", _WAY_OUT)
        place += size
        return data[place - size : place]

    found = {}
    for _ in range(struct.unpack("<i", take(4))[0]):
        (length,) = struct.unpack("<i", take(4))
        name = take(length if length <= _MOST_NAME_BYTES else -1).decode("utf-8", "replace")
        _, count = struct.unpack("<ii", take(8))
        found[name] = np.frombuffer(take(4 * count), "<f4").reshape(1, -1)
    if not found:
        raise SourceError(f"{path}: expected the importance of columns (imatrix), found none.", _WAY_OUT)
    return found
