"""`edgemoe inspect`: the parts of a store."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgemoe.cli import options as shared
from edgemoe.cli.fetching import fetched
from edgemoe.cli.json_text import json_text
from edgemoe.cli.terminal.screen import Screen, open_screen
from edgemoe.errors import UsageError

if TYPE_CHECKING:
    from edgemoe.model.listing import Line
    from edgemoe.store.reader import Store

_PART_WIDTH = 15
"""Columns of the part of the work that precedes each operation."""


def inspect(
    store: shared.ModelArgument = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    program: Annotated[
        bool, typer.Option("--program", help="Print the operations of a token, layer by layer, with shapes.")
    ] = False,
    layer: Annotated[
        int | None, typer.Option("--layer", metavar="N", help="With --program: only this layer, from 0 on.")
    ] = None,
    debug: shared.DebugOption = False,
) -> None:
    """Show the parts of a store or GGUF file: formats, bits per weight, sizes, experts, and the smallest budget."""
    from edgemoe.session.stores import open_store

    opened = open_store(fetched(store))
    if program:
        sections = list_program(opened, layer)
        if as_json:
            typer.echo(json_text({name: [asdict(line) for line in lines] for name, lines in sections.items()}))
        else:
            _show_program(open_screen(), sections)
        return
    if layer is not None:
        raise UsageError("--layer: it names a layer of the program.", "Give --program too.")
    description = describe(opened)
    if as_json:
        typer.echo(json_text(description))
    else:
        _show(open_screen(), description)


def list_program(store: Store, layer: int | None = None) -> dict[str, list[Line]]:
    """The operations of a token by section: embedding, layers (alike ones once), head; with `layer` only that one.

    Raises UsageError for a layer that the model does not have.
    """
    from edgemoe.model.build import build_graph
    from edgemoe.model.description import build_options, store_spec
    from edgemoe.model.listing import distinct_layers, list_layer, list_section

    graph = build_graph(store_spec(store), build_options(store))
    if layer is not None:
        if not 0 <= layer < len(graph.layers):
            raise UsageError(
                f"--layer: expected 0 to {len(graph.layers) - 1}, found {layer}.", "Leave it out to see all layers."
            )
        return {f"layer {layer}": list_layer(graph, layer)}
    names = {first: f"layer {numbers}" for numbers, first in distinct_layers(graph)}
    layers = {name: list_layer(graph, first) for first, name in names.items()}
    if graph.encoder is not None:
        count = graph.spec.encoder_layers
        reads = [f"{name} (encoder)" for first, name in names.items() if first < count]
        read = dict(zip(reads, layers.values(), strict=False))
        written = {name: layers[name] for first, name in names.items() if first >= count}
        end = list_section(graph.encoder.end)
        layers = {**read, "after the encoder": end, "embedding of the text": list_section(graph.embed), **written}
    first = graph.embed if graph.encoder is None else graph.encoder.embed
    return {"embedding": list_section(first), **layers, "head": list_section(graph.head)}


def _show_program(screen: Screen, sections: dict[str, list[Line]]) -> None:
    for name, lines in sections.items():
        screen.text(name)
        for line in lines:
            screen.text(f"  {line.part:<{_PART_WIDTH}}{line.text}")


def describe(store: Store) -> dict[str, Any]:
    """All facts about a store that need no read of its weights. Sizes are in bytes."""
    from edgemoe.conversion.formats import BASES
    from edgemoe.model.description import store_spec
    from edgemoe.session.floor import floor_plan
    from edgemoe.store.mixture import expert_mixtures, mixtures

    spec, manifest = store_spec(store), store.manifest
    plan = floor_plan(store)
    shared = [layer.sizes.get("shared_width", 0) for layer in spec.layers]
    routed = spec.routed.values()
    parameters = sum(part["parameters"] for name, part in manifest.quantisation.items() if name != BASES)
    return {
        "path": str(store.path),
        "family": spec.family,
        "parameters": parameters,
        "layers": len(spec.layers),
        "encoder_layers": spec.encoder_layers,
        "hidden_size": spec.hidden_size,
        "vocab_size": spec.vocab_size,
        "max_positions": spec.max_positions,
        "experts": {
            "layers": len(routed),
            "per_layer": spec.most_experts,
            "per_token": spec.most_top_k,
            "width": max((experts.intermediate_size for experts in routed), default=0),
            "shared_width": max(shared, default=0),
            "total": plan.total_experts,
            "record_bytes": store.record_bytes,
            "slot_bytes": store.slot_bytes,
        },
        "neurons": None
        if store.neurons is None
        else {
            "total": store.neurons.count,
            "layers": len(store.neurons.first),
            "per_token": spec.neurons_at_once,
            "pages": store.neurons.pages,
        },
        "parts": dict(manifest.quantisation),
        "mixtures": mixtures(manifest),
        "expert_mixtures": {str(layer): counts for layer, counts in expert_mixtures(manifest).items()},
        "files": {file.name: file.bytes for file in manifest.files},
        "total_bytes": manifest.total_bytes,
        "checked_when_read": store.manifest.checked_when_read,
        "as_it_is": store.manifest.records.places is not None,
        "dense_bytes": plan.dense_bytes,
        "floor_bytes": plan.floor_bytes,
        "floor_interpreter_bytes": plan.interpreter_bytes,
        "provenance": dict(manifest.provenance),
    }


def _neurons_text(neurons: dict[str, int], page_bytes: int) -> str:
    from edgemoe.sizes import format_size

    layers = f"{neurons['layers']} layers" if neurons["layers"] > 1 else "one layer"
    return (
        f"{neurons['total']:,} of a single neuron in {layers}, {neurons['per_token']} per token in each;"
        f" {neurons['pages']:,} pages of {format_size(page_bytes)} on disk"
    )


def _show(screen: Screen, description: dict[str, Any]) -> None:
    from edgemoe.cli.info import NO_CHECKSUMS, when_checked
    from edgemoe.sizes import format_size
    from edgemoe.store.mixture import ranges

    experts, count = description["experts"], description["encoder_layers"]
    encoder = f", of which the first {count} are the encoder's" if count else ""
    rows = [
        ("store", description["path"]),
        ("family", description["family"]),
        ("parameters", f"{description['parameters'] / 1e6:,.1f} million"),
        ("layers", f"{description['layers']} of width {description['hidden_size']}" + encoder),
        ("vocabulary", f"{description['vocab_size']:,}"),
        ("longest context", f"{description['max_positions']:,} tokens"),
    ]
    if description["neurons"] is not None:
        rows.append(("experts", _neurons_text(description["neurons"], experts["slot_bytes"])))
    elif experts["total"]:
        same = experts["slot_bytes"] == experts["record_bytes"]
        in_memory = "" if same else f" ({format_size(experts['slot_bytes'])} in memory)"
        rows.append(
            (
                "experts",
                f"{experts['total']}: {experts['per_layer']} in each of {experts['layers']} layers,"
                f" {experts['per_token']} per token, width {experts['width']},"
                f" {format_size(experts['record_bytes'])} each{in_memory}",
            )
        )
        if experts["shared_width"]:
            rows.append(("shared expert", f"width {experts['shared_width']}"))
    for name, part in description["parts"].items():
        rows.append(
            (
                f"part {name}",
                f"{', '.join(part['formats'])}: {part['parameters'] / 1e6:,.1f} million in"
                f" {format_size(part['bytes'])}, {part['bits_per_weight']:.2f} bits per weight"
                + (f", relative error {part['relative_error']:.4f}" if "relative_error" in part else "")
                + (f", {part['exact']} of {part['quantised']} quantised tensors exact" if "exact" in part else ""),
            )
        )
    for name, formats in description["mixtures"].items():
        where = (f"{fmt} in {'layer' if len(own) == 1 else 'layers'} {ranges(own)}" for fmt, own in formats.items())
        rows.append((f"mix of {name}", "; ".join(where)))
    for layer, counts in description["expert_mixtures"].items():
        rows.append((f"experts of layer {layer}", "; ".join(f"{count} with {name}" for name, count in counts.items())))
    rows += [(name, format_size(size)) for name, size in description["files"].items()]
    rows += [
        ("on disk", format_size(description["total_bytes"])),
        ("for every token", format_size(description["dense_bytes"])),
        (
            "floor of memory",
            f"{format_size(description['floor_bytes'])}, of which the interpreter"
            f" {format_size(description['floor_interpreter_bytes'])}",
        ),
        ("checksums", NO_CHECKSUMS if description["as_it_is"] else when_checked(description["checked_when_read"])),
        ("made from", f"{description['provenance'].get('source', '?')}"),
    ]
    taken = description["provenance"].get("side_files")
    if isinstance(taken, dict):
        rows.append(("side files from", f"{taken.get('source', '?')}"))
    screen.table(rows)
