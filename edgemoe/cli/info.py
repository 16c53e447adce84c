"""`edgemoe info`: the machine, what limits it, and how a model runs on it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from edgemoe.cli import options as shared
from edgemoe.cli.fetching import fetched
from edgemoe.cli.json_text import json_text
from edgemoe.cli.terminal.screen import open_screen


def info(
    model: shared.ModelArgument = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="Measure how fast experts are read from the disk, and try devices; takes a few seconds."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    debug: shared.DebugOption = False,
) -> None:
    """Show this machine, its limits, the chosen kernels and why, and how a model would run here."""
    from edgemoe.bench.checkup import checkup

    found = checkup(fetched(model), measure)
    if as_json:
        typer.echo(json_text(found))
        return
    screen = open_screen()
    screen.table([*_machine_rows(found), *_model_rows(found["model"], bundled=model is None), *_folder_rows(found)])
    limits = [("", limit) for limit in found["limits"]] or [("", "no known limit")]
    screen.table(limits, "limits")
    screen.table(_device_rows(found["devices"], measure), "devices (--device; experimental)")


NO_CHECKSUMS = "none in a GGUF file; types, sizes, finite numbers and the time of its last change are checked"


def when_checked(checked_when_read: bool) -> str:
    """Say when a store's bytes are compared with its checksums."""
    return (
        "checked at every read"
        if checked_when_read
        else "checked by edgemoe verify only (edgemoe verify --migrate enables checks at every read)"
    )


def _machine_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    from edgemoe.sizes import format_size

    kernels, processors, threads, reader = (found[name] for name in ("kernels", "processors", "threads", "reader"))
    limit = found["memory_limit"]
    group = "" if limit["control_group"] is None else f", {format_size(limit['bytes'])} for {limit['control_group']}"
    quota = "no quota" if processors["quota"] is None else f"a quota of {processors['quota']:g}"
    allowed = "no limit" if threads["user_limit"] is None else f"{threads['user_limit']} for this user (ulimit -u)"
    left = "" if threads["left"] is None else f", {threads['left']:.0f} more in {threads['control_group']}"
    return [
        ("edgemoe", f"{found['version']}, Python {found['python']}"),
        ("machine", f"{found['processor']}, {found['cores']} cores, {found['system']}"),
        (
            "memory",
            f"{format_size(found['memory_bytes'])}, {format_size(found['memory_available_bytes'])} available{group};"
            f" pages of {format_size(found['page_bytes'])}",
        ),
        ("processors", f"{processors['physical'] or '?'} physical, {processors['usable']} usable, {quota}"),
        ("threads allowed", f"{allowed}{left}"),
        ("kernels", f"{kernels['backend']} {kernels['isa']}, {kernels['threads']} threads: {kernels['reason']}"),
        ("expert reader", f"{reader['threads']} threads, {reader['kind']}"),
    ]


def _device_rows(devices: list[dict[str, Any]], tried: bool) -> list[tuple[str, str]]:
    """Each device, and whether it can be used; of each kind without one why there is none."""
    known = "gives the processor's bits" if tried else "--measure asks whether it gives the processor's bits"
    return [
        (one["device"], one["problem"] or f"{one['name']}{', the processor itself' * one['processor']}: {known}")
        for one in devices
    ]


def _model_rows(model: dict[str, Any], bundled: bool) -> list[tuple[str, str]]:
    from edgemoe.sizes import format_size

    name = "bundled model" if bundled else "model"
    if model["path"] is None:
        return [(name, model["problem"])]
    rate = model["disk_bytes_per_s"]
    measured = "" if rate is None else f", {rate / 1e9:.2f} GB/s"
    rows = [
        (name, f"{model['path']}, {format_size(model['bytes'])}"),
        (
            "its disk",
            f"{format_size(model['disk_free_bytes'])} free; experts are read {model['reads']}{measured}",
        ),
        ("its checksums", NO_CHECKSUMS if model["as_it_is"] else when_checked(model["checked_when_read"])),
    ]
    if model["floor_bytes"] is not None:
        rows.append(("its smallest budget", format_size(model["floor_bytes"])))
    if model["without_device_text"] is not None:
        rows.append(("its text for devices", _device_text(model["without_device_text"])))
        if model["device_slot_bytes"] is not None:
            total = model["total_experts"]
            each = min(total, (1 << 30) // model["device_slot_bytes"])
            rows.append(("its device slots", f"{each} of {total} experts in each GiB that its other weights leave"))
    if model["problem"] is None:
        experts = f"{model['experts_in_memory']} of {model['total_experts']} experts in memory, "
        rows.append(
            (
                "it would take",
                f"{format_size(model['planned_bytes'])} of a budget of {format_size(model['budget_bytes'])}:"
                f" {experts if model['total_experts'] else ''}{model['context_length']} tokens of context",
            )
        )
    return rows


def _device_text(missing: list[str]) -> str:
    """Say what a device beside the processor would leave to it."""
    return f"all but {', '.join(missing)}, which run on the processor" if missing else "all operations"


def _folder_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    names = {"cache": "cache folder", "state": "state folder", "hub": "hub's cache"}
    rows = []
    for key, name in names.items():
        folder = found["folders"][key]
        reads = f"; files there are read {folder['reads']}" if folder.get("reads") else ""
        rows.append((name, f"{folder['path'] or 'none'}{': ' + folder['problem'] if folder['problem'] else reads}"))
    return rows
