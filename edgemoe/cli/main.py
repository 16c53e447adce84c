"""The `edgemoe` command: finds the verb, imports only its module, and shows errors as one paragraph."""

from __future__ import annotations

import errno
import functools
import importlib
import os
import sys
import traceback
from typing import Annotated, Any, TextIO

import typer
import typer.core

from edgemoe.cli.interrupts import TERMINATION
from edgemoe.cli.parameters import with_flags
from edgemoe.cli.terminal.text import printable
from edgemoe.errors import INTERRUPTED, EdgemoeError, UsageError
from edgemoe.process import no_threads, start_threads

VERBS = {
    "chat": "Chat with a model.",
    "run": "Answer one prompt, or continue a text.",
    "serve": "Serve a model to programs over HTTP.",
    "pull": "Download a model of the Hugging Face hub.",
    "list": "Show the downloaded models.",
    "rm": "Remove a downloaded model.",
    "convert": "Convert a checkpoint into a store, the folder format that edgemoe runs.",
    "upcycle": "Make a mixture of experts of a dense checkpoint.",
    "compress": "Make a store with fewer experts, and measure what that costs.",
    "export": "Write a store as a GGUF file.",
    "synth": "Make a store of random weights in the shape of a real model.",
    "verify": "Check every byte of a store against its checksums.",
    "update": "Replace a store's tokenizer, chat template and settings.",
    "inspect": "Show a store's parts and sizes.",
    "plan": "Show how a model would fit and run in a memory budget, before conversion.",
    "trace": "Record which experts the routers choose.",
    "analyse": "Show what a model's experts do on a text, layer by layer.",
    "eval": "Measure models' perplexity on a text, and their divergence from a reference.",
    "bench": "Measure a model's speed, and where the time goes.",
    "replay": "Show the hit rates of an expert cache on recorded routing.",
    "info": "Show this machine, its limits, and how a model would run on it.",
}

CommandLineError: Any = typer.BadParameter.__base__
"""Raised by typer for arguments that it cannot parse."""


NO_THREAD = "can't start new thread"
"""Message of Python's RuntimeError if the system refuses to start a thread."""


@functools.cache  # a program that runs many commands makes each verb once, at 10 ms
def verb_command(name: str) -> Any:
    """The command of a verb."""
    module = importlib.import_module(f"edgemoe.cli.{name}")
    verb = typer.Typer(add_completion=False, rich_markup_mode=None)
    verb.command(name)(getattr(module, name))
    return typer.main.get_command(verb)


class LazyVerbs(typer.core.TyperGroup):
    """The verbs, each imported from the module of the same name when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERBS:
            return None
        return verb_command(cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


app = typer.Typer(
    cls=LazyVerbs,
    add_completion=False,
    rich_markup_mode=None,  # rich would cost as much as all the rest of --help
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def edgemoe(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with errors.")] = False,
) -> None:
    """Run Mixture-of-Experts language models that are larger than memory, on the CPU of a laptop."""
    if version:
        from importlib.metadata import version as installed_version

        typer.echo(f"edgemoe {installed_version('edgemoe')}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """The entry point of the `edgemoe` command."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        # characters that a terminal cannot show are replaced by a mark
        getattr(stream, "reconfigure", lambda **_: None)(errors="replace")
    TERMINATION.watch()
    try:
        code = run_command(sys.argv[1:])
    except BaseException as error:
        if TERMINATION.code is None and not isinstance(error, OSError):
            raise
        code = 1  # stderr itself cannot be written to: the terminal is gone
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _leave(stream)
    sys.exit(code if TERMINATION.code is None else TERMINATION.code)


def run_command(arguments: list[str]) -> int:
    """Run the command line; returns the exit code: 0, 1 for errors, 2 for usage, 130 for Ctrl-C.

    SIGTERM and a closed terminal raise Terminated; `main` ends with 143 and 129.
    """
    debug = "--debug" in arguments
    command = typer.main.get_command(app)
    try:
        code = command.main(args=arguments, prog_name="edgemoe", standalone_mode=False) or 0
        return _interrupted(debug) if code == INTERRUPTED else code
    except (KeyboardInterrupt, typer.Abort) as stopped:
        if isinstance(stopped.__cause__, EOFError):  # typer reports Ctrl-D at a question; edgemoe asks none
            return _report_fault(stopped.__cause__, debug)
        return _interrupted(debug)
    except BrokenPipeError:
        _leave(sys.stdout)
        return 1
    except CommandLineError as error:
        return _report(UsageError(*_usage_message(error)), debug)
    except EdgemoeError as error:
        return _report(error, debug)
    except OSError as error:
        if error.errno == errno.EAGAIN and not error.filename:
            return _report(no_threads("the command cannot go on"), debug, error)
        place = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        way_out = (
            "Free some space, then run the command again." if full else "Check that it exists and that you have access."
        )
        shown = EdgemoeError(f"{place}{error.strerror or error}.", way_out)
        return _report(shown, debug, error)
    except MemoryError as error:
        return _report(
            EdgemoeError("there is not enough memory.", "Give a smaller --ram, or close other programs."), debug, error
        )
    except Exception as error:
        if isinstance(error, RuntimeError) and str(error) == NO_THREAD:
            return _report(no_threads("the command cannot go on"), debug, error)
        return _report_fault(error, debug)


def _open_closed_streams() -> None:
    """Opens /dev/null in place of closed standard streams, so that no other file gets descriptor 0, 1 or 2."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8"))


def _usage_message(error: Any) -> tuple[str, str]:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "edgemoe"
    message = error.format_message().strip()
    return message if message.endswith((".", "?")) else f"{message}.", f"See {path} --help."


def _report(error: EdgemoeError, debug: bool, cause: BaseException | None = None) -> int:
    if debug:
        traceback.print_exception(cause or error, file=sys.stderr)
    print(f"error: {printable(with_flags(str(error)))}", file=sys.stderr)
    return error.exit_code


def _interrupted(debug: bool) -> int:
    """The exit code of an interrupted command; that of an error if no person interrupted it.

    OpenBLAS, which comes with NumPy, raises SIGINT if the system refuses it a thread (blas_server.c).
    """
    return INTERRUPTED if start_threads(1, lambda: None) else _report(no_threads("the command cannot go on"), debug)


def _report_fault(error: Exception, debug: bool) -> int:
    unexpected = EdgemoeError(
        f"internal error: {type(error).__name__}: {error}.",
        "This is a bug in edgemoe: run the command again with --debug and report the traceback.",
    )
    return _report(unexpected, debug, error)


def _leave(stream: TextIO) -> None:
    """Redirect a stream to /dev/null after its reader has closed the pipe or the terminal.

    Python flushes it again at the exit, and would end with code 120 if that failed.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
