"""`edgemoe update`: replaces side files (tokenizer, chat template, settings) of a store and keeps its weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgemoe.cli import options as shared

if TYPE_CHECKING:
    from edgemoe.store.reader import Store


def update(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Folder of a store, or name of a model.")],
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="SOURCE",
            help="Source of the files: a checkpoint folder, a .gguf file, a Hugging Face model id, a folder with some"
            " of the files, or one of them.",
            show_default="the store's own folder",
        ),
    ] = None,
    debug: shared.DebugOption = False,
) -> None:
    """Record the side files of a store after you changed, added or removed one; the weights stay unchanged.

    Side files: config.json, generation_config.json, tokenizer.json, tokenizer_config.json, special_tokens_map.json,
    chat_template.jinja. They are first checked against the model; if one is unusable nothing is changed. From a SOURCE
    without a tokenizer.json, one is made of its tekken.json, tiktoken.model, hy.tiktoken, tokenizer.model or
    spiece.model.
    """
    from edgemoe.cli.convert import Report
    from edgemoe.cli.terminal.render import ProgressBar
    from edgemoe.conversion.pipeline import edgemoe_version
    from edgemoe.conversion.side_files import find_side_files, require_same_model
    from edgemoe.session.default_model import find_model
    from edgemoe.store.reader import Store
    from edgemoe.store.side_files import side_faults
    from edgemoe.store.update import changed_names, replace_side_files, staged

    opened = Store.open(find_model(store))
    with ProgressBar("fetching") as bar:
        found = find_side_files(opened, source, downloading=Report(bar).download)
    names = changed_names(opened, found.files)
    if not names and not any(side_faults(opened)):
        typer.echo(f"{opened.path}: nothing has changed.")
        return
    require_same_model(opened, found.files)
    with staged(opened.path, found.files) as staging:
        remarks = _require_usable(opened, staging, names)
        changes = replace_side_files(opened, staging, {"source": found.origin, "edgemoe": edgemoe_version()})
    for change in changes:
        size = "" if change.kind == "removed" else f", {change.bytes:,} bytes"
        typer.echo(f"{change.name}: {change.kind}{size}")
    for remark in remarks:
        typer.echo(f"note: {remark}", err=True)
    count = "1 side file" if len(changes) == 1 else f"{len(changes)} side files"
    typer.echo(f"{opened.path}: {count} updated.")


def _require_usable(store: Store, staging: Path, names: set[str]) -> list[str]:
    """Call `require_usable`; remove the temporary folder, which is soon deleted, from its error messages."""
    from edgemoe.errors import StoreError
    from edgemoe.model.description import store_spec
    from edgemoe.session.side_files import require_usable

    try:
        return require_usable(staging, names, store_spec(store).vocab_size)
    except StoreError as error:
        raise StoreError(
            error.message.replace(f"{staging}{os.sep}", ""),
            "Nothing was changed. Repair the file, or take the files of the store's own checkpoint with --from.",
        ) from error
