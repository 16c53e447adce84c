"""Foresees what a model has on a device, before any array exists."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from edgemoe.engine.memory import MemoryPlan
from edgemoe.engine.scratch import WeightFormats, placeholder_of
from edgemoe.engine.workspace import ALIGNMENT_BYTES, encoder_work_bytes, kept_bytes, work_bytes
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.operations import Operation
from edgemoe.model.build import Graph
from edgemoe.model.graph import Arena, Leaf, Paging, Weight, bound

if TYPE_CHECKING:
    from edgemoe.kernels.device.backend import DeviceBackend


@dataclass(frozen=True)
class DevicePlan:
    """A device's share of a model. Its own weights lie in RAM too, from where the processor goes on if it fails."""

    name: str
    budget_bytes: int | None
    """None for a device that has the processor's memory, which `MemoryPlan` is about."""
    weight_bytes: int
    state_bytes: int
    """Its copies of pages of keys and values, of fixed state, and of the slots of experts."""
    activation_bytes: int
    """At most so much."""
    operations: int
    """Operations of a step that the device runs."""
    without_room: int
    """Operations that it could run with a larger budget."""
    total_operations: int
    staging_bytes: int
    """Buffers through which experts without room pass, for chunks of a prompt for which that is found to pay."""
    slots: int
    """Slots for routed experts in what is left of the budget, at least so many: for those that are used most."""
    slots_bytes: int
    slot_experts: int
    """How many experts may lie there; none, if the device has all of them or runs none."""


def plan_device(
    graph: Graph, formats: WeightFormats, backend: Backend, memory: MemoryPlan, vram: str | int | None = None
) -> DevicePlan | None:
    """Plan the device of a backend, if it has one, for a model with such a memory plan.

    With `vram=floor` the device's budget becomes its floor for this model (`DeviceBackend.hold_to_floor`). Raises
    UsageError where the device is too small for that.
    """
    if backend.device is None:
        return None
    device = cast("DeviceBackend", backend)
    programs, row_bytes = _planned(graph, formats, memory)
    if vram == "floor":
        device.hold_to_floor(programs, row_bytes)
    use = device.planned_use(programs, row_bytes)
    return DevicePlan(
        backend.device,
        device.memory.most_bytes,
        use.weight_bytes,
        use.state_bytes,
        use.activation_bytes,
        use.on_device,
        use.others,
        sum(map(len, programs)),
        use.staging_bytes,
        use.slots,
        use.slots * memory.slot_bytes,
        use.slot_experts,
    )


def _planned(graph: Graph, formats: WeightFormats, memory: MemoryPlan) -> tuple[list[list[Operation]], int]:
    """Return a model's programs over placeholders, and what all their arrays with a row for each token take at most."""
    made: dict[Hashable, Any] = {}
    tokens, context, sequences = memory.chunk_tokens, memory.context_length, memory.sequences

    def placeholder(leaf: Leaf) -> Any:
        if isinstance(leaf, Paging) and not memory.all_resident:
            return leaf  # some pager, so that the processor runs it
        key = _shared(leaf)
        if key not in made:
            made[key] = placeholder_of(leaf, formats, tokens, context, memory.kv_format, sequences, memory.slots)
        return made[key]

    skipped = ("guess", "fetch") if memory.all_resident else ("guess",)
    layers = [step for section in graph.layers for step in section.steps if step.stage not in skipped]
    embed = list(graph.embed.steps) if memory.embedding_resident else []
    programs = [[bound(step.operation, placeholder) for step in steps] for steps in (embed + layers, graph.head.steps)]
    kept = sum(value.home == "kept" for value in graph.lasting)
    row_bytes = max(work_bytes(graph, tokens), encoder_work_bytes(graph, context))
    return programs, row_bytes + kept_bytes(graph, tokens, context, sequences) + 2 * ALIGNMENT_BYTES * kept


def _shared(leaf: Leaf) -> Hashable:
    """Return what leaves that stand for one array have in common; the graph keeps them, so an `id` stays one leaf's."""
    if isinstance(leaf, Weight):
        return leaf.name
    return Arena if isinstance(leaf, Arena) else id(leaf)
