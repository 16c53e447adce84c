"""Recording routing while a verb does its work: `--trace FILE`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgemoe.cli.options import check_writable
from edgemoe.cli.parameters import with_flags
from edgemoe.cli.terminal.text import printable
from edgemoe.errors import TraceError

if TYPE_CHECKING:
    from edgemoe.engine.engine import Engine


@dataclass(frozen=True)
class TraceFile:
    """Where a trace is to be written, and how it is reported."""

    path: Path
    table: bool = False
    """Whether the summary is a table on stdout, rather than a line on stderr."""


def trace_file(name: str, table: bool = False) -> TraceFile:
    """The file that an option names, checked before a model is opened. Raises UsageError if it cannot be written."""
    from edgemoe.lab.trace import check_trace_name

    check_trace_name(name)
    check_writable(Path(name))
    return TraceFile(Path(name), table)


TraceOption = Annotated[
    TraceFile | None,
    typer.Option("--trace", metavar="FILE", parser=trace_file, help="Record which experts the routers choose."),
]


@contextmanager
def traced(engine: Engine, target: TraceFile | None) -> Iterator[None]:
    """Within it the engine's routing is recorded, if `target` is given; then a summary is printed.

    A full disk is reported at once; the answer goes on.
    """
    if target is None:
        yield
        return
    from edgemoe.lab.recorder import recording
    from edgemoe.session.default_model import model_name

    name = model_name(engine.store.path)
    with recording(engine, target.path, report_failure, name) as recorder:
        yield
    if target.table:
        from edgemoe.cli.terminal.screen import open_screen

        open_screen().table(summary_rows(recorder.summary()), "trace")
    else:
        report_summary(recorder.summary())


def report_summary(summary: Mapping[str, Any]) -> None:
    """Print the summary as one line on stderr."""
    distinct = summary["distinct_experts"]
    print(
        f"trace: {summary['tokens']} tokens; {sum(distinct) / len(distinct):.1f} of {summary['experts']} experts used"
        f" in a layer; {_size(summary['file_bytes'])} in {printable(summary['path'])}",
        file=sys.stderr,
    )


def summary_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows of the summary for a table, longer than the line of `report_summary`."""
    distinct, experts = summary["distinct_experts"], summary["experts"]
    there = summary["resident_uses"] / summary["uses"] if summary["uses"] else None
    turns = "1 turn" if summary["turns"] == 1 else f"{summary['turns']} turns"
    return [
        ("file", f"{printable(summary['path'])}, {_size(summary['file_bytes'])}"),
        ("tokens", f"{summary['prompt_tokens']} of prompts, {summary['decode_tokens']} generated, in {turns}"),
        ("experts used", f"{sum(distinct) / len(distinct):.1f} of {experts} in a layer ({min(distinct)} to"
         f" {max(distinct)}), {summary['experts_used']} for each token"),
        ("by layer", " ".join(map(str, distinct))),
        ("in memory", "-" if there is None else f"{there:.1%} of the uses, when the router asked"),
    ]  # fmt: skip


def report_failure(error: TraceError | str) -> None:
    """Print one line on stderr: the trace ends here."""
    print(
        f"error: {printable(with_flags(str(error)))} The trace ends there; the command continues.",
        file=sys.stderr,
        flush=True,
    )


def _size(count: int) -> str:
    from edgemoe.sizes import format_size

    return format_size(count)
