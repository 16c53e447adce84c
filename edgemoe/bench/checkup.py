"""Facts behind `edgemoe info`: the machine, its limits, and how a model runs on it."""

from __future__ import annotations

import itertools
import mmap
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from edgemoe.bench.machine import describe_machine
from edgemoe.bench.rates import measure_store_disk
from edgemoe.engine.budget import check_floor
from edgemoe.engine.memory import least_bytes, plan_memory
from edgemoe.engine.part_sizes import ModelSizes
from edgemoe.engine.scratch import planned_programs
from edgemoe.errors import EdgemoeError, KernelError, MachineError, StoreError
from edgemoe.experts.opening import READER_THREADS
from edgemoe.io.direct import describe_reads, grants_direct
from edgemoe.io.reads import ExpertFiles, open_reader
from edgemoe.kernels.device.lowering import can_run
from edgemoe.kernels.native.library import load_library
from edgemoe.kernels.select import KERNELS_VARIABLE, KernelChoice, describe_backend, select_backend
from edgemoe.model.build import Graph
from edgemoe.paths import CACHE_VARIABLE, cache_folder, state_folder
from edgemoe.process import (
    Limit,
    available_bytes,
    memory_limit,
    physical_cores,
    processor_quota,
    thread_limit,
    usable_processors,
    user_thread_limit,
)
from edgemoe.session.floor import held_as_in_a_run
from edgemoe.session.stores import open_store
from edgemoe.sizes import format_size
from edgemoe.store.reader import Store


def checkup(model: str | os.PathLike[str] | None = None, measure: bool = False) -> dict[str, Any]:
    """Plain JSON of the machine, its limits and a model (None: the bundled one). Sizes are in bytes.

    `limits` has a sentence or two for each thing that is less than it could be, with the remedy. With `measure`, the
    rate at which the disk reads experts is measured. Raises StoreError for a named model that cannot be opened, and
    UsageError for an environment variable with an unknown name of kernels.
    """
    choice = describe_backend()
    found = {
        "version": version("edgemoe"),
        **describe_machine(),
        "page_bytes": mmap.PAGESIZE,
        "memory_available_bytes": available_bytes(),
        "memory_limit": _limit_json(memory_limit()),
        "processors": _processors(),
        "kernels": asdict(choice),
        "devices": _devices(measure),
        "reader": _reader(),
        "threads": _threads(choice),
        "model": _model(model, measure),
        "folders": {"cache": _cache(), "state": _folder(state_folder()), "hub": _folder(_hub_folder())},
    }
    return {**found, "limits": [f"{what}. {way_out}" for what, way_out in _limits(found)]}


def _limit_json(limit: Limit) -> dict[str, Any]:
    return {"bytes": limit.amount, "control_group": None if limit.group is None else str(limit.group.folder)}


def _processors() -> dict[str, Any]:
    quota = processor_quota()
    return {
        "physical": physical_cores(),
        "usable": usable_processors(),
        "quota": None if quota is None else quota.amount,
        "control_group": None if quota is None or quota.group is None else str(quota.group.folder),
    }


def _devices(measure: bool) -> list[dict[str, Any]]:
    """The devices that are here, and why others cannot be used; with `measure` after trying them."""
    from edgemoe.kernels.device.opening import found_devices, tried

    return [asdict(tried(one) if measure else one) for one in found_devices()]


def _reader() -> dict[str, Any]:
    """The threads that read experts, and whether they are native ones."""
    try:
        load_library()
    except KernelError:
        return {"threads": READER_THREADS, "kind": "in Python, as the native library is unavailable"}
    return {"threads": READER_THREADS, "kind": "native"}


def _threads(choice: KernelChoice) -> dict[str, Any]:
    """The number of threads that may be started, and whether the kernels' threads and one reader start (by trial)."""
    try:
        backend = select_backend(choice.threads)
        try:
            open_reader(np.zeros((1, mmap.PAGESIZE), np.uint8), READER_THREADS).close()
        finally:
            backend.close()
        problem = None
    except MachineError as error:
        problem = str(error)
    except EdgemoeError:
        problem = None  # kernels that cannot be loaded are reported with the model
    left = thread_limit()
    return {
        "user_limit": user_thread_limit(),
        "left": None if left is None else left.amount,
        "control_group": None if left is None or left.group is None else str(left.group.folder),
        "problem": problem,
    }


def _model(model: str | os.PathLike[str] | None, measure: bool) -> dict[str, Any]:
    """A model, its disk, how its experts are read, and its share of the memory; or why it cannot be opened."""
    try:
        store = open_store(model)
    except StoreError as error:
        if model is not None:
            raise
        return {"path": None, "problem": str(error)}
    direct = _reads_directly(store)
    found = {
        "path": str(store.path),
        "bytes": store.manifest.total_bytes,
        "disk_free_bytes": shutil.disk_usage(store.folder).free,
        "direct_reads": direct,
        "reads": describe_reads(direct),
        "disk_bytes_per_s": None,
        "checked_when_read": store.manifest.checked_when_read,
        "as_it_is": store.manifest.records.places is not None,
        **_plan(store),
    }
    if measure and found["total_experts"]:
        found["disk_bytes_per_s"] = measure_store_disk(store).bytes_per_s
    return found


def _plan(store: Store) -> dict[str, Any]:
    """The floor and the memory plan without a given budget; the reason if the model cannot run."""
    names = ("floor_bytes", "budget_bytes", "planned_bytes", "total_experts", "experts_in_memory", "context_length")
    facts: dict[str, Any] = dict.fromkeys((*names, "without_device_text", "device_slot_bytes"))
    try:
        with held_as_in_a_run(store) as (graph, sizes, backend):
            facts["floor_bytes"] = plan_memory(graph, sizes, backend, "floor").floor_bytes
            facts["total_experts"] = sizes.total_experts
            facts["device_slot_bytes"] = sizes.slot_bytes or None
            facts["without_device_text"] = _without_device_text(graph, sizes)
            check_floor(least_bytes(graph, sizes, backend))
            plan = plan_memory(graph, sizes, backend, "auto")
    except EdgemoeError as error:
        return {**facts, "problem": str(error)}
    return {
        **facts,
        "budget_bytes": plan.budget_bytes,
        "planned_bytes": plan.planned_bytes,
        "experts_in_memory": plan.slots,
        "context_length": plan.context_length,
        "problem": None,
    }


def _without_device_text(graph: Graph, sizes: ModelSizes) -> list[str]:
    """The kinds of operations that run on the processor, with all experts in memory, where a device runs the others."""
    programs = planned_programs(graph, sizes.formats, 1, 1, sizes.kv_format)
    operations = itertools.chain.from_iterable(programs)
    return sorted({type(operation).__name__ for operation in operations if not can_run(operation)})


def _reads_directly(store: Store) -> bool:
    files = ExpertFiles(store.expert_paths)
    files.close()
    return files.direct


def _folder(folder: Path | None) -> dict[str, Any]:
    """A folder of the user, and the reason if nothing can be kept there."""
    if folder is None:
        return {"path": None, "problem": "no folder, so no files are kept"}
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        usable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    except (OSError, StopIteration):
        usable = False
    return {"path": str(folder), "problem": None if usable else "not writable"}


def _cache() -> dict[str, Any]:
    """The user's cache folder, and how files there can be read (tested in the nearest folder that exists)."""
    folder = cache_folder()
    found = _folder(folder)
    direct = None
    if folder is not None and found["problem"] is None:
        there = next(place for place in (folder, *folder.parents) if place.is_dir())
        try:
            direct = grants_direct(there)
        except OSError as error:
            found["problem"] = f"not writable ({error.strerror or error})"
    return {**found, "direct_reads": direct, "reads": None if direct is None else describe_reads(direct)}


def _hub_folder() -> Path | None:
    from huggingface_hub.constants import HF_HUB_CACHE  # importing it takes as long as all the rest here

    return None if HF_HUB_CACHE.startswith("~") else Path(HF_HUB_CACHE)


def _limits(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each thing that is less than it could be, with its remedy."""
    memory, processors, model = found["memory_limit"], found["processors"], found["model"]
    if memory["control_group"] is not None:
        yield (
            f"Memory: the control group {memory['control_group']} is limited to {format_size(memory['bytes'])}"
            f" of this machine's {format_size(found['memory_bytes'])}",
            "To raise it: the memory option of a container, MemoryMax= of a service.",
        )
    cores = processors["physical"] or processors["usable"]
    if processors["quota"] is not None and processors["quota"] < cores:
        yield (
            f"Processors: the control group {processors['control_group']} is limited to {processors['quota']:g}"
            f" of {cores}",
            "To raise it: the cpus option of a container, CPUQuota= of a service.",
        )
    if processors["usable"] < cores:
        yield (
            f"Processors: this process may run on {processors['usable']} of {cores}",
            "The program that started it set this: taskset, or the cpuset option of a container.",
        )
    if found["threads"]["problem"] is not None:
        yield "Threads: too few may be started", found["threads"]["problem"]
    reason = found["kernels"]["reason"]
    if found["kernels"]["backend"] != "native":
        yield (
            f"Kernels: the portable ones are in use, which are slower ({reason})",
            f"Unset {KERNELS_VARIABLE}." if KERNELS_VARIABLE in reason else "Install a C compiler, then edgemoe again.",
        )
    if model.get("direct_reads") is False:
        yield (
            f"Disk: experts are read {model['reads']}",
            "Put the store on a local disk (ext4, xfs, btrfs) for direct reads.",
        )
    if model.get("problem") is not None:
        yield "Model: it cannot run here", model["problem"]
    elif model["experts_in_memory"] < model["total_experts"]:
        yield (
            f"Model: {model['experts_in_memory']} of its {model['total_experts']} experts fit in memory;"
            " the others are read from disk when tokens need them",
            "More free memory makes it faster; edgemoe plan shows by how much.",
        )
    cache = found["folders"]["cache"]
    if cache["problem"] is not None:
        yield (
            f"Cache folder: {cache['path'] or 'there is none'}: {cache['problem']}, so no starts are warm",
            f"Set {CACHE_VARIABLE} to a folder of yours.",
        )
