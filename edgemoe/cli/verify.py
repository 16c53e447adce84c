"""`edgemoe verify`: every byte of a store against its checksums."""

from __future__ import annotations

from typing import Annotated

import typer

from edgemoe.cli import options as shared
from edgemoe.errors import StoreError

MOST_PROBLEMS_SHOWN = 20


def verify(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Folder of a store, or name of a model.")],
    debug: shared.DebugOption = False,
) -> None:
    """Check every byte of a store against the checksums in its manifest."""
    from edgemoe.cli.render import ProgressBar
    from edgemoe.model.memory import format_size
    from edgemoe.session.default_model import find_model
    from edgemoe.store.reader import Store
    from edgemoe.store.verification import verify_store

    opened = Store.open(find_model(store))

    def show(done_bytes: int, total_bytes: int) -> None:
        bar.update("checking", done_bytes, total_bytes, f"{format_size(done_bytes)} of {format_size(total_bytes)}")

    with ProgressBar("checking") as bar:
        problems = verify_store(opened, show)
    if problems:
        for problem in problems[:MOST_PROBLEMS_SHOWN]:
            typer.echo(str(problem))
        if len(problems) > MOST_PROBLEMS_SHOWN:
            typer.echo(f"... and {len(problems) - MOST_PROBLEMS_SHOWN} more")
        count = "1 part is" if len(problems) == 1 else f"{len(problems)} parts are"
        raise StoreError(
            f"{opened.path}: {count} not as written.", "Convert the checkpoint again, or copy the store again."
        )
    manifest = opened.manifest
    typer.echo(f"{opened.path}: whole; {len(manifest.files)} files, {format_size(manifest.total_bytes)} checked.")
