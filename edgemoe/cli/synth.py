"""`edgemoe synth`: makes a store of random weights in a real model's shape."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgemoe.cli import options as shared
from edgemoe.cli.convert import FORMATS_HELP, Report
from edgemoe.cli.export import write_gguf
from edgemoe.conversion.shapes import SHAPES

DRAWN_HELP = (
    f"{FORMATS_HELP}; or one of GGUF's types: q5, q5m, q2k, q3k, q4k, q5k, q6k, iq4nl, iq4xs, nv4, tq2, q2, q1,"
    " iq1s, iq1m, iq2xxs, iq2xs, iq2s, iq3xxs or iq3s"
)


def synth(
    shape: Annotated[str, typer.Argument(metavar="SHAPE", help=f"One of {', '.join(SHAPES)}.")],
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="Folder of the new store.")],
    gguf: Annotated[
        Path | None,
        typer.Option(
            "--gguf", metavar="FILE", help="Also write the same weights, without a tokenizer, as a GGUF file."
        ),
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(
            "--layers", metavar="N", help="Make only the first N layers, where memory or disk has no room for all."
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Random seed of the weights.")] = 0,
    experts: Annotated[
        str | None,
        typer.Option(
            "--experts",
            metavar="FORMAT",
            help=f"Weight format of the experts: {DRAWN_HELP}; sub1; or two, such as n1+n3.",
            show_default="q4",
        ),
    ] = None,
    dense: shared.DenseOption = None,
    head: shared.HeadOption = None,
    mix: Annotated[
        str | None,
        typer.Option(
            "--mix",
            metavar="MIX",
            help="Formats of all matrices, as llama.cpp's quantiser chooses them:"
            " q2_k, q3_k_m, q4_k_m, q5_k_m, q6_k or iq4_xs.",
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            metavar="MODEL",
            help="Folder of a store, or name of a model, whose tokenizer, chat template and settings to put in.",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Discard an unfinished store of another shape, seed or options, and replace FILE."
        ),
    ] = False,
    debug: shared.DebugOption = False,
) -> None:
    """Make a store of random weights in the shape of a real model, for measurements.

    It has no tokenizer, unless you name a model to take it from; what such a model writes means nothing.

    After an interruption the same command resumes.
    """
    from edgemoe.cli.terminal.render import ProgressBar
    from edgemoe.cli.terminal.text import printable
    from edgemoe.conversion.synthetic import synthesise
    from edgemoe.session.default_model import find_model
    from edgemoe.session.text_faults import text_faults
    from edgemoe.sizes import format_size
    from edgemoe.store.reader import Store

    if gguf is not None:
        from edgemoe.conversion.gguf.export import check_gguf_destination

        check_gguf_destination(gguf, force)  # before minutes of work, not after them
    folder = None if tokenizer is None else find_model(tokenizer)
    try:
        with ProgressBar("making") as bar:
            path = synthesise(
                shape,
                destination,
                layers=layers,
                seed=seed,
                experts=experts,
                dense=dense,
                head=head,
                mix=mix,
                tokenizer=folder,
                force=force,
                progress=Report(bar, "making").conversion,
                notice=None if folder is None else lambda text: bar.note(f"note: {printable(text)}"),
                examine=text_faults,
            )
    except KeyboardInterrupt:
        typer.echo("interrupted: run the same command again to resume.", err=True)
        raise
    store = Store.open(path)
    typer.echo(f"{destination}: {format_size(store.manifest.total_bytes)} of random weights.")
    if gguf is not None:
        part = shape if layers is None else f"first {layers} layers of {shape}"
        write_gguf(store, gguf, name=f"{part}, random weights", tokenizer=False, force=force)
