"""`edgemoe list`: the models in the Hugging Face cache on this machine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from edgemoe.cli import options as shared
from edgemoe.cli.json_text import json_text

if TYPE_CHECKING:
    from edgemoe.conversion.hub.cached_models import CachedModel


def list(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    debug: shared.DebugOption = False,
) -> None:
    """Show the models in the Hugging Face cache on this machine: what they are, their sizes, and when they were used.

    Other programs keep models there too. GGUF files run as they are; checkpoints are to be converted first.
    """
    from edgemoe.cli.terminal.screen import open_screen
    from edgemoe.conversion.hub.cached_models import cached_models
    from edgemoe.sizes import format_size

    contents = cached_models()
    if as_json:
        models = [model.to_json() for model in contents.models]
        folder = None if contents.folder is None else str(contents.folder)
        typer.echo(json_text({"folder": folder, "models": models, "problems": contents.problems}))
        return
    for problem in contents.problems:
        typer.echo(f"note: {problem}", err=True)
    where = contents.folder or "the Hugging Face cache, which needs a home folder or HF_HOME"
    if not contents.models:
        typer.echo(f"There are no models in {where}; edgemoe pull downloads one.")
        return
    now = time.time()
    rows = [(str(model.hub_id), _described(model, now)) for model in contents.models]
    total = sum(model.bytes for model in contents.models)
    open_screen().table([*rows, ("together", format_size(total))], f"models in {where}")


def _described(model: CachedModel, now_s: float) -> str:
    from edgemoe.cli.terminal.figures import format_age
    from edgemoe.sizes import format_size

    kind = "GGUF" if model.is_gguf else "checkpoint"
    parts = [f"{kind} of {model.architecture}" if model.architecture else kind]
    if model.files > 1:
        parts.append(f"{model.files} files")
    parts.append(format_size(model.bytes) if model.whole else f"unfinished, {format_size(model.bytes)} so far")
    return ", ".join([*parts, f"used {format_age(now_s - model.used_s)}"])
