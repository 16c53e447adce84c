"""Reads a store's description of its model as untrusted input, and checks the store's tensors against it.

The returned spec is safe to run: every size in it is the size of a tensor in the store, so that no code reads or
allocates by an unchecked number from the manifest.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from edgemoe.errors import StoreError
from edgemoe.kernels.formats import PANEL_ROWS, panel_count
from edgemoe.model.spec import AttentionSpec, ModelSpec, MoeSpec, RopeSpec
from edgemoe.store.reader import Store

LARGEST_COUNT = 1 << 30
LARGEST_NUMBER = 1e12
SMALLEST_NUMBER = 1e-12

ROPE_PARAMETERS = {
    "none": frozenset[str](),
    "linear": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
    "yarn": frozenset(
        {"factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "truncate"}
    ),
}
MAY_BE_ZERO = frozenset({"shared_width", "truncate"})


def store_spec(store: Store) -> ModelSpec:
    """The ModelSpec in a store's manifest. Raises StoreError where it is invalid, or contradicts the tensors."""
    try:
        spec = ModelSpec.from_json(store.model)
        _check_values(spec, "model")
        _check_rules(spec)
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


def _check_values(part: Any, where: str) -> None:
    """Raise ValueError where a field of a spec, or of a spec within it, has a wrong type or an unusable value."""
    kinds = _kinds(part.__class__)
    for field in fields(part):
        value, name = getattr(part, field.name), f"{where}.{field.name}"
        if field.name == "layers":
            for number, layer in enumerate(value):
                _check_values(layer, f"{name}[{number}]")
        elif is_dataclass(value):
            _check_values(value, name)
        elif field.name == "parameters" and isinstance(value, Mapping):
            for key, number in value.items():
                _check_value(f"{name}.{key}", float, number, str(key))
        else:
            _check_value(name, kinds[field.name], value, field.name)


@functools.cache
def _kinds(spec: type) -> dict[str, Any]:
    """The types of a spec's fields."""
    return get_type_hints(spec)


def _check_value(name: str, kind: Any, value: object, field: str) -> None:
    least = 0 if field in MAY_BE_ZERO else SMALLEST_NUMBER
    if kind is int:
        valid = type(value) is int and least <= value <= LARGEST_COUNT
    elif kind is float:
        valid = type(value) in (int, float) and least <= value <= LARGEST_NUMBER  # type: ignore[operator]
    elif get_origin(kind) is Literal:
        valid = isinstance(value, str) and value in get_args(kind)
    else:
        valid = type(value) is kind
    if not valid:
        raise ValueError(f"{name} is {str(value)[:80]!r}")


def _check_rules(spec: ModelSpec) -> None:
    """Raise ValueError where sizes or numbers contradict one another."""
    _check_rope(spec.rope)
    for number, layer in enumerate(spec.layers):
        a = layer.attention
        if a.head_width % 2 or a.query_heads % a.kv_heads:
            raise ValueError(f"layers[{number}]: {_heads(a)}")
        if isinstance(layer.ffn, MoeSpec) and layer.ffn.experts_per_token > layer.ffn.experts:
            raise ValueError(
                f"layers[{number}]: {layer.ffn.experts_per_token} of {layer.ffn.experts} experts for each token"
            )
        if isinstance(layer.ffn, MoeSpec) and layer.ffn.shared_gate and not layer.ffn.shared_width:
            raise ValueError(f"layers[{number}]: the gate of a shared expert that there is not")


def _check_rope(rope: RopeSpec) -> None:
    p = rope.parameters
    if p.keys() != ROPE_PARAMETERS[rope.scaling] or rope.theta <= 1:
        raise ValueError(f"rope {rope.scaling} of theta {rope.theta:g} with {', '.join(p) or 'no numbers'}")
    if rope.scaling == "llama3" and not p["low_freq_factor"] < p["high_freq_factor"]:
        raise ValueError("rope: low_freq_factor is not below high_freq_factor")


def _heads(a: AttentionSpec) -> str:
    return f"{a.query_heads} query heads and {a.kv_heads} key heads of width {a.head_width}"


def _misfits(store: Store, spec: ModelSpec) -> Iterator[str]:
    """Differences between store and spec. Experts are compared first: the list of tensors grows with their number."""
    for number, (layer, layouts) in enumerate(zip(spec.layers, store.layouts_of_layers, strict=True)):
        moe = layer.ffn if isinstance(layer.ffn, MoeSpec) else None
        expected = {(moe.experts, spec.model_width, moe.width)} if moe else set()
        count = store.manifest.records.count(number)
        found = {(count, layout.hidden_size, layout.intermediate_size) for layout in layouts}
        if expected != found:
            yield (
                f"layer {number}: expected experts of (count, model width, width) {_listed(expected)},"
                f" found {_listed(found)}"
            )
    tensors = {tensor.name: tensor for tensor in store.manifest.resident}
    for name, shape in _resident_shapes(spec):
        tensor = tensors.pop(name, None)
        matrix = len(shape) == 2
        if tensor is None:
            yield f"{name} is missing"
        elif (tensor.format is not None) != matrix or (tensor.rows, tensor.columns) != (*shape, 1)[:2]:
            yield f"{name}: expected {shape}, found {(tensor.rows, tensor.columns)[: 2 if tensor.format else 1]}"
    if tensors:
        yield f"{next(iter(tensors))[:80]!r} is not a tensor of this model"


def _listed(sizes: set[tuple[int, int, int]]) -> str:
    return " and ".join(map(str, sorted(sizes))) or "none"


def _resident_shapes(spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the resident file's tensors, where gate and up are one matrix, panel by panel."""
    for name, shape in spec.tensors().items():
        if ".experts." in name or name.endswith(".up"):
            continue
        if name.endswith(".gate"):
            yield f"{name}_up", (2 * panel_count(shape[0]) * PANEL_ROWS, shape[1])
        else:
            yield name, shape
