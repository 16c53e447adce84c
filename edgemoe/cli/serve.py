"""`edgemoe serve`: a model behind HTTP, for programs and editors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgemoe.cli import options as shared
from edgemoe.cli.client_lines import Program, Served, lines_for
from edgemoe.cli.fetching import fetched
from edgemoe.cli.template_options import LiteralOption, TemplateVarOption, template_variables
from edgemoe.errors import UsageError

if TYPE_CHECKING:
    from edgemoe.server.settings import ServerSettings
    from edgemoe.session.model import Model

SEQUENCES = 4
KEY_VARIABLE = "EDGEMOE_API_KEY"
KEY_FILE_LIMIT_BYTES = 1 << 20


def serve(
    model: shared.ModelArgument = None,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            metavar="ADDRESS",
            help="Address to listen at, or several: 127.0.0.1,::1. Beyond this machine it needs a key.",
        ),
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
            "--cors",
            metavar="ORIGIN",
            help="Let web pages of an origin (https://app.example) ask; localhost for all of this machine, and with a"
            " key * for all. Can be repeated.",
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
    for_program: Annotated[
        Program | None,
        typer.Option("--for", help="Print how a program uses such a server, and serve nothing."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", metavar="N", help="Seed of answers whose request names none.", show_default="a new one for each"
        ),
    ] = None,
    template_var: TemplateVarOption = None,
    literal_prompt: LiteralOption = False,
    ram: shared.RamOption = None,
    threads: shared.ThreadsOption = None,
    device: shared.DeviceOption = None,
    vram: shared.VramOption = None,
    context: shared.ContextOption = None,
    kv: shared.KvOption = None,
    policy: shared.PolicyOption = "lru",
    prefetch: shared.PrefetchOption = "auto",
    no_warm_start: shared.NoWarmStartOption = False,
    prefix_disk: shared.PrefixDiskOption = None,
    speculate: shared.SpeculateOption = "auto",
    draft: shared.DraftOption = None,
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
    variables = template_variables(template_var)
    settings = ServerSettings(
        host, port, keys, tuple(cors or ()), queue, alias, literal=literal_prompt, template_variables=variables,
        seed=seed,
    )  # fmt: skip
    found, guesser = fetched(model), fetched(draft)
    if for_program is not None:
        typer.echo(lines_for(for_program, _as_clients_see_it(found, settings, context)))
        return

    from edgemoe.engine.options import EngineOptions
    from edgemoe.server.opening import open_to_serve

    options = EngineOptions(
        ram, threads, context, kv, policy, prefetch, not no_warm_start, sequences=sequences,
        prefix_disk=prefix_disk, speculate=shared.speculation(speculate), device=device, vram=vram,
    )  # fmt: skip
    server = Server(lambda: open_to_serve(found, options, variables, guesser), settings)
    server.on_ready = lambda opened: _greet(opened, server.url, prefix_disk, device)
    server.run()


def _as_clients_see_it(found: str | None, settings: ServerSettings, context: int | None) -> Served:
    """A server with these settings, as programs see it. Raises UsageError where its port is not known before."""
    from edgemoe.server.settings import server_url
    from edgemoe.session.default_model import model_name
    from edgemoe.session.stores import find_runnable

    if settings.port == 0:
        raise UsageError("--for: expected a port, found 0, which takes any.", "Give the --port of the server.")
    name = settings.name or model_name(find_runnable(found))
    key = KEY_VARIABLE if settings.api_keys else None
    return Served(server_url(settings.hosts[0], settings.port), name, context, key)


def _greet(model: Model, url: str, prefix_disk: str | None, device: str | None) -> None:
    """Tell on stderr what is served, and where."""
    from edgemoe.cli.chat import described
    from edgemoe.cli.remarks import device_remarks, model_remarks, print_remarks, tell_of_prefixes

    engine = model.engine
    tell_of_prefixes(model, prefix_disk)
    print_remarks([*model_remarks(model), *device_remarks(model, device)])
    print_remarks([
        described(model),
        f"{engine.sequences.most} answers at a time, {engine.context_length} tokens of context each",
        "how programs use it: edgemoe serve --for claude-code, codex, opencode or open-webui",
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
