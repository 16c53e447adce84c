"""Downloads models that are named by their hub ids, with a progress bar."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from edgemoe.conversion.hub.id import HubId

if TYPE_CHECKING:
    from edgemoe.conversion.hub.pull import Pulled


def fetched(model: str | None) -> str | None:
    """The model to open: the path of a GGUF file for a hub id, downloaded unless it is in the hub's cache.

    Everything else stays as it is. Raises SourceError.
    """
    hub_id = None if model is None else HubId.of_model(model)
    if hub_id is None:
        return model
    from edgemoe.conversion.hub.cached_gguf import find_cached

    found = find_cached(hub_id)
    if found is None:
        pulled = pull_with_bar(hub_id, to_run=True)
        if pulled.notice:
            typer.echo(f"note: {pulled.notice}", err=True)
        found = pulled.path
    return str(found)


def pull_with_bar(hub_id: HubId, to_run: bool = False) -> Pulled:
    """Call `pull`, with a bar for its downloads. Raises SourceError."""
    from edgemoe.cli.convert import Report
    from edgemoe.cli.terminal.render import ProgressBar
    from edgemoe.conversion.hub.pull import pull

    try:
        with ProgressBar("asking the hub") as bar:
            return pull(hub_id, to_run=to_run, downloading=Report(bar).download)
    except KeyboardInterrupt:
        typer.echo("interrupted: run the same command again to resume.", err=True)
        raise
