"""Exports a store as a GGUF file for llama.cpp: bit-identical weights in llama.cpp's order and under its names.

The package `gguf` writes the header; the weights follow a slice at a time, so memory use does not depend on the size of
any tensor. The file is written as `FILE.partial` and renamed when all of it is on the disk.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from edgemoe.architectures import model_spec
from edgemoe.conversion.gguf.compressed_tensors import ARCHITECTURE as COMPRESSED
from edgemoe.conversion.gguf.expressible import NO_GGUF, check_expressible
from edgemoe.conversion.gguf.families import ARCHITECTURES
from edgemoe.conversion.gguf.file_tensors import FileTensor, file_tensors
from edgemoe.conversion.gguf.gated import in_one_part
from edgemoe.conversion.gguf.gated_tensors import ARCHITECTURE as GATED
from edgemoe.conversion.gguf.kda import KDA
from edgemoe.conversion.gguf.latent import LATENT
from edgemoe.conversion.gguf.lightning import ARCHITECTURE as LIGHTNING
from edgemoe.conversion.gguf.mamba import MAMBA
from edgemoe.conversion.gguf.metadata import frequency_divisors, remarks, write_metadata
from edgemoe.conversion.gguf.names import pairs_order
from edgemoe.conversion.gguf.package import (
    GGML_QUANT_VERSION,
    MODEL_TENSOR,
    TENSOR_NAMES,
    GGMLQuantizationType,
    GGUFWriter,
)
from edgemoe.conversion.gguf.scales import check_one_scale
from edgemoe.conversion.gguf.source import GgufSource
from edgemoe.conversion.gguf.vocabulary import write_no_tokenizer, write_vocabulary
from edgemoe.conversion.gguf.windowed import WINDOWED
from edgemoe.conversion.places import Place
from edgemoe.conversion.source import take_columns, take_rows
from edgemoe.errors import SourceError, StoreError, UsageError
from edgemoe.kernels.blocks import Blocks, unpack
from edgemoe.kernels.file_rows import Rows, encode_rows
from edgemoe.kernels.formats import FORMATS, PANEL_ROWS, panel_count
from edgemoe.kernels.row_types import ROW_TYPES
from edgemoe.model.description import has_planes, store_spec
from edgemoe.model.spec import ModelSpec
from edgemoe.store.reader import Store
from edgemoe.store.side_files import check_side_files
from edgemoe.store.writer import sync_folder

ALIGNMENT_BYTES = 32
"""Alignment of the tensors, counted from the end of the header."""

_READ_BACK = frozenset({*WINDOWED, *MAMBA, *KDA, *LATENT, COMPRESSED, GATED, LIGHTNING})
"""Architectures whose files are read back to find out whether llama.cpp would run the same model."""
_FILE_TYPES = {
    **{"f32": 0, "f16": 1, "q4": 2, "q4m": 3, "q8": 7, "q5": 8, "q5m": 9, "q2k": 10, "q3k": 12, "q4k": 15, "q5k": 17},
    **{"q6k": 18, "iq4nl": 25, "iq4xs": 30, "tq2": 37, "m4": 38, "nv4": 39, "q1": 40, "q2": 41},
    **{"bf16": 32, "iq2xxs": 19, "iq2xs": 20, "iq3xxs": 23, "iq1s": 24, "iq3s": 26, "iq2s": 28, "iq1m": 31},
}
"""llama.cpp's number for a file of mostly one format (`general.file_type`); of mixes, that of the middle one (M)."""
_I32 = 26
"""GGUF's number of the type I32."""


def check_gguf_destination(destination: str | os.PathLike[str], force: bool) -> Path:
    """The path of the file to write. Raises UsageError if something that exists there would be lost."""
    path = Path(os.path.expanduser(os.fspath(destination)))  # noqa: PTH111 (leaves an unknown ~user unchanged)
    if path.suffix.lower() != ".gguf" or "\0" in str(path):
        raise UsageError(f"{str(path)!r}: expected a name that ends in .gguf.", "Name the file, such as ./model.gguf.")
    if path.is_dir() or (path.exists() and not force):
        kind = "a folder" if path.is_dir() else "a file"
        way_out = "Give another name." if path.is_dir() else "Give another name, or replace it with `force`."
        raise UsageError(f"{path}: {kind} of that name exists.", way_out)
    return path


def export_gguf(
    store: Store,
    destination: str | os.PathLike[str],
    *,
    name: str,
    tokenizer: bool = True,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
    notice: Callable[[str], None] | None = None,
) -> Path:
    """Write a store as a GGUF file, with its tokenizer if it has one; returns the file's path.

    `name` is the model's name in the file; without `tokenizer` the exported model takes and gives only ids; `force`
    replaces an existing file; `progress` is called with the bytes done and the total; `notice` receives remarks for the
    user before the weights are written. Raises UsageError, or StoreError if llama.cpp does not support the model or its
    tokenizer, the store cannot be read, or the disk is full.
    """
    path = check_gguf_destination(destination, force)
    spec = store_spec(store)
    check_expressible(spec)
    if has_planes(store):
        raise StoreError(
            "this model cannot be a GGUF: its experts have a base and a residual, whose sum no type of GGUF has.",
            "Convert the checkpoint with one format of `experts`, and export that.",
        )
    if tokenizer:
        check_side_files(store)
    tensors = file_tensors(store, spec)
    divisors = frequency_divisors(spec)
    partial = path.with_name(path.name + ".partial")
    try:
        _check_space(path, sum(tensor.bytes for tensor in tensors.values()))
        try:
            with closing(GGUFWriter(partial, ARCHITECTURES[spec.family])) as writer:
                _write_metadata(writer, store, spec, name, tokenizer)
                _write_header(writer, tensors, divisors)
            _write_divisors(partial, divisors)
            troubles = list(_troubles_on_the_way_back(partial, spec, tensors))
            if troubles and ARCHITECTURES[spec.family] in _READ_BACK:
                raise StoreError(
                    f"this model cannot be a GGUF: llama.cpp's {ARCHITECTURES[spec.family]} has fixed patterns of"
                    " layers, positions or weights, which this model does not follow.",
                    NO_GGUF,
                )
            if notice is not None:
                for text in (*remarks(spec), *troubles):
                    notice(text)
            _write_weights(partial, store, tensors, progress)
            partial.rename(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f"{path}: the disk is full.", "Free some space, then run it again.") from problem
        raise StoreError(
            f"{path}: cannot be written ({problem.strerror or problem}).", "Check the folder, then run it again."
        ) from problem
    return path


def _check_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise StoreError(
            f"{path}: it takes {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free on that disk.",
            "Free some space, or give a name on another disk.",
        )


def _write_metadata(writer: GGUFWriter, store: Store, spec: ModelSpec, name: str, tokenizer: bool) -> None:
    layouts = store.manifest.layouts
    mostly = layouts[0].matrices.up_format.name if layouts else store.dense_format
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[mostly])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    write_metadata(writer, spec)
    if tokenizer and any(file.name == "tokenizer.json" for file in store.manifest.side_files):
        write_vocabulary(writer, store.path, spec.vocab_size)
    else:
        write_no_tokenizer(writer)


def _write_header(writer: GGUFWriter, tensors: dict[str, FileTensor], divisors: npt.NDArray[np.float32] | None) -> None:
    float32 = np.dtype(np.float32)
    if divisors is not None:
        name = TENSOR_NAMES[MODEL_TENSOR.ROPE_FREQS] + ".weight"
        writer.add_tensor_info(name, divisors.shape, float32, divisors.nbytes, GGMLQuantizationType.F32)
    for name, tensor in tensors.items():
        # The dtype only makes the writer count the shape in weights, not in bytes.
        number = _I32 if tensor.type == "I32" else ROW_TYPES[tensor.type].number  # of which the writer may know none
        writer.add_tensor_info(name, tensor.shape, float32, tensor.bytes, cast(GGMLQuantizationType, number))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def _write_divisors(partial: Path, divisors: npt.NDArray[np.float32] | None) -> None:
    """Append the first tensor, the frequency divisors, which are computed rather than copied from the store."""
    if divisors is not None:
        with partial.open("ab") as file:
            file.write(bytes(-file.tell() % ALIGNMENT_BYTES))
            file.write(divisors.tobytes())


def _troubles_on_the_way_back(partial: Path, spec: ModelSpec, tensors: dict[str, FileTensor]) -> Iterator[str]:
    """Yield a sentence for each reason why the file cannot be converted back; called before the weights are written."""
    written = partial.stat().st_size
    room = sum(tensor.bytes + ALIGNMENT_BYTES for tensor in tensors.values())
    try:
        os.truncate(partial, written + room)  # a hole: the reader refuses tensors that lie beyond the end of the file
        back = model_spec(GgufSource(partial).config)
        # Several families may share an architecture, and no file says in how many parts a checkpoint had a table, or
        # what it is that ends the context.
        back = replace(in_one_part(back), family=spec.family, positions_limit=spec.positions_limit)
        if back != in_one_part(spec):
            yield "edgemoe would convert this file to another model: the format cannot hold all of its settings."
    except SourceError as problem:
        reason = problem.message.removeprefix(f"{partial}: ")
        yield f"edgemoe cannot convert this file back ({reason.rstrip('.')}). Keep the store."
    finally:
        os.truncate(partial, written)


def _write_weights(
    partial: Path,
    store: Store,
    tensors: dict[str, FileTensor],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Append the tensors in the order of the header, each at its alignment, and make the file durable."""
    total = sum(tensor.bytes for tensor in tensors.values())
    done = 0
    descriptors: dict[str, int] = {}
    try:
        with partial.open("ab") as file:
            for tensor in tensors.values():
                file.write(bytes(-file.tell() % ALIGNMENT_BYTES))
                for place in tensor.places:
                    if place.file not in descriptors:
                        with _reading(store, place):
                            descriptors[place.file] = os.open(store.path / place.file, os.O_RDONLY)
                for stored in _file_rows(descriptors, store, tensor):
                    rows = -stored if tensor.negative and not isinstance(stored, Blocks) else stored
                    data = _encoded(rows, tensor.type)
                    file.write(data.data)
                    done += data.nbytes
                    if progress is not None:
                        progress(done, total)
            file.write(bytes(-file.tell() % ALIGNMENT_BYTES))
            file.flush()
            os.fsync(file.fileno())
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)


def _encoded(rows: Rows, kind: str) -> npt.NDArray[np.uint8]:
    """Rows in the bytes of a type, which has the same numbers."""
    if isinstance(rows, Blocks):
        return encode_rows(rows)
    if kind == "I32":
        return rows.astype("<i4").reshape(1, -1).view(np.uint8)
    return encode_rows(Blocks(FORMATS["f32"], rows.reshape(1, -1)))


def _file_rows(descriptors: dict[str, int], store: Store, tensor: FileTensor) -> Iterator[Rows]:
    """Yield the rows of a tensor in the order of the file, a slice at a time."""
    if not tensor.places:
        yield np.array([tensor.scales], np.float32)
        return
    if tensor.blocks:
        for number in range(tensor.places[0].rows // tensor.blocks[0]):
            for place, block in zip(tensor.places, tensor.blocks, strict=True):
                yield _read_rows(descriptors[place.file], store, place, number * block, (number + 1) * block)
        return
    multiple, turns = math.lcm(PANEL_ROWS, tensor.head_dim or 1), tensor.turns
    for number, place in enumerate(tensor.places):
        descriptor = descriptors[place.file]
        for start, stop in place.row_slices(multiple):
            if turns is not None and not turns.columns:
                order = turns.places(start, stop)
                for run in np.split(order, np.flatnonzero(np.diff(order) != 1) + 1):
                    yield _read_rows(descriptor, store, place, int(run[0]), int(run[-1]) + 1)
                continue
            rows = _read_rows(descriptor, store, place, start, stop)
            if isinstance(rows, Blocks) and rows.scales is not None and tensor.scales:
                check_one_scale(place.part, rows.scales, tensor.scales[number])
            if tensor.head_dim:
                rows = take_rows(rows, pairs_order(start, stop, tensor.head_dim) - start)
            yield rows if turns is None else take_columns(rows, turns.places(0, place.columns))


def _read_rows(descriptor: int, store: Store, place: Place, start: int, stop: int) -> Rows:
    """Read rows of a tensor of the store, and whole panels for it."""
    if place.format is None:
        return _read(descriptor, store, place, place.offset + 4 * start, 4 * (stop - start)).view(np.float32)
    first = start // PANEL_ROWS
    panels = panel_count(stop) - first
    span = (panels - 1) * place.panel_stride + place.panel_bytes
    data = np.zeros(panels * place.panel_stride, np.uint8)
    data[:span] = _read(descriptor, store, place, place.offset + first * place.panel_stride, span)
    own = np.ascontiguousarray(data.reshape(panels, -1)[:, : place.panel_bytes]).reshape(-1)
    rows = unpack(own, place.format, stop - first * PANEL_ROWS, place.columns)
    return take_rows(rows, slice(start - first * PANEL_ROWS, None)) if start % PANEL_ROWS else rows


def _read(descriptor: int, store: Store, place: Place, offset: int, size: int) -> npt.NDArray[np.uint8]:
    with _reading(store, place):
        data = np.frombuffer(os.pread(descriptor, size, offset), np.uint8)
    if data.size != size:
        raise StoreError(
            f"{store.path / place.file}: expected {size} bytes at {offset}, found {data.size}.",
            "The file has become shorter: copy the store again.",
        )
    return data


@contextmanager
def _reading(store: Store, place: Place) -> Iterator[None]:
    """Reports read errors as errors of the store's disk, so that they are not taken for errors of the output file."""
    try:
        yield
    except OSError as problem:
        raise StoreError(
            f"{store.path / place.file}: cannot be read ({problem.strerror or problem}).", "Check the disk."
        ) from problem
