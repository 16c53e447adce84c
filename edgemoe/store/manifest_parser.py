"""Reads a manifest as untrusted input.

Every number is checked against the others and against limits, and file names cannot leave the folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

from edgemoe.errors import StoreError
from edgemoe.io.pages import PAGE_BYTES
from edgemoe.kernels.formats import FORMATS
from edgemoe.kernels.operations import ExpertLayout
from edgemoe.store.headers import parse_json
from edgemoe.store.manifest import (
    MANIFEST_NAME,
    STORE_VERSION,
    ExpertLayer,
    FileEntry,
    Manifest,
    RecordPlace,
    ResidentTensor,
    SideFile,
    manifest_checksum,
    record_bytes,
    record_name,
)

MAX_DIMENSION = 1 << 31
MAX_FILE_BYTES = 1 << 50
DAMAGED_HINT = "Was the store cut short or altered? Copy it again, or run edgemoe convert again."

T = TypeVar("T")


def parse_manifest(text: bytes) -> Manifest:
    """The inverse of `Manifest.to_bytes`.

    Raises StoreError unless the text is a manifest of this version that matches its own checksum: a changed number that
    is still plausible, such as RoPE's theta, would silently change every answer.
    """
    try:
        return _Parser(parse_json(text)).manifest()
    except ValueError as problem:
        raise StoreError(f"{MANIFEST_NAME}: not JSON ({problem}).", DAMAGED_HINT) from None
    except RecursionError:  # the checksum's encoder may reach the limit before the decoder does
        raise StoreError(f"{MANIFEST_NAME}: nested too deeply.", DAMAGED_HINT) from None


class _Parser:
    """Parses untrusted JSON into a Manifest, or raises StoreError with the place of the first fault."""

    def __init__(self, data: object) -> None:
        self._data = self._table(data, "the manifest")
        version = self._data.get("edgemoe")
        if version != STORE_VERSION or type(version) is not int:
            raise StoreError(
                f"{MANIFEST_NAME}: expected a store of version {STORE_VERSION}, found {_shown(version)}.",
                "Run edgemoe convert again with this version of edgemoe, or use the one that wrote the store.",
            )
        if self._data.get("checksum") != manifest_checksum(self._data):
            raise StoreError(
                f"{MANIFEST_NAME}: expected the manifest that was written, found an altered one (its own checksum"
                " differs).",
                DAMAGED_HINT,
            )

    def manifest(self) -> Manifest:
        resident = self._table(self._data.get("resident"), "resident")
        experts = self._table(self._data.get("experts"), "experts")
        manifest = Manifest(
            model=self._table(self._data.get("model"), "model"),
            resident_file=self._file(resident, "resident"),
            resident=tuple(self._each(resident, "tensors", self._tensor)),
            expert_files=tuple(self._each(experts, "files", self._file)),
            expert_layers=tuple(self._each(experts, "layers", self._layer)),
            side_files=tuple(self._each(self._data, "side_files", self._side_file)),
            quantisation=self._quantisation(),
            provenance=self._table(self._data.get("provenance"), "provenance"),
        )
        self._check_names(manifest)
        self._check_resident(manifest)
        self._check_records(manifest)
        return manifest

    def _check_names(self, manifest: Manifest) -> None:
        names = [file.name for file in manifest.files]
        if len({MANIFEST_NAME, *names}) != len(names) + 1:
            self._fail("a file", "is named twice.")
        tensors = {tensor.name for tensor in manifest.resident}
        if len(tensors) != len(manifest.resident):
            self._fail("resident", "names a tensor twice.")
        layers = manifest.model.get("layers")
        if not isinstance(layers, list) or len(layers) != len(manifest.expert_layers):
            self._fail("experts.layers", "has not one entry for each layer of the model.")

    def _check_resident(self, manifest: Manifest) -> None:
        position = len(manifest.resident_header())
        vectors_began = False
        for tensor in manifest.resident:
            vectors_began |= tensor.format is None
            if tensor.offset != position or (vectors_began and tensor.format is not None):
                self._fail(f"resident tensor {_shown(tensor.name)}", f"expected at byte {position}.")
            position += tensor.bytes
        if position != manifest.resident_file.bytes:
            self._fail("resident.bytes", f"expected {position}, found {manifest.resident_file.bytes}.")

    def _check_records(self, manifest: Manifest) -> None:
        ends = [0] * len(manifest.expert_files)
        for number, layer in enumerate(manifest.expert_layers):
            for expert, place in enumerate(layer.records if layer else ()):
                assert layer is not None
                name = record_name(number, expert)
                if place.file >= len(ends) or place.offset % PAGE_BYTES or place.offset < PAGE_BYTES:
                    self._fail(name, "lies in no file of the store, or not at a multiple of 4096 bytes.")
                end = place.offset + layer.record_bytes
                if end > manifest.expert_files[place.file].bytes:
                    self._fail(name, f"ends at byte {end}, past the end of its file.")

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
            for key in ("bits_per_weight", "relative_error"):
                if type(part.get(key)) not in (int, float):
                    self._fail(f"{where}.{key}", f"expected a number, found {_shown(part.get(key))}.")
        return parts

    def _tensor(self, data: object, where: str) -> ResidentTensor:
        table = self._table(data, where)
        name, kind = self._text(table, "name", where), self._text(table, "format", where)
        shape = table.get("shape")
        if kind != "vector" and kind not in FORMATS:
            self._fail(where, f"has an unknown format {_shown(kind)}.")
        expected = 1 if kind == "vector" else 2
        if not isinstance(shape, list) or len(shape) != expected:
            self._fail(where, f"expected {expected} dimensions, found {_shown(shape)}.")
        sizes = [self._whole(size, f"{where}.shape", 1, MAX_DIMENSION) for size in shape]
        return ResidentTensor(
            name,
            FORMATS.get(kind),
            sizes[0],
            sizes[1] if expected == 2 else 1,
            self._whole(table.get("offset"), f"{where}.offset", 0, MAX_FILE_BYTES),
            self._sha256(table, where),
            self._crc32c(table, where),
        )

    def _layer(self, data: object, where: str) -> ExpertLayer | None:
        if data is None:
            return None
        table = self._table(data, where)
        formats = []
        for key in ("gate_up_format", "down_format"):
            name = self._text(table, key, where)
            if name not in FORMATS:
                self._fail(f"{where}.{key}", f"is an unknown format {_shown(name)}.")
            formats.append(FORMATS[name])
        layout = ExpertLayout(
            self._whole(table.get("model_width"), f"{where}.model_width", 1, MAX_DIMENSION),
            self._whole(table.get("ffn_width"), f"{where}.ffn_width", 1, MAX_DIMENSION),
            formats[0],
            formats[1],
            self._whole(table.get("down_offset"), f"{where}.down_offset", 0, MAX_FILE_BYTES),
        )
        if layout.down_offset != layout.gate_up_bytes:
            self._fail(f"{where}.down_offset", f"expected {layout.gate_up_bytes}, found {layout.down_offset}.")
        size = self._whole(table.get("record_bytes"), f"{where}.record_bytes", 1, MAX_FILE_BYTES)
        if size != record_bytes(layout):
            self._fail(f"{where}.record_bytes", f"expected {record_bytes(layout)}, found {size}.")
        records = tuple(self._each(table, "records", self._record))
        if not records:
            self._fail(where, "has no experts.")
        return ExpertLayer(layout, size, records)

    def _record(self, data: object, where: str) -> RecordPlace:
        table = self._table(data, where)
        return RecordPlace(
            self._whole(table.get("file"), f"{where}.file", 0, MAX_DIMENSION),
            self._whole(table.get("offset"), f"{where}.offset", 0, MAX_FILE_BYTES),
            self._sha256(table, where),
            self._crc32c(table, where),
        )

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


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
