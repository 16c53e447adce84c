"""`edgemoe serve`: a model behind HTTP, for programs and editors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgemoe.cli import options as shared
from edgemoe.cli.fetching import fetched
from edgemoe.cli.template_options import LiteralOption
from edgemoe.errors import UsageError

if TYPE_CHECKING:
    from edgemoe.session.model import Model

SEQUENCES = 4
KEY_VARIABLE = "EDGEMOE_API_KEY"
KEY_FILE_LIMIT_BYTES = 1 << 20


def serve(
    model: shared.ModelArgument = None,
    host: Annotated[
        str,
        typer.Option("--host", metavar="ADDRESS", help="Address to listen at; beyond this machine it needs a key."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", help="Port to listen at; 0 takes a free one.")] = 8080,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file",
            metavar="FILE",
            help=f"File with API keys, one in each line, of which clients need one. The variable {KEY_VARIABLE} holds a"
            " single one.",
        ),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(
            "--cors", metavar="ORIGIN", help="Let web pages of an origin (https://app.example) ask. Can be repeated."
        ),
    ] = None,
    sequences: Annotated[
        int,
        typer.Option("--sequences", metavar="N", help="Answers written at a time, each with a context of its own."),
    ] = SEQUENCES,
    queue: Annotated[
        int, typer.Option("--queue", metavar="N", help="Answers that may wait; more are refused with status 429.")
    ] = 32,
    alias: Annotated[
        str | None,
        typer.Option(
            "--alias", metavar="NAME", help="The model's name for clients.", show_default="its folder's or file's"
        ),
    ] = None,
    literal_prompt: LiteralOption = False,
    ram: shared.RamOption = None,
    threads: shared.ThreadsOption = None,
    context: shared.ContextOption = None,
    kv: shared.KvOption = None,
    policy: shared.PolicyOption = "lru",
    prefetch: shared.PrefetchOption = "auto",
    no_warm_start: shared.NoWarmStartOption = False,
    debug: shared.DebugOption = False,
) -> None:
    """Serve a model to programs that speak to OpenAI, Anthropic or llama-server, and to a browser. Ctrl-C stops it.

    An answer depends on its request alone: not on who else asks, nor on the memory budget.
    """
    try:
        from edgemoe.server.guard import read_keys
        from edgemoe.server.server import Server
        from edgemoe.server.settings import ServerSettings
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("starlette", "uvicorn", "h11"):
            raise
        raise UsageError(
            f"edgemoe serve needs the package {package}.",
            "Install what it needs: pip install 'edgemoe[serve]', or -e '.[serve]' in a checkout.",
        ) from None
    keys = () if api_key_file is None else read_keys(_key_lines(api_key_file))
    if own := os.environ.get(KEY_VARIABLE):
        keys = (*keys, own)
    settings = ServerSettings(host, port, keys, tuple(cors or ()), queue, alias, literal=literal_prompt)
    found = fetched(model)

    from edgemoe.engine.options import EngineOptions
    from edgemoe.server.opening import open_to_serve

    options = EngineOptions(ram, threads, context, kv, policy, prefetch, not no_warm_start, sequences=sequences)
    server = Server(lambda: open_to_serve(found, options), settings)
    server.on_ready = lambda opened: _greet(opened, server.url)
    server.run()


def _greet(model: Model, url: str) -> None:
    """Tell on stderr what is served, and where."""
    from edgemoe.cli.chat import described
    from edgemoe.cli.remarks import model_remarks, print_remarks

    engine = model.engine
    print_remarks(model_remarks(model))
    print_remarks([
        described(model),
        f"{engine.sequences.most} answers at a time, {engine.context_length} tokens of context each",
        f"serving at {url} (a page for people; OpenAI: {url}/v1); Ctrl-C stops",
    ])  # fmt: skip


def _key_lines(path: Path) -> list[str]:
    """The lines of a file with keys. Raises UsageError for one that others may read, or without any key."""
    if path.stat().st_mode & 0o077:
        raise UsageError(f"{path}: other users may read these keys.", f"Keep it to yourself: chmod 600 {path}.")
    text = shared.utf8(path.read_bytes()[:KEY_FILE_LIMIT_BYTES], str(path))
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise UsageError(f"{path}: expected at least one API key, found none.", "Write one in each line.")
    return lines
