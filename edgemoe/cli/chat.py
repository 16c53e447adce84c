"""`edgemoe chat`: a conversation, on a terminal or through a pipe."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgemoe.cli import options as shared
from edgemoe.cli.fetching import fetched
from edgemoe.cli.starting import collection_paused
from edgemoe.cli.template_options import LiteralOption, TemplateVarOption, template_variables
from edgemoe.cli.tracing import TraceOption, traced
from edgemoe.errors import UsageError

if TYPE_CHECKING:
    from edgemoe.session.model import Model

LINE_LIMIT_BYTES = 16 << 20
MAX_TOKENS = 1024
"""The longest answer if neither the person nor the model sets a limit."""


def chat(
    model: shared.ModelArgument = None,
    system: shared.SystemOption = None,
    load: Annotated[Path | None, typer.Option("--load", metavar="FILE", help="Load a saved conversation.")] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            metavar="N",
            help="Maximum length of an answer in tokens.",
            show_default=f"the model's, or {MAX_TOKENS}",
        ),
    ] = None,
    temperature: shared.TemperatureOption = None,
    top_k: shared.TopKOption = None,
    top_p: shared.TopPOption = None,
    min_p: shared.MinPOption = None,
    seed: shared.SeedOption = None,
    repeat_penalty: shared.RepeatPenaltyOption = None,
    presence_penalty: shared.PresencePenaltyOption = None,
    frequency_penalty: shared.FrequencyPenaltyOption = None,
    stop: shared.StopOption = None,
    logit_bias: shared.LogitBiasOption = None,
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
    trace: TraceOption = None,
    cache_aware_routing: shared.CacheAwareOption = 0.0,
    drop_cold: shared.DropColdOption = 0.0,
    experts_per_token: shared.ExpertsPerTokenOption = None,
    on_miss: shared.OnMissOption = "wait",
    debug: shared.DebugOption = False,
) -> None:
    """Chat with a model. Without a terminal each line of stdin is a message, and answers are plain text on stdout."""
    shared.check_max_tokens(max_tokens, "chat")
    variables = template_variables(template_var)

    from edgemoe.cli.compiling import report_compilation
    from edgemoe.cli.lossy import lossy_line, report_lossy
    from edgemoe.cli.remarks import device_remarks, model_remarks, print_remarks, tell_of_prefixes
    from edgemoe.cli.repl import Repl
    from edgemoe.cli.terminal.screen import Plain, open_screen
    from edgemoe.engine.lossy import LossySettings
    from edgemoe.engine.options import EngineOptions
    from edgemoe.session.model import load as load_model

    asked = LossySettings(cache_aware_routing, drop_cold, experts_per_token, on_miss)
    options = EngineOptions(
        ram, threads, context, kv, policy, prefetch, not no_warm_start, lossy=asked,
        prefix_disk=prefix_disk, speculate=shared.speculation(speculate), device=device, vram=vram,
    )  # fmt: skip
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    screen = open_screen() if interactive else Plain()
    read = read_line
    if interactive:
        from edgemoe.cli.slash import COMMANDS
        from edgemoe.cli.terminal.prompt_input import prompt_reader

        read = prompt_reader({name: command.help for name, command in COMMANDS.items()})
    found, guesser = fetched(model), fetched(draft)
    # loaded last, so that the memory plan counts the imports above
    with screen.waiting("loading the model"), collection_paused():
        opened = load_model(found, options, guesser)
    with opened, report_compilation(opened), traced(opened.engine, trace):
        sampling = shared.sampling_options(
            opened, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed,
            repetition_penalty=repeat_penalty, presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty, stop=stop, logit_bias=logit_bias,
        )  # fmt: skip
        tell_of_prefixes(opened, prefix_disk)
        limit = max_tokens or opened.generation_defaults.max_tokens or MAX_TOKENS
        session = opened.chat(system, sampling, limit, variables, literal_prompt)
        if load is not None:
            session.load(Path(os.path.expanduser(load)))  # noqa: PTH111 (it leaves an unknown ~user as it is)
        effective = opened.engine.lossy
        repl = Repl(opened, session, screen, interactive)
        if not interactive:
            report_lossy(opened.path, asked, effective, model, ram)
            print_remarks(model_remarks(opened))
            repl.run(read)
            print_remarks(device_remarks(opened, device))
            return
        from edgemoe.cli.kept_chat import kept_if_ended, take_kept

        lossy = f"\n{lossy_line(opened.path, asked, effective, model, ram)}" if asked.on else ""
        screen.note(greeting(opened) + lossy)
        for remark in (*model_remarks(opened), *device_remarks(opened, device)):
            screen.note(remark)
        if kept := take_kept():
            screen.note(f"the last conversation was cut off and saved; to continue it: /load {kept}")
        with kept_if_ended(session):
            repl.run(read)


def greeting(model: Model) -> str:
    """Describe the open model and how it runs, in two quiet lines."""
    return f"{described(model)}\n/help for commands, Ctrl-D to quit"


def described(model: Model) -> str:
    """Describe the open model and how it runs, in one line."""
    from edgemoe.session.default_model import model_name
    from edgemoe.sizes import format_size

    engine, memory = model.engine, model.engine.memory
    if not memory.total_experts:
        experts = "no routed experts"
    elif memory.all_resident:
        experts = f"all {memory.total_experts} experts in memory"
    else:
        experts = f"{memory.slots} of {memory.total_experts} experts in memory at a time"
    if engine.backend.device is not None:
        experts += f" · with {engine.backend.device}"
    keys = " · keys and values in 8 bits" if memory.kv_format == "q8" else ""
    drafts = ""
    if model.draft_model is not None:
        name = model_name(model.draft_model.engine.store.path)
        drafts = f" · {name} drafts, in {format_size(memory.draft_model_bytes)}"
    return (
        f"{model_name(model.path)} · {experts} · budget {format_size(memory.budget_bytes)}"
        f" · {engine.backend.name} {engine.backend.isa}, {engine.backend.threads} threads{keys}{drafts}"
    )


def read_line() -> str | None:
    """The next message of a pipe: a line of stdin. Raises UsageError if it is not UTF-8 or is too long."""
    line = sys.stdin.buffer.readline(LINE_LIMIT_BYTES + 1)
    if len(line) > LINE_LIMIT_BYTES:
        raise UsageError(
            f"a line on stdin is too long: expected at most {LINE_LIMIT_BYTES >> 20} MiB.", "Split the line."
        )
    return shared.utf8(line, "a line on stdin").rstrip("\r\n") if line else None
