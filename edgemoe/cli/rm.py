"""`edgemoe rm`: removes a model from the Hugging Face cache on this machine."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from edgemoe.cli import options as shared
from edgemoe.cli.pull import parse_id
from edgemoe.errors import UsageError


def rm(
    model: Annotated[
        str,
        typer.Argument(metavar="ID", help="Hugging Face model id; with :QUANT only the GGUF of that quantisation."),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    debug: shared.DebugOption = False,
) -> None:
    """Remove a model from the Hugging Face cache on this machine. Stores made from it stay as they are."""
    from edgemoe.conversion.hub.cached_models import plan_removal
    from edgemoe.sizes import format_size

    removal = plan_removal(parse_id(model, "rm"))
    files = "1 file" if removal.files == 1 else f"{removal.files} files"
    if not yes and not _confirmed(
        f"Remove {removal.hub_id} ({files} in {removal.folder})? It frees {format_size(removal.bytes)}."
    ):
        typer.echo("Nothing was removed.")
        raise typer.Exit(1)
    removal.execute()
    typer.echo(f"{removal.hub_id}: removed {files}, freed {format_size(removal.bytes)}.")


def _confirmed(question: str) -> bool:
    """Ask on the terminal; only yes is yes. Raises UsageError without a terminal."""
    if not sys.stdin.isatty():
        raise UsageError("stdin is not a terminal, so nobody can be asked.", "Give --yes to remove without a question.")
    typer.echo(f"{question} [y/N] ", nl=False)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
