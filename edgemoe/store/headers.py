"""Headers of safetensors files: read with every bound checked, written padded to a page.

A file is: header length (u64, little endian) | header (JSON, may end in spaces) | tensors without gaps. Edgemoe
pads its headers so that the tensors begin at a multiple of 4096 bytes, as direct I/O needs.

Why not the safetensors library, which traces use (`lab/trace_blocks.py`): it does not say at which byte of a file a
tensor begins, which direct reads, conversion row by row, and errors about damage need; it refuses a whole file for one
tensor of a type that it does not know; and it pads headers to 8 bytes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from edgemoe.errors import EdgemoeError
from edgemoe.kernels.pages import PAGE_BYTES, round_up

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors format itself."""

ELEMENT_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip


@dataclass(frozen=True)
class HeaderTensor:
    """One tensor of a safetensors file; `offset` counts from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int


def parse_json(text: bytes | str) -> Any:
    """Parse JSON from an untrusted file. Raises ValueError, and no other error, for invalid JSON."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def build_header(tensors: Iterable[tuple[str, str, tuple[int, ...], int]]) -> bytes:
    """Build the header, length included, of tensors given as (name, dtype, shape, bytes) in the order of the file.

    The result is a multiple of 4096 bytes long.
    """
    entries = {}
    position = 0
    for name, dtype, shape, size in tensors:
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    padded = round_up(8 + len(text), PAGE_BYTES) - 8
    return padded.to_bytes(8, "little") + text.ljust(padded)


def read_header(path: Path, error: type[EdgemoeError], hint: str) -> dict[str, HeaderTensor]:
    """The tensors of a safetensors file, in the order of their bytes.

    Raises `error` with `hint` where the file is missing or unreadable, its header is malformed, or its size differs
    from the header's.
    """

    def fail(what: str) -> NoReturn:
        raise error(f"{path.name}: {what}", hint)

    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                fail(f"expected a safetensors header, found {length} bytes of it in a file of {size} bytes.")
            text = file.read(length)
    except OSError as problem:
        fail(f"cannot be read ({problem.strerror or problem}).")
    try:
        entries = parse_json(text)
    except ValueError as problem:
        fail(f"its safetensors header is not JSON ({problem}).")
    if not isinstance(entries, dict):
        fail("its safetensors header is not a table of tensors.")
    entries.pop("__metadata__", None)
    tensors = {}
    for name, entry in entries.items():
        tensor = _parse_tensor(entry, 8 + length)
        if tensor is None:
            fail(f"the header's entry of tensor {name!r} is not of the safetensors format.")
        tensors[name] = tensor
    tensors = dict(sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].bytes)))
    position = 8 + length
    for name, tensor in tensors.items():
        if tensor.offset != position:
            fail(f"tensor {name!r} begins at byte {tensor.offset}, expected {position}.")
        position += tensor.bytes
    if position != size:
        fail(f"expected {position} bytes by its header, found {size}.")
    return tensors


def _parse_tensor(entry: object, data_start: int) -> HeaderTensor | None:
    """Parse and check one header entry; None for a malformed one."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("dtype"), str):
        return None
    dtype: str = entry["dtype"]
    shape, offsets = _counts(entry.get("shape")), _counts(entry.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2:
        return None
    size = offsets[1] - offsets[0]
    # A checkpoint may also hold dtypes unknown to edgemoe: their sizes are not checked.
    if size < 0 or (dtype in ELEMENT_BYTES and size != math.prod(shape) * ELEMENT_BYTES[dtype]):
        return None
    return HeaderTensor(dtype, shape, data_start + offsets[0], size)


def _counts(value: object) -> tuple[int, ...] | None:
    if isinstance(value, list) and all(type(x) is int and 0 <= x < 1 << 62 for x in value):
        return tuple(value)
    return None
