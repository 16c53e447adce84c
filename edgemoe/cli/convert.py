"""`edgemoe convert`: makes a store from a checkpoint."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgemoe.cli import options as shared

if TYPE_CHECKING:
    from edgemoe.cli.terminal.render import ProgressBar
    from edgemoe.conversion.progress import Download, Progress

LEAST_SECONDS_FOR_RATE = 0.5
FORMATS_HELP = "q4, q4m, m4, q8, bf16, f16, f32, or n4, n3, n2, n15, n1 or n075 (4.2 to 0.75 bits)"
DEFAULT_TOKENS = 16384
BLAS_THREADS = "OPENBLAS_NUM_THREADS"
"""The threads of numpy's linear algebra. Calibration has threads of its own: both together wait for each other."""
KEEP_HELP = "; keep: the smallest that is exact"


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A checkpoint folder, a GGUF file, or a Hugging Face model id (for GGUF with :QUANT).",
        ),
    ],
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="Folder of the new store.")],
    experts: Annotated[
        str | None,
        typer.Option(
            "--experts",
            metavar="FORMAT",
            help=f"Weight format of the experts: {FORMATS_HELP}; sub1, for ternary weights; n1+n3, a base in memory and"
            f" a residual{KEEP_HELP}. With others for gate, up, down, the first or the last layer, or layers by number:"
            " n2,down=n3,first=n4,7.down=n4.",
            show_default="q4",
        ),
    ] = None,
    bits: Annotated[
        float | None,
        typer.Option(
            "--bits",
            metavar="B",
            help="In place of --experts: formats n075 to n4 of at most B bits for a weight on average, for each layer,"
            " where bytes lower the measured error most: with --calibrate that of results, else of weights. With"
            " --experts sub1 --calibrate: the most of every expert.",
        ),
    ] = None,
    dense: shared.DenseOption = None,
    head: shared.HeadOption = None,
    calibrate: Annotated[
        str | None,
        typer.Option(
            "--calibrate",
            metavar="FILE|default",
            help="Quantise to n4 ... n075, or sub1, by what this text (UTF-8) makes of the weights: far less error at"
            " the same size. What is lost is measured on the text that follows. default: Python's own help.",
        ),
    ] = None,
    calibrate_tokens: Annotated[
        int, typer.Option("--calibrate-tokens", metavar="N", help="Use the first N tokens of that text.")
    ] = DEFAULT_TOKENS,
    importance: Annotated[
        Path | None,
        typer.Option(
            "--importance",
            metavar="FILE",
            help="In place of a text: the importance of columns, as llama.cpp's imatrix measured it (GGUF or .dat).",
        ),
    ] = None,
    feedback: Annotated[
        bool,
        typer.Option(
            "--feedback/--no-feedback",
            help="Let later columns of a matrix make up for the errors of earlier ones, or weight columns alone.",
        ),
    ] = True,
    mtp: Annotated[
        bool,
        typer.Option(
            "--mtp",
            help="Convert the checkpoint's MTP head alone, which the model then takes as --draft.",
        ),
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep downloaded files in the Hugging Face cache.")] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Discard an unfinished conversion with other options or from another source."),
    ] = False,
    debug: shared.DebugOption = False,
) -> None:
    """Convert a checkpoint into a store. After an interruption the same command resumes.

    Without --experts, --dense and --head, weights that the checkpoint has in quantised blocks are kept bit for bit.
    """
    if calibrate is not None:
        os.environ.setdefault(BLAS_THREADS, "1")  # read when numpy is first imported
    from edgemoe.cli.terminal.render import ProgressBar
    from edgemoe.cli.terminal.text import printable
    from edgemoe.conversion.pipeline import convert_checkpoint
    from edgemoe.conversion.statistics import exactness
    from edgemoe.session.calibration_text import weighed
    from edgemoe.session.text_faults import text_faults
    from edgemoe.sizes import format_size
    from edgemoe.store.reader import Store

    try:
        with ProgressBar("converting") as bar:
            report = Report(bar)
            path = convert_checkpoint(
                source,
                destination,
                experts=experts,
                dense=dense,
                head=head,
                bits=bits,
                keep=keep,
                force=force,
                progress=report.conversion,
                downloading=report.download,
                notice=lambda text: bar.note(f"note: {printable(text)}"),
                examine=text_faults,
                calibration=weighed(calibrate, calibrate_tokens, feedback, importance),
                mtp=mtp,
            )
    except KeyboardInterrupt:
        typer.echo("interrupted: run the same command again to resume.", err=True)
        raise
    manifest = Store.open(path).manifest
    exact = exactness(manifest.quantisation)
    next_step = _next_step(path, destination, mtp)
    typer.echo(f"{destination}: {format_size(manifest.total_bytes)}. {exact and exact + ' '}{next_step}")


def _next_step(path: Path, destination: object, mtp: bool) -> str:
    """The commands to try next on a finished store."""
    from edgemoe.errors import StoreError
    from edgemoe.session.template import ChatTemplate
    from edgemoe.session.tokenizer import has_tokenizer, load_library_tokenizer

    if mtp:
        return f"It guesses for the model that the same checkpoint gives: edgemoe chat MODEL --draft {destination}"
    if not has_tokenizer(path):
        return (
            "The checkpoint has no tokenizer.json, so the store works with token ids only, from Python. To add one,"
            f" copy it into {destination} and run edgemoe update {destination}."
        )
    try:
        load_library_tokenizer(path)
    except StoreError as error:
        return f"It can run, but cannot read or write text: {error}"
    try:
        ChatTemplate.load(path)
    except StoreError:
        return f"It has no usable chat template. Try it: edgemoe run {destination} --raw -p TEXT"
    return f"Try it: edgemoe chat {destination}"


class Report:
    """Shows a conversion, and its downloads, on one bar: bytes done, the rate, and the time left."""

    def __init__(self, bar: ProgressBar, doing: str = "converting") -> None:
        self._bar = bar
        self._doing = doing
        self._file = ""
        self._began_s = 0.0
        self._first_bytes = 0

    def conversion(self, progress: Progress) -> None:
        """Show how much of the store is written or, in the end, of the checkpoint compared with it."""
        self._show(
            f"{'comparing' if progress.comparing else self._doing} {progress.shard}",
            progress.done_bytes,
            progress.total_bytes,
            progress.bytes_per_second,
            progress.seconds_left,
        )

    def download(self, download: Download) -> None:
        """Show how much of a file is downloaded, or checked, and the mean rate since the first bytes of this run.

        The time left is that until all files are there.
        """
        now, doing = time.monotonic(), "checking" if download.checking else "downloading"
        title = f"{doing} {download.name}"
        if title != self._file:
            self._file, self._began_s, self._first_bytes = title, now, download.done_bytes
        elapsed = now - self._began_s
        rate = (download.done_bytes - self._first_bytes) / elapsed if elapsed > LEAST_SECONDS_FOR_RATE else None
        left = None
        if rate and download.total_bytes and not download.checking:
            left = (download.total_bytes - download.done_bytes + download.rest_bytes) / rate
        self._show(title, download.done_bytes, download.total_bytes, rate, left)

    def _show(
        self, title: str, done_bytes: int, total_bytes: int | None, rate: float | None, left_s: float | None
    ) -> None:
        from edgemoe.cli.terminal.figures import format_duration
        from edgemoe.sizes import format_size

        done = format_size(done_bytes)
        parts = [done if total_bytes is None else f"{done} of {format_size(total_bytes)}"]
        if rate is not None:
            parts.append(f"{format_size(rate)}/s")
        if left_s is not None:
            parts.append(f"about {format_duration(left_s)} left")
        self._bar.update(title, done_bytes, total_bytes, " · ".join(parts))
