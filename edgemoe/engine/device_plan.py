"""Foresees what a model has on a device, before any array exists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from edgemoe.engine.memory import MemoryPlan
from edgemoe.engine.scratch import WeightFormats, placeholder_of
from edgemoe.kernels.backend import Backend
from edgemoe.model.build import Graph
from edgemoe.model.graph import Leaf, bound

if TYPE_CHECKING:
    from edgemoe.kernels.device.backend import DeviceBackend


@dataclass(frozen=True)
class DevicePlan:
    """A device's share of a model. Its own weights lie in RAM too, from where the processor goes on if it fails."""

    name: str
    budget_bytes: int | None
    """None for a device that has the processor's memory, which `MemoryPlan` is about."""
    weight_bytes: int
    activation_bytes: int
    operations: int
    """Operations of a step that the device runs."""
    without_room: int
    """Operations that it could run with a larger budget."""
    total_operations: int


def plan_device(graph: Graph, formats: WeightFormats, backend: Backend, memory: MemoryPlan) -> DevicePlan | None:
    """Plan the device of a backend, if it has one, for a model with such a memory plan."""
    if backend.device is None:
        return None
    made: dict[int, Any] = {}  # by `id`, as operations share leaves, which the graph keeps

    def placeholder(leaf: Leaf) -> Any:
        if id(leaf) not in made:
            tokens, context = memory.chunk_tokens, memory.context_length
            made[id(leaf)] = placeholder_of(leaf, formats, tokens, context, memory.kv_format)
        return made[id(leaf)]

    layers = [step for section in graph.layers for step in section.steps if step.stage != "guess"]
    embed = list(graph.embed.steps) if memory.embedding_resident else []
    programs = [[bound(step.operation, placeholder) for step in steps] for steps in (embed + layers, graph.head.steps)]
    device = cast("DeviceBackend", backend)
    use = device.planned_use(programs)
    return DevicePlan(
        backend.device,
        device.memory.most_bytes,
        use.weight_bytes,
        use.activation_bytes,
        use.on_device,
        use.others,
        sum(map(len, programs)),
    )
