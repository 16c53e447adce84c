"""`edgemoe trace`: records which experts the routers choose."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgemoe.cli import options as shared
from edgemoe.cli.compiling import report_compilation
from edgemoe.cli.fetching import fetched
from edgemoe.cli.interrupts import on_interrupt
from edgemoe.cli.terminal.text import printable
from edgemoe.cli.tracing import TraceFile, trace_file, traced
from edgemoe.errors import INTERRUPTED, TraceError, UsageError

if TYPE_CHECKING:
    from edgemoe.session.model import Model

IDS_LIMIT_BYTES = 16 << 20
RANDOM_MAX = 1 << 20


def trace(
    model: shared.ModelArgument = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Output file of the trace.")] = None,
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", metavar="TEXT", help="Answer a prompt; - reads it from stdin.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue TEXT as plain text, without the chat template.")] = False,
    ids: Annotated[Path | None, typer.Option("--ids", metavar="FILE", help="Continue the token ids in a file.")] = None,
    random: Annotated[
        int | None,
        typer.Option("--random", metavar="N", help="Read a prompt of N random ids, then random ids one by one."),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Record a conversation.")] = False,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="TRACE", help="Rewrite a trace, also one in CSV; keeps the intact part of a damaged one."
        ),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", metavar="N", help="Maximum number of generated tokens.")
    ] = 256,
    system: shared.SystemOption = None,
    temperature: shared.TemperatureOption = None,
    seed: shared.SeedOption = None,
    ram: shared.RamOption = None,
    threads: shared.ThreadsOption = None,
    context: shared.ContextOption = None,
    kv: shared.KvOption = None,
    debug: shared.DebugOption = False,
) -> None:
    """Record which experts the routers choose while a model answers, talks, or reads random tokens.

    Give one of -p, --ids, --random, --chat and --from.
    """
    given = [prompt is not None, ids is not None, random is not None, chat, source is not None]
    if sum(given) != 1:
        raise UsageError(
            f"expected one of -p, --ids, --random, --chat and --from, found {sum(given) or 'none'} of them.",
            "See edgemoe trace --help.",
        )
    if out is None:
        raise UsageError("the trace has no output file: expected --out FILE.", "See edgemoe trace --help.")
    if max_tokens < 1:
        raise UsageError(f"--max-tokens: expected 1 or more, found {max_tokens}.", "See edgemoe trace --help.")
    if raw and (prompt is None or system is not None):
        raise UsageError("--raw continues a plain text: expected -p and no --system.", "Leave --raw or the others out.")
    if random is not None and not 1 <= random <= RANDOM_MAX:
        raise UsageError(f"--random: expected 1 to {RANDOM_MAX} tokens, found {random}.", "For example: --random 32.")
    target = trace_file(str(out), table=True)
    if source is not None:
        if model is not None:
            raise UsageError("--from takes no model.", "Leave MODEL out.")
        _rewrite(source, target)
    elif prompt is not None:
        from edgemoe.cli.run import run

        run(
            model, prompt, max_tokens, temperature, seed=seed, system=system, raw=raw, ram=ram, threads=threads,
            context=context, kv=kv, trace=target,
        )  # fmt: skip
    elif chat:
        from edgemoe.cli.chat import chat as talk

        talk(
            model, system, max_tokens=max_tokens, temperature=temperature, seed=seed, ram=ram, threads=threads,
            context=context, kv=kv, trace=target,
        )  # fmt: skip
    else:
        from edgemoe.engine.options import EngineOptions
        from edgemoe.session.model import load

        prompt_ids = _read_ids(ids) if ids is not None else None
        with (
            load(fetched(model), EngineOptions(ram, threads, context, kv, warm_start=True)) as opened,
            report_compilation(opened),
        ):
            stopped = Stop()
            with traced(opened.engine, target), on_interrupt(stopped):
                if prompt_ids is not None:
                    sampling = shared.sampling_options(opened, temperature=temperature, seed=seed)
                    generation = opened.stream(prompt_ids, max_tokens, sampling)
                    stopped.then = generation.stop
                    for _ in generation:
                        pass
                else:
                    assert random is not None
                    _read_random(opened, random, max_tokens, seed or 0, stopped)
        if stopped.asked:
            raise typer.Exit(INTERRUPTED)


class Stop:
    """A callable that requests a stop: sets `asked`, and calls `then`, which stops the work at once if it can."""

    def __init__(self) -> None:
        self.asked = False
        self.then: Callable[[], None] = lambda: None

    def __call__(self) -> None:
        self.asked = True
        self.then()


def _read_random(model: Model, prompt_tokens: int, max_tokens: int, seed: int, stop: Stop) -> None:
    """Read a prompt of random ids, then random ids one by one: a model of random weights would repeat one token."""
    import numpy as np

    from edgemoe.session.generate import check_prompt_length

    engine = model.engine
    chunk_tokens = engine.memory.chunk_tokens
    check_prompt_length(prompt_tokens + max_tokens, engine.context_length)
    token_ids = np.random.default_rng(seed).integers(0, model.spec.vocab_size, prompt_tokens + max_tokens).tolist()
    engine.turn.begin()
    prompt = token_ids[:prompt_tokens]
    if model.held.start is not None:
        model.held.read(prompt)
        prompt = model.held.start
    for first in range(0, len(prompt), chunk_tokens):
        if not stop.asked:
            model.held.forward(prompt[first : first + chunk_tokens])
    engine.turn.begin_decoding()
    for token in token_ids[prompt_tokens:]:
        if stop.asked:
            break
        model.held.forward([token])


def _read_ids(path: Path) -> list[int]:
    """The token ids in a file: whole numbers separated by spaces or commas, in brackets or not."""
    try:
        with path.open("rb") as file:
            data = file.read(IDS_LIMIT_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error}).", "Give a file of token ids.") from None
    if len(data) > IDS_LIMIT_BYTES:
        raise UsageError(f"{path}: expected at most {IDS_LIMIT_BYTES >> 20} MiB, found more.", "Give fewer ids.")
    words = re.split(r"[\s,]+", shared.utf8(data, str(path)).strip().strip("[]").strip())
    wrong = next((word for word in words if not re.fullmatch(r"[0-9]{1,9}", word)), None)
    if wrong is not None:
        raise UsageError(f"{path}: expected token ids, found {wrong[:40]!r}.", "For example: 12 7 9, or a JSON list.")
    return [int(word) for word in words]


def _rewrite(source: Path, target: TraceFile) -> None:
    """Copy a trace to a new file; of a trace with a damaged end, the intact part. Raises TraceError, UsageError."""
    from edgemoe.lab.trace import read_trace, write_trace

    if target.path.exists() and source.exists() and target.path.samefile(source):
        raise UsageError(f"{source}: --out is the same file as --from.", "Give it another name.")
    try:
        trace = read_trace(source)
    except TraceError as error:
        trace = read_trace(source, whole_blocks_only=True)
        print(f"{printable(error.message)} The intact part is kept.", file=sys.stderr)
    write_trace(target.path, trace)
    print(f"{target.path}: {trace.tokens} tokens, {len(trace)} rows.")
