"""Writes a store that has fewer experts in each layer: some of them, bit for bit, or means of some.

All else stays as it is, but for the rows that a layer has for each expert: those of its router, and of vectors and base
planes beside it.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgemoe.analysis.choices import Choice
from edgemoe.analysis.merging import check_merging, merged_record
from edgemoe.architectures import model_spec
from edgemoe.conversion.calibration.weights import Bytes, read_aligned
from edgemoe.conversion.encoding import encode
from edgemoe.conversion.folder_contents import CONFIG_NAME
from edgemoe.conversion.formats import class_of
from edgemoe.conversion.pipeline import edgemoe_version
from edgemoe.errors import EdgemoeError, StoreError, UsageError
from edgemoe.io.checksum import crc32c
from edgemoe.kernels.blocks import dequantise, pack, unpack
from edgemoe.model.description import store_spec
from edgemoe.model.planes import is_base
from edgemoe.model.spec import Block, LayerSpec, ModelSpec
from edgemoe.paths import expanded
from edgemoe.store.headers import parse_json
from edgemoe.store.manifest import Checksums, DenseTensor, Manifest
from edgemoe.store.manifest_parser import DAMAGED_HINT
from edgemoe.store.planning import plan_store
from edgemoe.store.reader import Store
from edgemoe.store.records import record_name
from edgemoe.store.side_files import check_side_files
from edgemoe.store.writer import StoreWriter, sync_folder, with_checksums

COMPRESSED = "compressed"
"""The entry of a store's provenance that says how its experts became fewer."""
_PIECE_BYTES = 1 << 26


def check_store(store: Store) -> ModelSpec:
    """The model of a store whose experts can become fewer. Raises UsageError."""
    if store.manifest.records.places is not None:
        raise UsageError(
            f"{store.path}: expected a store, found a GGUF file.",
            f"Convert it first: edgemoe convert {store.path} DEST.",
        )
    spec = store_spec(store)
    if not spec.routed:
        raise UsageError(f"{store.path}: expected a model with routed experts, found none.", "Name another model.")
    if any(routed.by_levels for routed in spec.routed.values()):
        raise UsageError(
            f"{store.path}: expected a router of one level, found several, whose sizes fix the number of experts.",
            "Name another model.",
        )
    if store.tables or any(routed.by_token for routed in spec.routed.values()):
        raise UsageError(
            f"{store.path}: expected experts that a router chooses, found tables that name them or stand beside them.",
            "Name another model.",
        )
    return spec


def router_groups(spec: ModelSpec) -> dict[int, int]:
    """In how many groups each layer's router has its experts."""
    found = {}
    for number in spec.routed:
        body: Any = next(block.body for block in spec.layers[number].blocks if block.body.routed is not None)
        found[number] = body.router.groups
    return found


def check_destination(destination: Path) -> Path:
    """The place of the new store, as an absolute path. Raises UsageError where something is there."""
    path = (expanded(str(destination)) or destination).absolute()
    for taken in (path, _partial(path)):
        if taken.exists() or taken.is_symlink():
            raise UsageError(f"{taken}: exists already.", "Give another destination, or remove it first.")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: expected a folder to make, in one that exists.", "Make that first.")
    return path


def _partial(path: Path) -> Path:
    """Where a store lies while it is written."""
    return path.with_name(f"{path.name}.partial")


def write_compressed(store: Store, destination: Path, choices: Mapping[int, Choice], how: str) -> Path:
    """Write a store with the experts that are chosen. `how` says how they were, for its provenance.

    Raises UsageError for experts that cannot become fewer so, StoreError for a damaged store, OSError.
    """
    spec, path = check_store(store), check_destination(destination)
    check_side_files(store)
    for number, choice in choices.items():
        if not choice.plain:
            check_merging(store, number)
    fewer = with_fewer(spec, choices)
    with new_store(path, _plan(store, fewer, choices, how)) as writer:
        checksums = {**_write_dense(store, writer, choices), **_write_records(store, writer, choices)}
        manifest = replace(with_checksums(writer.plan, checksums), quantisation=_statistics(store, spec, fewer))
        writer.finish(manifest, _side_files(store, spec, fewer))
    return path


@contextmanager
def new_store(path: Path, plan: Manifest) -> Iterator[StoreWriter]:
    """Context manager with the files of a planned store, which is at `path` when all is written, or not at all."""
    folder = _partial(path)
    try:
        with StoreWriter(folder, plan) as writer:
            yield writer
        folder.rename(path)
        sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def with_fewer(spec: ModelSpec, choices: Mapping[int, Choice]) -> ModelSpec:
    """The model with fewer experts. Raises UsageError for a number that its routers cannot have."""
    layers = list(spec.layers)
    for number, choice in choices.items():
        count = len(choice.members)
        layers[number] = LayerSpec(tuple(_block_with(count, block) for block in layers[number].blocks))
        try:
            layers[number].check()
        except ValueError as problem:
            raise UsageError(
                f"`keep`: {count} experts do not fit layer {number} ({problem}).", "Give another share."
            ) from None
    return replace(spec, layers=tuple(layers))


def _block_with(count: int, block: Block) -> Block:
    """The block with so many experts, if it has some."""
    body: Any = block.body
    return block if body.routed is None else replace(block, body=replace(body, num_experts=count))


def _plan(store: Store, fewer: ModelSpec, choices: Mapping[int, Choice], how: str) -> Manifest:
    manifest, records = store.manifest, store.manifest.records
    dense = [(one.name, one.format, _rows_after(store, one, choices), one.columns) for one in manifest.dense]
    experts, lengths = [], []
    for number in range(records.layers):
        first = int(records.first[number])
        kept = [first + own[0] for own in choices[number].members] if number in choices else []
        experts.append([manifest.layouts[records.layout[row]] for row in kept])
        lengths += [int(records.length[row]) for row in kept]
    provenance = {**manifest.provenance, "edgemoe": edgemoe_version(), COMPRESSED: how}
    return plan_store(fewer.to_json(), dense, experts, provenance, lengths=lengths)


def _layer_of(name: str) -> int:
    """The number of a tensor's layer; -1 for one of no layer."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "layers" else -1


def _per_expert(store: Store, tensor: DenseTensor, choices: Mapping[int, Choice]) -> int:
    """The rows that a tensor has for each expert; 0 for one that has none."""
    layer = _layer_of(tensor.name)
    if layer not in choices:
        return 0
    if is_base(tensor.name):
        return tensor.rows // store.manifest.records.count(layer)
    names = ("router", "router_bias", "router_choice_bias", "router_expert_scales")
    return int(tensor.name.rpartition(".")[2] in names)


def _rows_after(store: Store, tensor: DenseTensor, choices: Mapping[int, Choice]) -> int:
    each = _per_expert(store, tensor, choices)
    if not each:
        return tensor.rows
    layer = _layer_of(tensor.name)
    gone = store.manifest.records.count(layer) - len(choices[layer].members)
    return tensor.rows - gone * each


def _write_dense(store: Store, writer: StoreWriter, choices: Mapping[int, Choice]) -> dict[str, Checksums]:
    found = {}
    file = writer.plan.dense_file.name
    places = {tensor.name: tensor.offset for tensor in writer.plan.dense}
    for tensor in store.manifest.dense:
        each, offset = _per_expert(store, tensor, choices), places[tensor.name]
        if each:
            changed = _fewer_rows(store, tensor, each, choices[_layer_of(tensor.name)])
            writer.write(file, offset, changed)
            found[tensor.name] = writer.checksums(file, offset, changed.size)
            continue
        found[tensor.name] = copy_dense(store, writer, tensor, offset)
    return found


def copy_dense(store: Store, writer: StoreWriter, tensor: DenseTensor, offset: int) -> Checksums:
    """Copy a dense tensor to its place in a new store. Raises StoreError where it differs from its checksum."""
    file = writer.plan.dense_file.name
    for start in range(0, tensor.bytes, _PIECE_BYTES):
        size = min(_PIECE_BYTES, tensor.bytes - start)
        writer.write(file, offset + start, read_aligned(store.dense_path, tensor.offset + start, size))
    found = writer.checksums(file, offset, tensor.bytes)
    _check(store, tensor.name, found.sha256 == tensor.sha256)
    return found


def read_dense(store: Store, tensor: DenseTensor) -> Bytes:
    """The bytes of a dense tensor. Raises StoreError where they differ from their checksum."""
    data = read_aligned(store.dense_path, tensor.offset, tensor.bytes)
    _check(store, tensor.name, tensor.crc32c in (None, crc32c(data)))
    return data


def _fewer_rows(store: Store, tensor: DenseTensor, each: int, choice: Choice) -> Bytes:
    """A matrix or vector with the rows of the experts that stay, or their means; what follows the last expert stays."""
    data = read_dense(store, tensor)
    after = np.arange(each * store.manifest.records.count(_layer_of(tensor.name)), tensor.rows)
    if choice.plain:
        order = np.concatenate([np.arange(own[0] * each, (own[0] + 1) * each) for own in choice.members] + [after])
        if tensor.format is None:
            return np.ascontiguousarray(data.view(np.float32)[order]).view(np.uint8)
        return pack(unpack(data, tensor.format, tensor.rows, tensor.columns).rows(order))
    assert each == 1  # base planes are not merged
    values = data.view(np.float32)[: tensor.rows, None] if tensor.format is None else None
    if values is None:
        assert tensor.format is not None
        values = dequantise(unpack(data, tensor.format, tensor.rows, tensor.columns))
    means = [
        np.average(values[list(own)], axis=0, weights=of)
        for own, of in zip(choice.members, choice.weights, strict=True)
    ]
    rows = np.concatenate([np.array(means), values[after]]).astype(np.float32)
    encoded = encode(rows if tensor.format else rows[:, 0], tensor.format, tensor.name)
    return np.concatenate([encoded.head, encoded.data])


def _write_records(store: Store, writer: StoreWriter, choices: Mapping[int, Choice]) -> dict[str, Checksums]:
    found = {}
    for record in writer.plan.records:
        choice = choices[record.layer]
        members, weights = choice.members[record.expert], choice.weights[record.expert]
        read = [read_record(store, record.layer, expert) for expert in members]
        data = read[0] if len(read) == 1 else merged_record(store, record.layer, members, read, weights)
        file = writer.plan.expert_files[record.file].name
        writer.write(file, record.offset, data)
        found[record.name] = writer.checksums(file, record.offset, data.size)
    return found


def read_record(store: Store, layer: int, expert: int) -> Bytes:
    """An expert's record. Raises StoreError where it differs from its checksum."""
    place = store.record(layer, expert)
    data = read_aligned(place.path, place.offset, place.length)
    _check(store, record_name(layer, expert), place.crc32c in (None, crc32c(data)))
    return data


def _check(store: Store, name: str, same: bool) -> None:
    if not same:
        raise StoreError(
            f"{store.path}: {name} differs from what was written.",
            DAMAGED_HINT,
        )


def _statistics(store: Store, spec: ModelSpec, fewer: ModelSpec) -> dict[str, Any]:
    """The statistics of each class of tensors, by the shares of weights that are left; errors are the old store's."""
    before, after = (_parameters(one) for one in (spec, fewer))
    found = {}
    for kind, own in store.manifest.quantisation.items():
        share = after[kind] / before[kind] if before.get(kind) else after["experts"] / before["experts"]
        found[kind] = {key: value for key, value in own.items() if key not in ("quantised", "exact")}
        found[kind] |= {key: round(share * own[key]) for key in ("parameters", "bytes")}
    return found


def _parameters(spec: ModelSpec) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, shape in spec.tensors().items():
        kind = class_of(name, shape)
        found[kind] = found.get(kind, 0) + math.prod(shape)
    return found


def _side_files(store: Store, spec: ModelSpec, fewer: ModelSpec) -> dict[str, bytes]:
    files = {file.name: (store.text_folder / file.name).read_bytes() for file in store.manifest.side_files}
    if CONFIG_NAME in files:
        files[CONFIG_NAME] = _config(files[CONFIG_NAME], spec, fewer)
    return files


def _config(text: bytes, spec: ModelSpec, fewer: ModelSpec) -> bytes:
    """The config of the model with fewer experts; as it is where a config cannot say so."""
    counts = {own.num_experts for own in spec.routed.values()}, {own.num_experts for own in fewer.routed.values()}
    if len(counts[0]) > 1 or len(counts[1]) > 1:
        return text
    (before,), (after,) = counts

    def changed(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {key: changed(own, key) for key, own in value.items()}
        return after if value == before and "expert" in name and "_per_" not in name else value

    with suppress(ValueError, EdgemoeError):
        config = changed(parse_json(text))
        if model_spec(config).to_json() == fewer.to_json():
            return json.dumps(config, indent=2).encode() + b"\n"
    return text
