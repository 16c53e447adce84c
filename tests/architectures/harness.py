"""A checkpoint on the reference kernels in float32, without store, cache or engine: what a family means, alone."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from edgemoe.architectures import SourceSlice, model_spec, resolve, tail_in
from edgemoe.engine.decoder import Decoder
from edgemoe.engine.workspace import Workspace
from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.blocks import Blocks, pack
from edgemoe.kernels.formats import FORMATS, PANEL_ROWS, Matrix, panel_count
from edgemoe.kernels.reference.backend import ReferenceBackend
from edgemoe.model.blocks import RoutedExperts
from edgemoe.model.build import HEAD_ROWS, build_graph
from edgemoe.model.spec import ModelSpec
from edgemoe.store.layouts import packed_layout
from tests.kernels.builders import aligned, aligned_copy
from tests.support.matrices import interleave_panels

Tensors = dict[str, np.ndarray]
F32 = FORMATS["f32"]
CHUNK_TOKENS = 64


@functools.cache
def load_checkpoint(folder: Path) -> tuple[dict[str, Any], Tensors]:
    """The config and all tensors of a small checkpoint, as float32; the same ones each time, which nobody changes."""
    config = json.loads((folder / "config.json").read_text())
    tensors = {}
    for name, entry in safetensors.deserialize((folder / "model.safetensors").read_bytes()):
        if entry["dtype"] == "BF16":
            values = (np.frombuffer(entry["data"], np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            dtypes = {"F32": np.float32, "F16": np.float16, "I64": np.int64}
            values = np.frombuffer(entry["data"], dtypes[entry["dtype"]])
        tensors[name] = values.astype(np.float32).reshape(entry["shape"])
    tails = {name: tail for name in tensors if (tail := tail_in(config, name)) and tail.tensor in tensors}
    for name, tail in tails.items():
        end = np.float32(tail.factor) * tensors[tail.tensor]
        tensors[name] = np.concatenate([tensors[name], end], axis=int(tail.columns))
    for name in {tail.tensor for tail in tails.values()}:
        del tensors[name]
    return config, tensors


@functools.cache
def load_reference(folder: Path) -> Reference:
    """A small checkpoint that has been read, the same one each time: its logits depend on no earlier ones."""
    return Reference(*load_checkpoint(folder))


def take_slice(tensors: Tensors, where: SourceSlice) -> np.ndarray:
    tensor = tensors[where.tensor]
    if where.row_width:
        return tensor.reshape(-1, where.row_width)[where.row_start : where.row_stop : where.row_step]
    if where.whole_rows:
        numbers = (tensor.swapaxes(1, 2) if where.transposed else tensor).reshape(-1)
        padded = np.zeros(-(-len(numbers) // 512) * 512, np.float32)
        padded[: len(numbers)] = numbers
        return np.ascontiguousarray(padded.reshape(-1, 32, 16).swapaxes(1, 2)).reshape(-1, 32)
    if where.height:
        tensor = tensor.reshape(-1, where.height, tensor.shape[-1])
    whole = tensor if where.index is None else tensor[where.index]
    whole = whole.reshape(-1) if whole.ndim > 2 or where.as_vector else whole
    rows = whole.T if where.transposed else whole
    if where.turned:
        (run,) = where.runs
        starts = range(run.start, run.start + run.period * run.repeats, run.period)
        return np.concatenate([rows[start : start + run.length].T for start in starts])
    taken = rows[np.concatenate([np.array(place) for place in where.places(0, where.rows)])]
    unchanged = {"none": taken, "whole": taken}
    changed = unchanged | {"plus_one": 1 + taken, "minus_exp": -np.exp(taken), "minus": -taken}
    return np.ascontiguousarray(changed[where.change])


class Reference:
    """A checkpoint that has been read: `logits` of a sequence."""

    def __init__(self, config: dict[str, Any], tensors: Tensors, context_length: int = 512) -> None:
        places = resolve(config, {name: tensor.shape for name, tensor in tensors.items()})
        weights = {name: take_slice(tensors, where) for name, where in places.items()}
        self._open(model_spec(config), weights, context_length, ReferenceBackend())

    @classmethod
    def of(cls, spec: ModelSpec, weights: Tensors, backend: Backend, context_length: int = 512) -> Reference:
        """A model of these weights, by their names in the specification, on kernels of any backend."""
        made = cls.__new__(cls)
        made._open(spec, weights, context_length, backend)
        return made

    def _open(self, spec: ModelSpec, weights: Tensors, context_length: int, backend: Backend) -> None:
        self.spec = spec
        assert {name: weight.shape for name, weight in weights.items()} == self.spec.tensors()
        layouts = [self._layouts(layer.routed) for layer in self.spec.layers]
        arena, slots = self._experts(weights, layouts)
        graph = build_graph(self.spec)
        self._space = Workspace(graph, CHUNK_TOKENS, context_length, "f32")
        for group in self._space.page_groups(graph):
            group.table[0] = np.arange(group.table.shape[1]) % group.pages  # a ring, in which nothing is released
        tables = [(value.table, self._space.array(value)) for value in graph.row_tables]
        self._tables = [(t.rule, np.concatenate([weights[name] for name in t.names]), rows) for t, rows in tables]
        decoder = Decoder(graph, _resident(self.spec, weights), self._space, arena, layouts)
        for routing, layer_slots in zip(decoder.routing, slots, strict=True):
            if routing is not None:
                routing.slots[:] = layer_slots
        inputs = self._space.inputs(graph)
        if inputs is not None:
            inputs.group.table[0] = np.arange(inputs.group.pages)
        self._inputs = inputs
        encoder = decoder.encode({"fetch", "guess"})
        self._encoder = backend.program(encoder) if encoder else None
        self._whole, self._head = backend.program(decoder.whole()), backend.program(decoder.head)

    def encode(self, ids: np.ndarray) -> None:
        """Run the encoder on an input, which the text of `logits` then follows."""
        assert self._encoder is not None
        assert self._inputs is not None
        self._inputs.lengths[0] = len(ids)
        self._space.input_ids[: len(ids)] = ids
        self._space.input_positions[: len(ids)] = np.arange(len(ids))
        self._encoder.run(len(ids))

    def encoded(self, ids: np.ndarray) -> np.ndarray:
        """The result of the encoder for an input, `(T, D)`."""
        self.encode(ids)
        result: np.ndarray = self._space.input_residual[: len(ids)].copy()
        return result

    def logits(self, ids: np.ndarray, kept: np.ndarray | None = None, chunk_tokens: int = CHUNK_TOKENS) -> np.ndarray:
        """Logits `(len(kept), V)` after the tokens at the positions `kept` (all of them when None)."""
        wanted = range(len(ids)) if kept is None else kept.tolist()
        rows = []
        for start in range(0, len(ids), chunk_tokens):
            part = ids[start : start + chunk_tokens]
            self._space.ids[: len(part)] = part
            self._space.positions[: len(part)] = np.arange(start, start + len(part))
            for rule, table, output in self._tables:
                output[: len(part)] = table[rule.of(part, ids[:start])].reshape(len(part), -1)
            self._whole.run(len(part))
            inside = [position - start for position in wanted if start <= position < start + len(part)]
            for first in range(0, len(inside), HEAD_ROWS):
                some = inside[first : first + HEAD_ROWS]
                self._space.head_input[: len(some)] = self._space.residual[some]
                self._head.run(len(some))
                rows.append(self._space.logits[: len(some)].copy())
        return np.concatenate(rows)

    def _layouts(self, routed: RoutedExperts | None) -> ex.RecordLayouts | None:
        if routed is None:
            return None
        width, hidden_size = routed.intermediate_size, routed.width(self.spec.hidden_size)
        layout = packed_layout(hidden_size, width, F32, F32, routed.bias, routed.gated).matrices
        return ex.RecordLayouts((layout,), np.zeros(routed.num_experts, np.uint8))

    def _experts(
        self, weights: Tensors, layouts: list[ex.RecordLayouts | None]
    ) -> tuple[np.ndarray, list[range | None]]:
        records, slots = [], []
        for number, (layer, layout) in enumerate(zip(self.spec.layers, layouts, strict=True)):
            if layout is None or layer.routed is None:
                slots.append(None)
                continue
            slots.append(range(len(records), len(records) + layer.routed.num_experts))
            for expert in range(layer.routed.num_experts):
                prefix = f"layers.{number}.experts.{expert}"
                (_, first), down = _gate_up(weights, prefix), _matrix(weights[prefix + ".down"])
                record = [first.data, down.data]
                for part in ("gate", "up", "down")[not layer.routed.gated :] if layer.routed.bias else ():
                    vector = weights[f"{prefix}.{part}_bias"]
                    padded = np.zeros(PANEL_ROWS * panel_count(len(vector)), np.float32)
                    padded[: len(vector)] = vector
                    record.append(padded.view(np.uint8))
                records.append(np.concatenate(record))
        size = max((len(record) for record in records), default=0)
        arena = aligned((len(records), size), np.uint8)
        for slot, record in enumerate(records):
            arena[slot, : len(record)] = record
        return arena, slots


def _resident(spec: ModelSpec, weights: Tensors) -> dict[str, Matrix | np.ndarray]:
    resident: dict[str, Matrix | np.ndarray] = {}
    for name, weight in weights.items():
        if ".experts." in name or name.endswith((".gate", ".up")):
            continue
        resident[name] = _matrix(weight) if weight.ndim == 2 else weight
        if name.endswith((".ffn.down", ".shared.down")) or (".slot_experts." in name and name.endswith(".down")):
            prefix = name.removesuffix(".down")
            name, matrix = _gate_up(weights, prefix)
            resident[name] = matrix
    return resident


def _matrix(values: np.ndarray) -> Matrix:
    return Matrix(aligned_copy(pack(Blocks(F32, values))), F32, *values.shape)


def _gate_up(weights: Tensors, prefix: str) -> tuple[str, Matrix]:
    """The first matrix of an FFN, with its name: gate and up, or up alone where there is no gate."""
    up = _matrix(weights[prefix + ".up"])
    if prefix + ".gate" not in weights:
        return prefix + ".up", up
    gate = _matrix(weights[prefix + ".gate"])
    panels = panel_count(gate.rows)
    both = interleave_panels(gate, up)
    return prefix + ".gate_up", Matrix(aligned_copy(both), F32, 2 * panels * PANEL_ROWS, gate.columns)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference of any row, as a share of that row's largest logit."""
    return float((np.abs(found - expected).max(axis=1) / np.abs(expected).max(axis=1)).max())
