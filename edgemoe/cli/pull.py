"""`edgemoe pull`: downloads a model of the hub to the Hugging Face cache on this machine."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from edgemoe.cli import options as shared
from edgemoe.conversion.hub.id import HubId
from edgemoe.errors import UsageError


def pull(
    model: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="Hugging Face model id, such as org/model or, for GGUF, org/Model-GGUF:Q4_K_M."
        ),
    ],
    debug: shared.DebugOption = False,
) -> None:
    """Download a model to the Hugging Face cache on this machine. After an interruption the same command resumes.

    Files are checked against the sizes and checksums that the hub gives. Without a quantisation after the colon, GGUF
    repositories give Q4_K_M. Models that cannot be used are refused before their weights are downloaded.
    """
    from edgemoe.cli.fetching import pull_with_bar
    from edgemoe.sizes import format_size

    pulled = pull_with_bar(parse_id(model, "pull"))
    if pulled.notice:
        typer.echo(f"note: {pulled.notice}", err=True)
    way_on = f"edgemoe chat {pulled.hub_id}" if pulled.is_gguf else f"edgemoe convert {pulled.hub_id} DEST"
    typer.echo(f"{pulled.hub_id}: {format_size(pulled.bytes)} in {pulled.path}. Try it: {way_on}")


def parse_id(text: str, verb: str) -> HubId:
    """The hub id that an argument is. Raises UsageError, naming the verb's help, for anything else."""
    hub_id = HubId.parse(text)
    path = os.path.expanduser(text)  # noqa: PTH111 (it leaves an unknown ~user as it is)
    if text and os.path.lexists(path):
        found = "a folder" if os.path.isdir(path) else "a file"  # noqa: PTH112
        raise UsageError(
            f"{text}: expected the id of a model of the hub, found {found} on this machine.",
            f"Other commands take it as it is; from another folder edgemoe {verb} takes the id."
            if hub_id is not None
            else "Other commands take it as it is.",
        )
    if hub_id is None:
        raise UsageError(
            f"{text!r}: expected the id of a model of the hub, owner/name or owner/name:QUANT.",
            f"See edgemoe {verb} --help.",
        )
    return hub_id
