"""`edgemoe convert`: a checkpoint becomes a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgemoe.cli import options as shared

FORMATS_HELP = "q4, q4m, q8, f16 or f32"


def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A checkpoint's folder, a .gguf file, or a hub id.")],
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="The store's folder, to be made.")],
    experts: Annotated[
        str | None,
        typer.Option("--experts", metavar="FORMAT", help=f"Format of the experts: {FORMATS_HELP}.", show_default="q4"),
    ] = None,
    dense: Annotated[
        str | None,
        typer.Option(
            "--dense", metavar="FORMAT", help="Format of the matrices that every token needs.", show_default="q8"
        ),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep downloaded files in the hub's cache.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Discard an unfinished conversion of other options or another source.")
    ] = False,
    debug: shared.DebugOption = False,
) -> None:
    """Make a store from a checkpoint. Interrupted, the same command goes on where it was.

    Without --experts and --dense, blocks that a GGUF has quantised already carry over exactly.
    """
    from edgemoe.cli.figures import format_duration
    from edgemoe.cli.render import ProgressBar
    from edgemoe.convert.pipeline import convert_checkpoint
    from edgemoe.convert.progress import Download, Progress
    from edgemoe.model.memory import format_size
    from edgemoe.store.reader import Store

    def show(progress: Progress) -> None:
        parts = [f"{format_size(progress.done_bytes)} of {format_size(progress.total_bytes)}"]
        if progress.bytes_per_second is not None:
            parts.append(f"{format_size(progress.bytes_per_second)}/s")
        if progress.seconds_left is not None:
            parts.append(f"about {format_duration(progress.seconds_left)} left")
        bar.update(progress.done_bytes, progress.total_bytes, " · ".join([*parts, progress.shard]))

    def show_download(download: Download) -> None:
        total = download.total_bytes or download.done_bytes
        beside = f"downloading {download.name}: {format_size(download.done_bytes)} of {format_size(total)}"
        bar.update(download.done_bytes, total, beside)

    try:
        with ProgressBar("converting") as bar:
            path = convert_checkpoint(
                source,
                destination,
                experts=experts,
                dense=dense,
                keep=keep,
                force=force,
                progress=show,
                downloading=show_download,
            )
    except KeyboardInterrupt:
        typer.echo("interrupted: the same command goes on where it was.", err=True)
        raise
    typer.echo(
        f"{destination}: {format_size(Store.open(path).manifest.total_bytes)}. Try it: edgemoe chat {destination}"
    )
