"""Reads a manifest, and the table of records that it names, as untrusted input.

Every number is checked against the others and against limits, and file names cannot leave the folder. Stores of
version 1 have no table: their manifest lists the records of each layer, which all have one layout. They become the
same table in memory, and what follows is the same for both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

import numpy as np

from edgemoe.errors import StoreError
from edgemoe.kernels.formats import EXPERT_FORMATS, FORMATS, Format, panel_count
from edgemoe.store.headers import parse_json
from edgemoe.store.layouts import AS_IS, RecordLayout, Section
from edgemoe.store.manifest import (
    MANIFEST_NAME,
    STORE_VERSION,
    TABLE_CHECKSUMS,
    DenseTensor,
    FileEntry,
    Manifest,
    SideFile,
    is_table,
    manifest_checksum,
)
from edgemoe.store.records import (
    MAX_FILE_BYTES,
    MAX_HEADER_BYTES,
    MAX_RECORDS,
    RECORDS_NAME,
    ROW_BYTES,
    RecordTable,
    first_rows,
    parse_records,
)

MAX_DIMENSION = 1 << 31
DAMAGED_HINT = "Was the store cut short or altered? Copy it again, or run edgemoe convert again."

T = TypeVar("T")


def parse_manifest(text: bytes, read_table: Callable[[FileEntry], bytes]) -> Manifest:
    """The inverse of `Manifest.to_bytes`. `read_table` gets the name and size of the record table's file.

    Raises StoreError unless the text is a manifest of this version that matches its own checksum: a changed number that
    is still plausible, such as RoPE's theta, would silently change every answer.
    """
    try:
        return _Parser(parse_json(text), read_table).manifest()
    except ValueError as problem:
        raise StoreError(f"{MANIFEST_NAME}: not JSON ({problem}).", DAMAGED_HINT) from None
    except RecursionError:  # the checksum's encoder may reach the limit before the decoder does
        raise StoreError(f"{MANIFEST_NAME}: nested too deeply.", DAMAGED_HINT) from None


class _Parser:
    """Parses untrusted JSON into a Manifest, or raises StoreError with the place of the first fault."""

    def __init__(self, data: object, read_table: Callable[[FileEntry], bytes]) -> None:
        self._read_table = read_table
        self._data = self._table(data, "the manifest")
        version = self._data.get("edgemoe")
        if type(version) is not int or not 1 <= version <= STORE_VERSION:
            raise StoreError(
                f"{MANIFEST_NAME}: expected a store of version 1 to {STORE_VERSION}, found {_shown(version)}.",
                "Use a newer edgemoe, as the one that wrote the store; or run edgemoe convert again with this one.",
            )
        self._version = version
        if self._data.get("checksum") != manifest_checksum(self._data):
            raise StoreError(
                f"{MANIFEST_NAME}: expected the manifest that was written, found an altered one (its own checksum"
                " differs).",
                DAMAGED_HINT,
            )

    def manifest(self) -> Manifest:
        dense = self._table(self._data.get("resident"), "resident")
        experts = self._table(self._data.get("experts"), "experts")
        expert_files = tuple(self._each(experts, "files", self._file))
        if self._version == 1:
            layouts, records = self._records_of_layers(experts)
            record_file = None
        else:
            layouts, records, record_file = self._records_of_table(experts)
        manifest = Manifest(
            model=self._table(self._data.get("model"), "model"),
            dense_file=self._file(dense, "resident"),
            dense=tuple(self._each(dense, "tensors", self._tensor)),
            expert_files=expert_files,
            layouts=layouts,
            records=records,
            record_file=record_file,
            side_files=tuple(self._each(self._data, "side_files", self._side_file)),
            quantisation=self._quantisation(),
            provenance=self._table(self._data.get("provenance"), "provenance"),
            version=self._version,
        )
        self._check_names(manifest)
        self._check_dense(manifest)
        fault = records.fault(layouts, [file.bytes for file in expert_files])
        if fault is not None:
            raise StoreError(f"{record_file.name if record_file else MANIFEST_NAME}: {fault}", DAMAGED_HINT)
        return manifest

    def _check_names(self, manifest: Manifest) -> None:
        names = [MANIFEST_NAME, *(file.name for file in manifest.files)]
        if manifest.record_file is None:
            names.append(RECORDS_NAME)  # a migration will write it
        if len(set(names)) != len(names):
            self._fail("a file", "is named twice.")
        tensors = {tensor.name for tensor in manifest.dense}
        if len(tensors) != len(manifest.dense):
            self._fail("resident", "names a tensor twice.")
        layers = manifest.model.get("layers")
        found = manifest.records.layers
        if not isinstance(layers, list) or len(layers) != found:
            expected = len(layers) if isinstance(layers, list) else "a list of layers in the model"
            self._fail("experts", f"expected an entry for each layer of the model ({expected}), found {found}.")

    def _check_dense(self, manifest: Manifest) -> None:
        position = len(manifest.dense_header())
        vectors_began = False
        for tensor in manifest.dense:
            vectors_began |= tensor.format is None and tensor.name != TABLE_CHECKSUMS
            if tensor.offset != position or (vectors_began and tensor.format is not None):
                self._fail(f"dense tensor {_shown(tensor.name)}", f"expected at byte {position}.")
            position += tensor.bytes
        if position != manifest.dense_file.bytes:
            self._fail("resident.bytes", f"expected {position}, found {manifest.dense_file.bytes}.")
        tables = sum(is_table(tensor.name) for tensor in manifest.dense)
        after = [tensor for tensor in manifest.dense[tables:] if tensor.name == TABLE_CHECKSUMS]
        panels = sum(panel_count(tensor.rows) for tensor in manifest.dense[:tables])
        if not all(is_table(tensor.name) for tensor in manifest.dense[:tables]) or len(after) != bool(tables):
            self._fail("resident", "expected tables of rows first, and their checksums after them.")
        if tables and (manifest.dense[tables] != after[0] or after[0].format or after[0].rows < panels):
            self._fail(f"dense tensor {TABLE_CHECKSUMS}", f"expected after the tables, with {panels} numbers.")

    def _quantisation(self) -> dict[str, Any]:
        parts = self._table(self._data.get("quantisation"), "quantisation")
        for name, data in parts.items():
            where = f"quantisation.{_shown(name)}"
            part = self._table(data, where)
            formats = part.get("formats")
            if not isinstance(formats, list) or not all(isinstance(entry, str) for entry in formats):
                self._fail(f"{where}.formats", f"expected a list of names, found {_shown(formats)}.")
            for key in ("parameters", "bytes"):
                self._whole(part.get(key), f"{where}.{key}", 0, MAX_FILE_BYTES)
            for key in ("quantised", "exact"):
                self._whole(part.get(key, 0), f"{where}.{key}", 0, MAX_FILE_BYTES)
            for key in ("bits_per_weight", "relative_error"):
                if type(part.get(key)) not in (int, float):
                    self._fail(f"{where}.{key}", f"expected a number, found {_shown(part.get(key))}.")
        return parts

    def _tensor(self, data: object, where: str) -> DenseTensor:
        table = self._table(data, where)
        name, kind = self._text(table, "name", where), self._text(table, "format", where)
        shape = table.get("shape")
        if kind != "vector" and kind not in FORMATS:
            self._fail(where, f"has an unknown format {_shown(kind)}.")
        expected = 1 if kind == "vector" else 2
        if not isinstance(shape, list) or len(shape) != expected:
            self._fail(where, f"expected {expected} dimensions, found {_shown(shape)}.")
        sizes = [self._whole(size, f"{where}.shape", 1, MAX_DIMENSION) for size in shape]
        return DenseTensor(
            name,
            FORMATS.get(kind),
            sizes[0],
            sizes[1] if expected == 2 else 1,
            self._whole(table.get("offset"), f"{where}.offset", 0, MAX_FILE_BYTES),
            self._sha256(table, where),
            self._crc32c(table, where),
        )

    def _records_of_table(
        self, experts: dict[str, Any]
    ) -> tuple[tuple[RecordLayout, ...], RecordTable, FileEntry | None]:
        layouts = tuple(self._each(experts, "layouts", self._layout))
        counts = self._each(experts, "counts", lambda data, where: self._whole(data, where, 0, MAX_RECORDS))
        total = sum(counts)
        if total > MAX_RECORDS:
            self._fail("experts.counts", f"expected at most {MAX_RECORDS} records, found {total}.")
        if not total:
            if experts.get("table") is not None:
                self._fail("experts.table", "names a table, though no layer has experts.")
            return layouts, _Rows(counts=counts).table(), None
        table = self._table(experts.get("table"), "experts.table")
        file, sha256 = self._file(table, "experts.table"), self._sha256(table, "experts.table")
        spare = file.bytes - total * ROW_BYTES
        if not 0 < spare <= MAX_HEADER_BYTES:
            self._fail(
                "experts.table.bytes",
                f"expected a header and {ROW_BYTES} bytes for each of {total} records, found {file.bytes}.",
            )
        content = self._read_table(file)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise StoreError(f"{file.name}: is not what was written (its checksum differs).", DAMAGED_HINT)
        try:
            return layouts, parse_records(content, counts), file
        except ValueError as problem:
            raise StoreError(f"{file.name}: {problem}.", DAMAGED_HINT) from None

    def _layout(self, data: object, where: str) -> RecordLayout:
        table = self._table(data, where)
        landing = self._text(table, "landing", where)
        if landing != AS_IS:
            self._fail(f"{where}.landing", f"expected {AS_IS!r}, found {_shown(landing)}.")
        layout = RecordLayout(
            self._whole(table.get("hidden_size"), f"{where}.hidden_size", 1, MAX_DIMENSION),
            self._whole(table.get("intermediate_size"), f"{where}.intermediate_size", 1, MAX_DIMENSION),
            tuple(self._each(table, "sections", self._section)),
            self._whole(table.get("slot_bytes"), f"{where}.slot_bytes", 1, MAX_FILE_BYTES),
        )
        return self._sound(layout, where)

    def _section(self, data: object, where: str) -> Section:
        table = self._table(data, where)
        offset = self._whole(table.get("offset"), f"{where}.offset", 0, MAX_FILE_BYTES)
        return Section(self._text(table, "name", where), self._format(table, "format", where), offset)

    def _sound(self, layout: RecordLayout, where: str) -> RecordLayout:
        fault = layout.fault()
        if fault is not None:
            self._fail(where, fault)
        return layout

    def _records_of_layers(self, experts: dict[str, Any]) -> tuple[tuple[RecordLayout, ...], RecordTable]:
        """The layouts and records of a manifest of version 1."""
        rows = _Rows()

        def add_layer(data: object, where: str) -> None:
            rows.counts.append(0)
            if data is not None:
                self._layer(self._table(data, where), where, rows)

        self._each(experts, "layers", add_layer)
        return tuple(rows.layouts), rows.table()

    def _layer(self, table: dict[str, Any], where: str, rows: _Rows) -> None:
        down_offset = self._whole(table.get("down_offset"), f"{where}.down_offset", 0, MAX_FILE_BYTES)
        sections = (
            Section("gate_up", self._format(table, "gate_up_format", where), 0),
            Section("down", self._format(table, "down_format", where), down_offset),
        )
        layout = RecordLayout(
            self._whole(table.get("model_width"), f"{where}.model_width", 1, MAX_DIMENSION),
            self._whole(table.get("ffn_width"), f"{where}.ffn_width", 1, MAX_DIMENSION),
            sections,
            self._whole(table.get("record_bytes"), f"{where}.record_bytes", 1, MAX_FILE_BYTES),
        )
        number = rows.layouts.setdefault(self._sound(layout, where), len(rows.layouts))

        def add_record(data: object, where: str) -> None:
            record = self._table(data, where)
            rows.file.append(self._whole(record.get("file"), f"{where}.file", 0, MAX_DIMENSION - 1))
            rows.offset.append(self._whole(record.get("offset"), f"{where}.offset", 0, MAX_FILE_BYTES))
            rows.sha256.append(self._sha256(record, where))
            rows.crc32c.append(self._crc32c(record, where))

        before = len(rows.file)
        self._each(table, "records", add_record)
        count = rows.counts[-1] = len(rows.file) - before
        if not count:
            self._fail(where, "has no experts.")
        rows.length += [layout.slot_bytes] * count
        rows.layout += [number] * count

    def _file(self, data: object, where: str) -> FileEntry:
        table = self._table(data, where)
        name = self._text(table, "name", where)
        if not name.isprintable() or name.startswith(".") or any(mark in name for mark in "/\\:") or len(name) > 200:
            self._fail(where, f"names a file {_shown(name)}; expected a plain name inside the store's folder.")
        return FileEntry(name, self._whole(table.get("bytes"), f"{where}.bytes", 0, MAX_FILE_BYTES))

    def _side_file(self, data: object, where: str) -> SideFile:
        file = self._file(data, where)
        return SideFile(file.name, file.bytes, self._sha256(self._table(data, where), where))

    def _each(self, table: Mapping[str, Any], key: str, parse: Callable[[object, str], T]) -> list[T]:
        items = table.get(key)
        if not isinstance(items, list):
            self._fail(key, f"expected a list, found {_shown(items)}.")
        return [parse(item, f"{key}[{number}]") for number, item in enumerate(items)]

    def _table(self, data: object, where: str) -> dict[str, Any]:
        if not isinstance(data, dict):
            self._fail(where, f"expected a table, found {_shown(data)}.")
        return data

    def _format(self, table: Mapping[str, Any], key: str, where: str) -> Format:
        name = self._text(table, key, where)
        if name not in EXPERT_FORMATS:
            self._fail(f"{where}.{key}", f"is an unknown format {_shown(name)}.")
        return EXPERT_FORMATS[name]

    def _text(self, table: Mapping[str, Any], key: str, where: str) -> str:
        value = table.get(key)
        if not isinstance(value, str) or not value:
            self._fail(f"{where}.{key}", f"expected text, found {_shown(value)}.")
        return value

    def _sha256(self, table: Mapping[str, Any], where: str) -> str:
        value = self._text(table, "sha256", where)
        if len(value) != 64 or set(value) - set("0123456789abcdef"):
            self._fail(f"{where}.sha256", f"expected 64 hexadecimal digits, found {_shown(value)}.")
        return value

    def _crc32c(self, table: Mapping[str, Any], where: str) -> int | None:
        if "crc32c" not in table:
            return None
        value = self._text(table, "crc32c", where)
        if len(value) != 8 or set(value) - set("0123456789abcdef"):
            self._fail(f"{where}.crc32c", f"expected 8 hexadecimal digits, found {_shown(value)}.")
        return int(value, 16)

    def _whole(self, value: object, where: str, least: int, most: int) -> int:
        if type(value) is not int or not least <= value <= most:
            self._fail(where, f"expected a whole number from {least} to {most}, found {_shown(value)}.")
        return value

    def _fail(self, where: str, what: str) -> NoReturn:
        raise StoreError(f"{MANIFEST_NAME}: {where}: {what}", DAMAGED_HINT)


@dataclass
class _Rows:
    """The rows of a record table, as the manifest of a store of version 1 lists them."""

    layouts: dict[RecordLayout, int] = field(default_factory=dict)
    counts: list[int] = field(default_factory=list)
    file: list[int] = field(default_factory=list)
    offset: list[int] = field(default_factory=list)
    length: list[int] = field(default_factory=list)
    layout: list[int] = field(default_factory=list)
    sha256: list[str] = field(default_factory=list)
    crc32c: list[int | None] = field(default_factory=list)

    def table(self) -> RecordTable:
        known = [crc for crc in self.crc32c if crc is not None]
        return RecordTable(
            first_rows(self.counts),
            np.array(self.file, np.int32),
            np.array(self.offset, np.int64),
            np.array(self.length, np.int64),
            np.array(self.layout, np.int32),
            np.frombuffer(bytes.fromhex("".join(self.sha256)), np.uint8).reshape(-1, 32),
            np.array(known, np.uint32) if len(known) == len(self.crc32c) else None,
        )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
