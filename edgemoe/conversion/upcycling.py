"""A dense checkpoint, shown as a mixture of experts: its FFNs carved into experts, or whole beside new ones.

*Carved*: the neurons of each FFN are shared out. Those of largest weights are the shared expert, all others are routed:
clusters of equal size of neurons whose rows of the gate are alike, and the router's row of a cluster is the mean of
these rows (ExpertWeaver). Every chosen expert counts in full, so with all experts on the model computes what the dense
one does. A weight of 1 is the sigmoid of a large logit: each has `_BIAS` added, beside which a row's own is small.

*Upcycled*: each FFN stays whole as the shared expert. Routed experts have rows of gate and up of neurons drawn from it,
and a `down` of zeros, so that the model computes what the dense one does, until somebody trains them. This is the start
of the bundled model, of whose family it is.

Nothing but the checkpoint's weights decides which neurons go where. Letters: `F` neurons of an FFN, `D` hidden size,
`E` routed experts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgemoe.architectures import SourceSlice, model_spec, resolve
from edgemoe.conversion.folder_contents import CONFIG_NAME
from edgemoe.conversion.formats import FormatChoice, block_format, choose_formats, class_of, expert_of
from edgemoe.conversion.over import SourceOver
from edgemoe.conversion.places import tensor_places
from edgemoe.conversion.plan import Piece, Plan, parts_of, plan_manifest
from edgemoe.conversion.source import Source, TensorInfo, read_slice
from edgemoe.errors import SourceError, UsageError
from edgemoe.kernels.blocks import Blocks, dequantise
from edgemoe.kernels.file_rows import Rows
from edgemoe.model.blocks import GatedFfn, Moe, RouterSpec, SharedExpert
from edgemoe.model.spec import LayerSpec, ModelSpec

Floats = npt.NDArray[np.float32]
Neurons = npt.NDArray[np.int64]

CARVED_ROUTER = RouterSpec(normalise=False, score="sigmoid", logit_bias=True, choose_by="logit")
UPCYCLED_ROUTER = RouterSpec(normalise=True)
_BIAS = 64.0
_LARGEST_LOGIT = 32.0
"""The sigmoid of what is at least half of `_BIAS` is 1 in float32."""
_ROUNDS = 10
"""How often centres of clusters are taken anew."""
_FFN = ("gate", "up", "down")


@dataclass(frozen=True)
class Upcycling:
    """How a dense model becomes a mixture of experts."""

    num_experts: int
    top_k: int
    carve: bool
    width: int = 0
    """Neurons of each new expert, where none is carved."""
    shared: int | None = None
    """Neurons of the shared expert, where FFNs are carved; 0: there is none; None: about a quarter."""

    def body(self, ffn: GatedFfn) -> Moe:
        """The block that takes the place of an FFN. Raises UsageError for numbers that do not go together."""
        if not 1 <= self.top_k <= self.num_experts:
            raise UsageError(
                f"`top_k`: expected 1 to the {self.num_experts} experts of a layer, found {self.top_k}.",
                "Give another number.",
            )
        if not self.carve:
            if self.width < 1:
                raise UsageError(f"`width`: expected 1 or more neurons, found {self.width}.", "Give another number.")
            whole = SharedExpert(ffn.intermediate_size, activation=ffn.activation)
            return Moe(self.num_experts, self.top_k, self.width, UPCYCLED_ROUTER, whole, ffn.activation)
        count = self.shared_of(ffn.intermediate_size)
        routed = ffn.intermediate_size - count
        if count < 0 or routed < self.num_experts or routed % self.num_experts:
            raise UsageError(
                f"`num_experts`: expected a divisor of the {max(routed, 0)} neurons that are not shared, of"
                f" {ffn.intermediate_size} in an FFN; found {self.num_experts}.",
                "Give another number, or another one of `shared`.",
            )
        shared = SharedExpert(count, activation=ffn.activation) if count else None
        width = routed // self.num_experts
        return Moe(self.num_experts, self.top_k, width, CARVED_ROUTER, shared, ffn.activation)

    def shared_of(self, intermediate_size: int) -> int:
        """The neurons of the shared expert that is carved out of an FFN."""
        if self.shared is not None:
            return self.shared
        return intermediate_size - self.num_experts * (intermediate_size * 3 // 4 // self.num_experts)

    def described(self) -> str:
        """Describe it, for the store's provenance."""
        if self.carve:
            shared = "a quarter of neurons" if self.shared is None else f"{self.shared} neurons"
            return f"carved: {shared} shared, {self.num_experts} experts, {self.top_k} for each token"
        return f"upcycled: {self.num_experts} experts of {self.width} neurons, {self.top_k} for each token"


class _Carved(NamedTuple):
    """The FFN of a layer, and where its neurons go."""

    weights: Mapping[str, Floats]
    """`gate` and `up` `(F, D)`, `down` `(D, F)`."""
    shared: Neurons
    experts: list[Neurons]
    router: Floats


def upcycled(source: Source, how: Upcycling) -> UpcycledSource:
    """A dense checkpoint as a mixture of experts; it is closed where that fails. Raises as `UpcycledSource`."""
    try:
        return UpcycledSource(source, how)
    except BaseException:
        source.close()
        raise


class UpcycledSource(SourceOver):
    """A `Source` over that of a dense checkpoint; its tensors have the names that they have in the model."""

    def __init__(self, source: Source, how: Upcycling) -> None:
        """Raises SourceError for a checkpoint of another than a dense model, UsageError for numbers that do not fit."""
        super().__init__(source)
        self._how = how
        self._last: tuple[int, _Carved] | None = None
        self.name, self.fingerprint = f"{source.name}, {how.described()}", f"{source.fingerprint}, {how.described()}"
        self.spec = _mixture(model_spec(source.config), how, source.name)
        if not how.carve:
            if self.spec.family != "llama":
                raise SourceError(
                    f"{source.name}: expected a checkpoint of the Llama family, found one of {self.spec.family}.",
                    "Use `carve`, or name another checkpoint.",
                )
            self.config = _granite(source.config, self.spec)
            self.spec = model_spec(self.config)
        self._infos = source.tensors()
        shapes = {name: info.shape for name, info in self._infos.items()}
        self._places = resolve(source.config, shapes, source.unlisted())
        for name, shape in self.spec.tensors().items():
            place = self._place(name)
            parts = [place] if place else [self._places[f"layers.{_layer_of(name)}.ffn.{part}"] for part in _FFN]
            dtype = self._infos[parts[0].tensor].dtype if place else "F32"
            self._tensors[name] = TensorInfo(shape, dtype, self._last_shard(self._infos[one.tensor] for one in parts))

    def _place(self, name: str) -> SourceSlice | None:
        """Where a tensor lies in the dense checkpoint, if it does as it is."""
        if not self._how.carve:
            name = name.replace(".shared.", ".ffn.")
        return self._places.get(name)

    def side_files(self) -> Mapping[str, bytes | Path]:
        files = self._source.side_files()
        return files if self._how.carve else {**files, CONFIG_NAME: json.dumps(self.config, indent=2).encode() + b"\n"}

    def read_rows(self, tensor: str, index: int | None, row_start: int, row_stop: int) -> Rows:
        place = self._place(tensor)
        if place is not None:
            return read_slice(self._source, place, row_start, row_stop)
        layer, last = self._layer(_layer_of(tensor)), tensor.rpartition(".")[2]
        if last == "router":
            return layer.router[row_start:row_stop]
        if last == "router_bias":
            return np.full(row_stop - row_start, _BIAS, np.float32)
        expert = expert_of(tensor)
        neurons = layer.shared if expert is None else layer.experts[expert[1]]
        if last == "down" and not self._how.carve:
            return np.zeros((row_stop - row_start, len(neurons)), np.float32)
        if last == "down":
            return np.ascontiguousarray(layer.weights["down"][row_start:row_stop][:, neurons])
        return layer.weights[last][neurons[row_start:row_stop]]

    def read_columns(self, tensor: str, index: int | None, start: int, stop: int, height: int = 0) -> Floats:
        raise AssertionError("tensors of a model are not transposed")

    def _layer(self, number: int) -> _Carved:
        """The FFN of a layer; the last one that was asked for is kept, since a layer's tensors are read in turn."""
        if self._last is None or self._last[0] != number:
            self._last = None  # two layers are never in memory
            self._last = number, self._carved(number)
        return self._last[1]

    def _carved(self, number: int) -> _Carved:
        weights = {part: self._whole(f"layers.{number}.ffn.{part}") for part in _FFN}
        gate, count = weights["gate"], self._how.num_experts
        if not self._how.carve:
            generator = np.random.default_rng([number, len(gate)])
            experts = [np.sort(generator.integers(0, len(gate), self._how.width)) for _ in range(count)]
            return _Carved(weights, np.arange(0), experts, np.stack([gate[own].mean(axis=0) for own in experts]))
        sizes = [np.linalg.norm(weights[part], axis=0 if part == "down" else 1) for part in _FFN]
        order = np.argsort(-np.prod(sizes, axis=0), kind="stable")
        first = self._how.shared_of(len(gate))
        shared, routed = np.sort(order[:first]), np.sort(order[first:])
        experts = [routed[own] for own in clusters(gate[routed], count)]
        router = np.stack([gate[own].mean(axis=0) for own in experts])
        norm = np.abs(self._whole(f"layers.{number}.ffn_norm")).max()
        longest = float(np.linalg.norm(router, axis=1).max() * norm * np.sqrt(gate.shape[1]))  # of any normalised row
        return _Carved(weights, shared, experts, router * np.float32(min(1.0, _LARGEST_LOGIT / max(longest, 1e-30))))

    def _whole(self, name: str) -> Floats:
        place = self._places[name]
        rows = read_slice(self._source, place, 0, place.rows)
        return dequantise(rows) if isinstance(rows, Blocks) else rows


def clusters(rows: Floats, count: int) -> list[Neurons]:
    """Numbers of rows `(F, D)` in clusters of equal size whose directions are alike: balanced k-means.

    Those that have most to lose choose first.
    """
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    size = len(rows) // count
    centres = unit[:: len(rows) // count][:count]
    for _ in range(_ROUNDS):
        scores = unit @ centres.T
        ranked = np.argsort(-scores, axis=1, kind="stable")
        best = np.take_along_axis(scores, ranked[:, :2], axis=1)
        room, own = np.full(count, size), np.empty(len(rows), np.int64)
        for row in np.argsort(best[:, -1] - best[:, 0], kind="stable"):
            chosen = next(int(one) for one in ranked[row] if room[one])
            room[chosen] -= 1
            own[row] = chosen
        members = [np.flatnonzero(own == one) for one in range(count)]
        centres = np.stack([unit[one].mean(axis=0) for one in members])
        centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-30)
    return members


def plan_upcycled(
    source: Source, choice: FormatChoice, provenance: Mapping[str, Any], bits: float | None = None
) -> Plan:
    """The plan for an `UpcycledSource`.

    Raises UsageError for formats in which experts are not written one by one; `bits` are for one of them, sub1.
    """
    assert isinstance(source, UpcycledSource)
    infos, spec = source.tensors(), source.spec
    shapes = spec.tensors()
    formats = choose_formats(shapes, {name: infos[name].dtype for name in shapes}, choice)
    if choice.base is not None or bits is not None or any(fmt is not None and fmt.varying for fmt in formats.values()):
        raise UsageError(
            f"`experts={choice.experts}`: expected one format, whose matrices have one length, found another.",
            "Give another one, such as `experts=q4`.",
        )
    manifest = plan_manifest(spec, shapes, formats, provenance)
    stored = tensor_places(manifest, shapes)
    pieces = tuple(
        Piece(
            number,
            name,
            class_of(name, shape),
            SourceSlice(name, None, 0, shape[0]),
            stored[name],
            block_format(infos[name].dtype) is not None,
        )
        for number, (name, shape) in enumerate(shapes.items())
    )
    return Plan(manifest, pieces, parts_of(manifest, pieces), {})


def _granite(config: Mapping[str, Any], spec: ModelSpec) -> dict[str, Any]:
    """The config of the same model in the family of the bundled one, whose layers have a shared expert."""
    body: Any = spec.layers[0].blocks[-1].body
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    plain = {"embedding_multiplier": 1.0, "residual_multiplier": 1.0, "logits_scaling": 1.0}
    return {key: value for key, value in config.items() if key not in ("architectures", "mlp_bias")} | {
        "model_type": "granitemoeshared",
        "num_local_experts": body.num_experts,
        "num_experts_per_tok": body.top_k,
        "intermediate_size": body.intermediate_size,
        "shared_intermediate_size": body.shared.intermediate_size,
        "attention_multiplier": head_dim**-0.5,
        **plain,
    }


def _layer_of(name: str) -> int:
    return int(name.split(".")[1])


def _mixture(dense: ModelSpec, how: Upcycling, name: str) -> ModelSpec:
    """The model with experts in the place of FFNs."""
    layers, found = [], 0
    for layer in dense.layers:
        blocks = []
        for block in layer.blocks:
            if isinstance(block.body, GatedFfn) and not block.body.bias and not block.prefix:
                block = replace(block, body=how.body(block.body))
                found += 1
            blocks.append(block)
        layers.append(LayerSpec(tuple(blocks)))
    if dense.routed or found < len(layers):
        what = "routed experts" if dense.routed else f"{len(layers) - found} layers without one"
        raise SourceError(
            f"{name}: expected a dense model with a gated FFN in each layer, found {what}.",
            "Name a checkpoint of the Llama family.",
        )
    for layer in layers:
        layer.check()
    return replace(dense, layers=tuple(layers))
