"""`edgemoe inspect`: the parts of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgemoe.cli import options as shared
from edgemoe.cli.json_text import json_text
from edgemoe.cli.terminal.screen import Screen, open_screen

if TYPE_CHECKING:
    from edgemoe.store.reader import Store


def inspect(
    store: shared.ModelArgument = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    debug: shared.DebugOption = False,
) -> None:
    """Show what a store is made of: parts, bits per weight, sizes, experts, and the least memory it runs in."""
    from edgemoe.session.default_model import find_model
    from edgemoe.store.reader import Store

    description = describe(Store.open(find_model(store)))
    if as_json:
        typer.echo(json_text(description))
    else:
        _show(open_screen(), description)


def describe(store: Store) -> dict[str, Any]:
    """All facts about a store that need no read of its weights. Sizes are in bytes."""
    from edgemoe.model.description import store_spec
    from edgemoe.model.spec import MoeSpec
    from edgemoe.session.floor import floor_plan

    spec, manifest = store_spec(store), store.manifest
    plan = floor_plan(store)
    routed = [layer.ffn for layer in spec.layers if isinstance(layer.ffn, MoeSpec)]
    parameters = sum(part["parameters"] for part in manifest.quantisation.values())
    return {
        "path": str(store.path),
        "family": spec.family,
        "parameters": parameters,
        "layers": len(spec.layers),
        "model_width": spec.model_width,
        "vocabulary": spec.vocabulary,
        "max_positions": spec.max_positions,
        "experts": {
            "layers": len(routed),
            "per_layer": max((ffn.experts for ffn in routed), default=0),
            "per_token": max((ffn.experts_per_token for ffn in routed), default=0),
            "width": max((ffn.width for ffn in routed), default=0),
            "shared_width": max((ffn.shared_width for ffn in routed), default=0),
            "total": plan.total_experts,
            "record_bytes": store.record_bytes,
        },
        "parts": dict(manifest.quantisation),
        "files": {file.name: file.bytes for file in manifest.files},
        "total_bytes": manifest.total_bytes,
        "checked_when_read": store.manifest.checked_when_read,
        "resident_bytes": plan.resident_bytes,
        "floor_bytes": plan.floor_bytes,
        "floor_interpreter_bytes": plan.interpreter_bytes,
        "provenance": dict(manifest.provenance),
    }


def _show(screen: Screen, description: dict[str, Any]) -> None:
    from edgemoe.cli.info import checks_told
    from edgemoe.sizes import format_size

    experts = description["experts"]
    rows = [
        ("store", description["path"]),
        ("family", description["family"]),
        ("parameters", f"{description['parameters'] / 1e6:,.1f} million"),
        ("layers", f"{description['layers']} of width {description['model_width']}"),
        ("vocabulary", f"{description['vocabulary']:,}"),
        ("longest context", f"{description['max_positions']:,} tokens"),
    ]
    if experts["total"]:
        rows.append(
            (
                "experts",
                f"{experts['total']}: {experts['per_layer']} in each of {experts['layers']} layers,"
                f" {experts['per_token']} per token, width {experts['width']},"
                f" {format_size(experts['record_bytes'])} each",
            )
        )
        if experts["shared_width"]:
            rows.append(("shared expert", f"width {experts['shared_width']}"))
    for name, part in description["parts"].items():
        rows.append(
            (
                f"part {name}",
                f"{', '.join(part['formats'])}: {part['parameters'] / 1e6:,.1f} million in"
                f" {format_size(part['bytes'])}, {part['bits_per_weight']:.2f} bits per weight,"
                f" relative error {part['relative_error']:.4f}",
            )
        )
    rows += [(name, format_size(size)) for name, size in description["files"].items()]
    rows += [
        ("on disk", format_size(description["total_bytes"])),
        ("for every token", format_size(description["resident_bytes"])),
        (
            "floor of memory",
            f"{format_size(description['floor_bytes'])}, of which the interpreter"
            f" {format_size(description['floor_interpreter_bytes'])}",
        ),
        ("checksums", checks_told(description["checked_when_read"])),
        ("made from", f"{description['provenance'].get('source', '?')}"),
    ]
    taken = description["provenance"].get("side_files")
    if isinstance(taken, dict):
        rows.append(("side files from", f"{taken.get('source', '?')}"))
    screen.table(rows)
