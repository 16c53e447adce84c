"""`edgemoe export`: writes a store as a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgemoe.cli import options as shared

if TYPE_CHECKING:
    from edgemoe.store.reader import Store


def export(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Folder of a store, or name of a model.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The new file; its name must end in .gguf.")],
    no_tokenizer: Annotated[
        bool, typer.Option("--no-tokenizer", help="Leave the tokenizer out; the file then works with token ids only.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    debug: shared.DebugOption = False,
) -> None:
    """Write a store as a GGUF file for llama.cpp: the same weights bit for bit, and the tokenizer."""
    from edgemoe.session.default_model import find_model, model_name
    from edgemoe.store.reader import Store

    opened = Store.open(find_model(store))
    write_gguf(opened, file, name=model_name(opened.path), tokenizer=not no_tokenizer, force=force)


def write_gguf(store: Store, file: Path, *, name: str, tokenizer: bool, force: bool) -> None:
    """Write the file with a progress bar, and report its size."""
    from edgemoe.cli.terminal.render import ProgressBar
    from edgemoe.conversion.gguf.export import export_gguf
    from edgemoe.sizes import format_size

    def show(done_bytes: int, total_bytes: int) -> None:
        beside = f"{format_size(done_bytes)} of {format_size(total_bytes)}"
        bar.update("writing the GGUF", done_bytes, total_bytes, beside)

    with ProgressBar("writing the GGUF") as bar:
        path = export_gguf(
            store,
            file,
            name=name,
            tokenizer=tokenizer,
            force=force,
            progress=show,
            notice=lambda text: bar.note(f"note: {text}"),
        )
    typer.echo(f"{file}: {format_size(path.stat().st_size)}.")
