"""`edgemoe info`: the machine, and what edgemoe makes of it."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgemoe.cli import options as shared
from edgemoe.cli.screen import open_screen

if TYPE_CHECKING:
    from edgemoe.store.reader import Store


def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    debug: shared.DebugOption = False,
) -> None:
    """Show the machine, the kernels chosen and why, and the bundled model."""
    description = describe()
    if as_json:
        typer.echo(json.dumps(description, indent=2))
        return
    from edgemoe.model.memory import format_size

    kernels, model = description["kernels"], description["model"]
    rows = [
        ("edgemoe", f"{description['version']}, Python {description['python']}"),
        ("machine", f"{description['processor']}, {description['cores']} cores, {description['system']}"),
        (
            "memory",
            f"{format_size(description['memory_bytes'])},"
            f" {format_size(description['memory_available_bytes'])} available",
        ),
        ("kernels", f"{kernels['backend']} {kernels['isa']}, {kernels['threads']} threads: {kernels['reason']}"),
    ]
    if model["path"] is None:
        rows.append(("bundled model", model["problem"]))
    else:
        rows += [
            ("bundled model", f"{model['path']}, {format_size(model['bytes'])}"),
            ("its disk", f"{format_size(model['disk_free_bytes'])} free; experts are read {model['reads']}"),
            ("its checksums", checks_told(model["checked_when_read"])),
        ]
    cache, reader = description["cache"], description["reader"]
    rows += [
        ("downloads", f"{cache['path']}: {cache['problem'] or 'files there are read ' + cache['reads']}"),
        ("hot lists", description["hot_lists"]["place"]),
        ("expert reader", f"{reader['threads']} threads, {reader['kind']}"),
    ]
    open_screen().table(rows)


def describe() -> dict[str, Any]:
    """The machine, the kernels and the bundled model. Sizes are in bytes."""
    from dataclasses import asdict
    from importlib.metadata import version

    from edgemoe.bench.machine import describe_machine
    from edgemoe.kernels.select import describe_backend
    from edgemoe.model.memory import available_bytes

    return {
        "version": version("edgemoe"),
        **describe_machine(),
        "memory_available_bytes": available_bytes(),
        "kernels": asdict(describe_backend()),
        "model": describe_model(),
        "cache": describe_cache(),
        "reader": describe_reader(),
        "hot_lists": describe_hot_lists(),
    }


def describe_cache() -> dict[str, Any]:
    """The user's cache folder, and how files there can be read (found out in the nearest folder that exists)."""
    from platformdirs import user_cache_path

    from edgemoe.store.direct import describe_reads, grants_direct

    path = user_cache_path("edgemoe")
    folder = next(folder for folder in (path, *path.parents) if folder.is_dir())
    try:
        direct = grants_direct(folder)
    except OSError as error:
        problem = f"nothing can be written there ({error.strerror or error})"
        return {"path": str(path), "direct_reads": None, "reads": None, "problem": problem}
    return {"path": str(path), "direct_reads": direct, "reads": describe_reads(direct), "problem": None}


def describe_reader() -> dict[str, Any]:
    """The threads that read experts, and whether they are native ones."""
    from edgemoe.errors import KernelError
    from edgemoe.kernels.native.library import load_library
    from edgemoe.model.engine import READER_THREADS

    try:
        load_library()
    except KernelError:
        return {"threads": READER_THREADS, "kind": "of Python: the native library cannot be used"}
    return {"threads": READER_THREADS, "kind": "native"}


def describe_model() -> dict[str, Any]:
    """The bundled model, its disk, and whether experts can be read past the page cache; or why there is none."""
    from edgemoe.errors import StoreError
    from edgemoe.session.default_model import find_model
    from edgemoe.store.direct import describe_reads
    from edgemoe.store.reader import Store

    try:
        store = Store.open(find_model())
    except StoreError as error:
        return {"path": None, "problem": str(error)}
    return {
        "path": str(store.path),
        "bytes": store.manifest.total_bytes,
        "disk_free_bytes": shutil.disk_usage(store.path).free,
        "direct_reads": (direct := _reads_directly(store)),
        "reads": describe_reads(direct),
        "checked_when_read": checked_when_read(store),
    }


def describe_hot_lists() -> dict[str, Any]:
    """Where it is noted which experts were in RAM, for the next start, and whether it can be."""
    from edgemoe.experts.hot_list import describe_cache

    place, usable = describe_cache()
    return {"place": place, "usable": usable}


def checks_told(checked_when_read: bool) -> str:
    """When a store's bytes are held against its checksums."""
    return (
        "held to at every read" if checked_when_read else "only edgemoe verify looks at them (it can --add-checksums)"
    )


def checked_when_read(store: Store) -> bool:
    """Without the native library reads are held to SHA-256, which every store has."""
    from edgemoe.kernels.checksum import native_crc32c_usable

    return store.manifest.checked_when_read or not native_crc32c_usable()


def _reads_directly(store: Store) -> bool:
    from edgemoe.experts.reads import ExpertFiles

    files = ExpertFiles(store.path / file.name for file in store.manifest.expert_files)
    files.close()
    return files.direct
