"""`edgemoe verify`: compares every byte of a store with its checksums."""

from __future__ import annotations

from typing import Annotated

import typer

from edgemoe.cli import options as shared
from edgemoe.errors import StoreError

MOST_PROBLEMS_SHOWN = 20


def verify(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Folder of a store, or name of a model.")],
    migrate: Annotated[
        bool,
        typer.Option(
            "--migrate",
            help="If the store is intact, rewrite an older manifest in the format of this version. The weights stay"
            " unchanged.",
        ),
    ] = False,
    debug: shared.DebugOption = False,
) -> None:
    """Check every byte of a store against the checksums in its manifest."""
    from edgemoe.cli.terminal.render import ProgressBar
    from edgemoe.session.default_model import find_model
    from edgemoe.sizes import format_size
    from edgemoe.store.reader import Store
    from edgemoe.store.verification import migrate_store, verify_store

    opened = Store.open(find_model(store))
    was_current = opened.manifest.is_current

    def show(done_bytes: int, total_bytes: int) -> None:
        bar.update("checking", done_bytes, total_bytes, f"{format_size(done_bytes)} of {format_size(total_bytes)}")

    with ProgressBar("checking") as bar:
        if migrate:
            opened, problems = migrate_store(opened.path, show)
        else:
            problems = verify_store(opened, show)
    if problems:
        for problem in problems[:MOST_PROBLEMS_SHOWN]:
            typer.echo(str(problem))
        if len(problems) > MOST_PROBLEMS_SHOWN:
            typer.echo(f"... and {len(problems) - MOST_PROBLEMS_SHOWN} more")
        count = "1 part is" if len(problems) == 1 else f"{len(problems)} parts are"
        weights = not all(problem.in_side_file for problem in problems)
        raise StoreError(
            f"{opened.path}: {count} not as written.",
            "Convert the checkpoint again, or copy the store again."
            if weights
            else f"edgemoe update {opened.path} accepts the side files as they are, or with --from a checkpoint's.",
        )
    manifest = opened.manifest
    typer.echo(f"{opened.path}: whole; {len(manifest.files)} files, {format_size(manifest.total_bytes)} checked.")
    if migrate:
        typer.echo(f"Its manifest {'already has' if was_current else 'now has'} the format of this version.")
    elif not was_current:
        typer.echo(
            "Its manifest has the format of an older version; --migrate rewrites it and leaves the weights unchanged."
        )
