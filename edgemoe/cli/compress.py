"""`edgemoe compress`: makes a store with fewer experts in each layer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgemoe.cli import options as shared
from edgemoe.cli.convert import BLAS_THREADS
from edgemoe.cli.json_text import write_json
from edgemoe.cli.text_files import read_text_file
from edgemoe.errors import UsageError

if TYPE_CHECKING:
    from edgemoe.bench.evaluation_report import EvaluationReport

DEFAULT_TOKENS = 16384
HELD_OUT_TOKENS = 4096
HELD_OUT_SHARE = 0.2
"""The share of a text, its end, on which the divergence is measured where no other text is given for that."""


def compress(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Folder of a store, or name of a model.")],
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="Folder of the new store.")],
    keep: Annotated[
        str, typer.Option("--keep", metavar="SHARE", help="Share of each layer's experts that is left, such as 75%.")
    ] = "50%",
    prune: Annotated[
        str | None,
        typer.Option(
            "--prune",
            metavar="METHOD",
            help="Leave experts out, bit for bit unchanged otherwise: REAP (those that add least), frequency (those"
            " that are used least) or random.",
        ),
    ] = None,
    merge: Annotated[
        str | None,
        typer.Option(
            "--merge",
            metavar="METHOD",
            help="Make one expert of several: HC-SMoE (those whose mean outputs are near, by their use) or average"
            " (neighbours, all alike).",
        ),
    ] = None,
    aggregate: Annotated[
        bool,
        typer.Option(
            "--aggregate", help="Make a dense model: all experts of a layer become one FFN, the mean by their weights."
        ),
    ] = False,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="Text (UTF-8) by which experts are weighed, of the kind that the model is for.",
            show_default="Python's own help",
        ),
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", metavar="N", help="Weigh by the first N tokens.")] = DEFAULT_TOKENS,
    held_out: Annotated[
        Path | None,
        typer.Option(
            "--held-out",
            metavar="FILE",
            help="Text on which the divergence is measured.",
            show_default="the last fifth of the text, which then weighs nothing",
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the measured divergence as JSON.")
    ] = None,
    debug: shared.DebugOption = False,
) -> None:
    """Make a store that has fewer experts in each layer, or none, and measure what that costs.

    The new store runs like any other. Its divergence from the old one is measured on text by which no expert was
    weighed: KL divergence, perplexity of both, and how often the likeliest token is the same.
    """
    os.environ.setdefault(BLAS_THREADS, "1")  # read when numpy is first imported; the kernels have threads of their own
    from edgemoe.analysis.aggregate import mean_weights, write_aggregated
    from edgemoe.analysis.choices import WITHOUT_TEXT, Method, choices
    from edgemoe.analysis.compress import check_destination, check_store, router_groups, write_compressed
    from edgemoe.cli.terminal.render import ProgressBar
    from edgemoe.session.calibration_text import default_text
    from edgemoe.session.cut_texts import CutTexts, described, held_back
    from edgemoe.session.default_model import find_model
    from edgemoe.sizes import format_size
    from edgemoe.store.reader import Store

    if aggregate and (prune is not None or merge is not None):
        raise UsageError("--aggregate takes the place of --prune and --merge: expected one of them.", "Leave one out.")
    method = None if aggregate else Method.of(prune, merge, keep)
    path = check_destination(destination)
    write_figures = shared.file_writer(json_file, write_json)
    name, content = ("Python's help", default_text()) if text is None else (text.name, read_text_file(text))
    if held_out is not None:
        other_name, other = held_out.name, read_text_file(held_out, "--held-out")
    else:
        other_name = f"the end of {name}"
        content, other = held_back(content, HELD_OUT_SHARE)
    opened = Store.open(find_model(store))
    spec = check_store(opened)
    windows, how = None, "aggregated" if method is None else f"{method.name}, {keep} of experts"
    if method is None or method.name not in WITHOUT_TEXT:
        windows = CutTexts.of(opened, [(name, content)], tokens).windows
        how += f", {described(name, content, tokens)}"
    with ProgressBar("weighing experts", still=True) as bar:

        def show(done: int, total: int) -> None:
            bar.update("weighing experts", done, total, f"layer {done} of {total}")

        if method is None:
            assert windows is not None
            write_aggregated(opened, path, mean_weights(opened, windows, show), how)
        else:
            chosen = choices(opened, method, spec.routed, router_groups(spec), windows, show)
            write_compressed(opened, path, chosen, how)
    made = Store.open(path)
    left, before = len(made.manifest.records), len(opened.manifest.records)
    sizes = f"{format_size(made.manifest.total_bytes)} of {format_size(opened.manifest.total_bytes)}"
    typer.echo(f"{destination}: {left} of {before} experts, {sizes}.")
    report = _measure(opened.path, path, other_name, other)
    write_figures(report)
    _tell(report)


def _measure(before: Path, after: Path, name: str, text: str) -> EvaluationReport:
    """Run both models on the text that weighed nothing."""
    from edgemoe.bench.evaluation import Evaluation, Settings
    from edgemoe.cli.terminal.render import ProgressBar
    from edgemoe.engine.options import EngineOptions

    with ProgressBar("measuring", still=True) as bar:
        evaluation = Evaluation(
            text,
            name,
            Settings(tokens=HELD_OUT_TOKENS),
            EngineOptions(),
            lambda doing, done, total: bar.update(doing, done, total, ""),
        )
        return evaluation.run([after], before)


def _tell(report: EvaluationReport) -> None:
    from edgemoe.cli.terminal.eval_tables import estimate_text

    (result,) = report.models
    divergence, reference = result.divergence, report.reference
    assert divergence is not None
    assert reference is not None
    assert reference.perplexity is not None
    typer.echo(f"measured on {result.positions} tokens of {report.text}:")
    typer.echo(f"  KL divergence {estimate_text(divergence.nats, '.4f')} nats")
    typer.echo(f"  perplexity {reference.perplexity.mean:.2f} before, {result.perplexity.mean:.2f} after")
    typer.echo(f"  the same likeliest token at {divergence.same_top.mean:.1%} of positions")
