"""Reads a store's description of its model as untrusted input, and checks the store's tensors against it.

The returned spec is safe to run: every size in it is the size of a tensor in the store, so that no code reads or
allocates by an unchecked number from the manifest.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgemoe.errors import StoreError
from edgemoe.kernels.formats import PANEL_ROWS, panel_count
from edgemoe.model.first_form import current_form
from edgemoe.model.graph import BuildOptions
from edgemoe.model.planes import base_name, base_shape, is_base
from edgemoe.model.spec import ModelSpec
from edgemoe.store.manifest import TABLE_CHECKSUMS, is_table
from edgemoe.store.neurons import is_neurons, table_name, table_shape
from edgemoe.store.reader import Store


def store_spec(store: Store) -> ModelSpec:
    """The ModelSpec in a store's manifest. Raises StoreError where it is invalid, or contradicts the tensors."""
    try:
        spec = ModelSpec.from_json(current_form(store.model))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(
            f"{store.path}: the manifest's description of the model cannot be understood ({error}).",
            "The store was altered or is from another version: convert the checkpoint again.",
        ) from None
    problem = next(_misfits(store, spec), None)
    if problem:
        raise StoreError(
            f"{store.path}: the manifest's description of the model does not fit its tensors: {problem}.",
            "The store was altered: copy it again, or convert the checkpoint again.",
        )
    return spec


def ffns_apart(store: Store) -> frozenset[str]:
    """The names of the dense FFNs of a store whose gate and up are two matrices (`BuildOptions.ffns_apart`)."""
    ends = (tensor.name for tensor in store.manifest.dense if tensor.name.endswith(".gate"))
    return frozenset(name.removesuffix(".gate") for name in ends)


def has_planes(store: Store) -> bool:
    """Whether experts of a store have base planes (`BuildOptions.planes`)."""
    return any(is_base(tensor.name) for tensor in store.manifest.dense)


def base_shapes(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    """The names and shapes of the matrices with the base planes of a model."""
    shapes = {}
    for number, layer in enumerate(spec.layers):
        routed = layer.routed
        if routed is not None:
            sizes = routed.num_experts, routed.intermediate_size, routed.width(spec.hidden_size), routed.gated
            for part in ("up", "down"):
                shapes[base_name(number, part, routed.gated)] = base_shape(part, *sizes)
    return shapes


def build_options(store: Store) -> BuildOptions:
    """The options of the program that a store's tensors decide."""
    return BuildOptions(ffns_apart=ffns_apart(store), planes=has_planes(store))


def _misfits(store: Store, spec: ModelSpec) -> Iterator[str]:
    """Differences between store and spec. Experts are compared by layouts and counts, not one by one."""
    for number, (layer, layouts) in enumerate(zip(spec.layers, store.layouts_of_layers, strict=True)):
        routed = layer.routed
        expected = {(routed.num_experts, routed.width(spec.hidden_size), routed.intermediate_size)} if routed else set()
        count = store.manifest.records.count(number)
        found = {(count, layout.hidden_size, layout.intermediate_size) for layout in layouts}
        if expected != found:
            yield (
                f"layer {number}: expected experts of (count, width of rows, width) {_listed(expected)},"
                f" found {_listed(found)}"
            )
        if routed and any(layout.matrices.gated != routed.gated for layout in layouts):
            wanted, other = ("with", "without") if routed.gated else ("without", "with")
            yield f"layer {number}: expected experts {wanted} a gate, found some {other}"
        if routed and any(layout.has_biases != routed.bias for layout in layouts):
            wanted, other = ("with", "without") if routed.bias else ("without", "with")
            yield f"layer {number}: expected experts {wanted} biases, found some {other}"
    tensors = {tensor.name: tensor for tensor in store.manifest.dense}
    for name, shape in _dense_shapes(spec, ffns_apart(store)):
        tensor = tensors.pop(name, None)
        matrix = len(shape) == 2
        if tensor is None:
            yield f"{name} is missing"
        elif (tensor.format is not None) != matrix or (tensor.rows, tensor.columns) != (*shape, 1)[:2]:
            yield f"{name}: expected {shape}, found {(tensor.rows, tensor.columns)[: 2 if tensor.format else 1]}"
    for name, shape in base_shapes(spec).items() if has_planes(store) else ():
        tensor = tensors.pop(name, None)
        if tensor is None:
            yield f"{name} is missing"
        elif tensor.format is None or (tensor.rows, tensor.columns) != shape:
            yield f"{name}: expected a matrix {shape}, found {(tensor.rows, tensor.columns)}"
    if any(is_table(name) or is_neurons(name) for name in spec.dense_tensors()):
        tensors.pop(TABLE_CHECKSUMS, None)
    if tensors:
        yield f"{next(iter(tensors))[:80]!r} is not a tensor of this model"


def _listed(sizes: set[tuple[int, int, int]]) -> str:
    return " and ".join(map(str, sorted(sizes))) or "none"


def _dense_shapes(spec: ModelSpec, apart: frozenset[str]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the dense file's tensors, where gate and up are one matrix, panel by panel, or `apart`."""
    shapes = spec.dense_tensors()
    for name, shape in shapes.items():
        if is_neurons(name):
            if name.endswith(".down"):
                yield table_name(name), table_shape(shape)
            continue
        ffn, _, last = name.rpartition(".")
        together = ffn not in apart
        if together and last == "up" and f"{ffn}.gate" in shapes:
            continue
        if together and last == "gate":
            yield f"{name}_up", (2 * panel_count(shape[0]) * PANEL_ROWS, shape[1])
        else:
            yield name, shape
