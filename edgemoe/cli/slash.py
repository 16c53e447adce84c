"""The commands of the conversation loop."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgemoe.cli.options import parse_bias
from edgemoe.cli.terminal.figures import format_rate
from edgemoe.cli.tool_files import read_tools
from edgemoe.errors import UsageError
from edgemoe.model.sampling import SamplingOptions
from edgemoe.sizes import format_size

if TYPE_CHECKING:
    from edgemoe.cli.terminal.heatmap import HeatMap
    from edgemoe.cli.terminal.screen import Screen
    from edgemoe.session.chat import Answer, ChatSession
    from edgemoe.session.generate import Generation
    from edgemoe.session.model import Model

OFF = "off"

OPTIONS: dict[str, Callable[[str], Any]] = {
    "temperature": float, "top_k": int, "top_p": float, "min_p": float, "typical_p": float, "seed": int,
    "repetition_penalty": float, "presence_penalty": float, "frequency_penalty": float, "no_repeat_ngram_size": int,
    "stop": str, "logit_bias": lambda text: [parse_bias(part, "logit_bias") for part in text.split()],
    "max_tokens": int,
}  # fmt: skip
"""Options that `/set` changes, each with the parser of its value."""


class Conversation(Protocol):
    """The part of a conversation loop (`repl.Repl`) that commands use."""

    model: Model
    chat: ChatSession
    screen: Screen
    ended: bool
    live_map: bool
    last_generation: Generation | None

    def answer(self, answer: Answer) -> None:
        """Show an answer as it is generated."""

    def map(self, rows: int, columns: int) -> HeatMap | None:
        """The router's map of the last answer, folded to this size; None before the first."""


@dataclass(frozen=True)
class Command:
    """A command: its arguments, its help, and its action."""

    arguments: str
    help: str
    action: Callable[[Conversation, str], None]


def show_help(repl: Conversation, argument: str) -> None:
    """List the commands and keys."""
    rows = [(f"/{name} {command.arguments}".rstrip(), command.help) for name, command in COMMANDS.items()]
    keys = [
        ("//TEXT", "send a message that begins with a slash and the name of a command"),
        ("Alt-Enter, or \\ at the end", "begin a new line"),
        ("Ctrl-C", "stop the answer; its text so far is kept"),
        ("Ctrl-D", "quit"),
    ]
    repl.screen.table([*rows, *keys])


def set_system(repl: Conversation, argument: str) -> None:
    """Show or change the system message."""
    if argument:
        repl.chat.system = None if argument == OFF else argument
        repl.screen.note("takes effect with the next message")
    else:
        repl.screen.text(repl.chat.system or "(none: the template's own, if it has one)")


def reset(repl: Conversation, argument: str) -> None:
    """Begin a new conversation."""
    repl.chat.reset()
    repl.screen.note("a new conversation")


def undo(repl: Conversation, argument: str) -> None:
    """Remove the last message and its answer."""
    text = repl.chat.undo()
    repl.screen.note("there is nothing to undo" if text is None else f"undone: {_shortened(text)}")


def retry(repl: Conversation, argument: str) -> None:
    """Answer the last message again."""
    if repl.chat.options.temperature == 0:
        repl.screen.note("at temperature 0 the answer is always the same (/set temperature 0.7)")
    elif repl.chat.options.seed is not None:
        repl.screen.note("with a seed the answer is always the same (/set seed off)")
    repl.answer(repl.chat.retry())


def save(repl: Conversation, argument: str) -> None:
    """Write the conversation to a file."""
    path = _path(argument, "/save")
    repl.chat.save(path)
    repl.screen.note(f"saved to {path}")


def load(repl: Conversation, argument: str) -> None:
    """Load a saved conversation."""
    repl.chat.load(_path(argument, "/load"))
    turns = len(repl.chat.messages) // 2
    repl.screen.note(f"{turns} turns" if turns != 1 else "1 turn")
    if repl.chat.messages:
        repl.screen.note(f"last message: {_shortened(repl.chat.messages[-2]['content'])}")


def set_tools(repl: Conversation, argument: str) -> None:
    """Show the tools that the model may call, or load others."""
    chat = repl.chat
    if not argument:
        rows = [(str(tool["name"]), str(tool.get("description", ""))) for tool in chat.tools]
        repl.screen.table(rows or [("tools", "none")])
        return
    chat.tools = () if argument == OFF else read_tools(_path(argument, "/tools"))
    names = ", ".join(str(tool["name"]) for tool in chat.tools)
    told = f"the model may call {names}; your next message after a call is its result"
    repl.screen.note(told if names else "no tools")


def set_option(repl: Conversation, argument: str) -> None:
    """Show the options, or change one."""
    chat = repl.chat
    if not argument:
        options = {**chat.options.to_json(), "max_tokens": chat.max_tokens}
        # options that only a model's own settings give are shown if they have an effect
        shown = {name: value for name, value in options.items() if name in OPTIONS or value != _off(name)}
        repl.screen.table([(name, _option_text(value)) for name, value in shown.items()])
        return
    name, text = re.split(r"\s*=\s*|\s+|$", argument, maxsplit=1)[:2]
    name = name.replace("-", "_")
    if name not in OPTIONS and not (text == OFF and name in chat.options.to_json()):
        raise UsageError(f"there is no option {name}.", f"The options are {', '.join(OPTIONS)}.")
    try:
        value = _off(name) if text == OFF else OPTIONS[name](text)
    except ValueError:
        raise UsageError(f"{name}: expected a number, found '{text}'.", f"Such as /set {name} 1.") from None
    if name == "max_tokens":
        if value is not None and value < 1:
            raise UsageError(f"max_tokens: expected 1 or more, found {text}.", "/set max_tokens off removes the limit.")
        chat.max_tokens = value
    else:
        chat.options = replace(chat.options, **{name: value})
    repl.screen.note(f"{name} is {text}")


def _off(name: str) -> Any:
    """The value at which an option has no effect."""
    return SamplingOptions().to_json().get(name)


def _option_text(value: Any) -> str:
    return OFF if value is None or value == () else str(value)


def show_statistics(repl: Conversation, argument: str) -> None:
    """Show the context, the memory and the last answer's figures."""
    engine, memory = repl.model.engine, repl.model.engine.memory
    rows = [
        ("context", f"{repl.chat.held_tokens} of {repl.chat.context_length} tokens held"),
        ("kernels", f"{engine.backend.name} {engine.backend.isa}, {engine.backend.threads} threads"),
        ("budget", f"{format_size(memory.budget_bytes)} (floor {format_size(memory.floor_bytes)})"),
        ("  interpreter", format_size(memory.interpreter_bytes)),
        ("  dense weights", format_size(memory.dense_bytes)
         + ("" if memory.embedding_resident else ", the embedding read from disk")),
        ("  KV cache", f"{format_size(memory.kv_cache_bytes)} ({memory.kv_format})"),
        *([("  fixed state", f"{format_size(memory.fixed_state_bytes)} ({memory.snapshots} snapshots)")]
          if memory.fixed_state_bytes else []),
        ("  workspace", format_size(memory.workspace_bytes)),
        *([("  draft model", format_size(memory.draft_model_bytes))] if memory.draft_model_bytes else []),
        ("  expert slots", f"{format_size(memory.experts_bytes)}"
         f" ({memory.slots} slots for {memory.total_experts} experts)"),
    ]  # fmt: skip
    if repl.chat.forgotten_turns:
        rows.append(("forgotten turns", str(repl.chat.forgotten_turns)))
    statistics = repl.last_generation.statistics if repl.last_generation else None
    if statistics:
        hit_rate = "-" if statistics.expert_hit_rate is None else f"{statistics.expert_hit_rate:.1%}"
        rows += [
            ("last answer", ""),
            ("  prompt", f"{statistics.prefill_tokens} new tokens,"
             f" {format_rate(statistics.prefill_tokens_per_s, 'tokens/s')}"),
            ("  decoding", format_rate(statistics.decode_tokens_per_s, "tokens/s")),
            ("  expert hits", hit_rate),
            ("  from disk", f"{format_size(statistics.disk_bytes_per_token)} per token"),
            ("  peak memory", format_size(statistics.peak_rss_bytes)),
        ]  # fmt: skip
    repl.screen.table(rows)


def toggle_map(repl: Conversation, argument: str) -> None:
    """Turn the live map of the router on or off, and draw that of the last answer."""
    if not repl.model.engine.expert_uses.shape[1]:
        raise UsageError("this model has no routed experts.", "There is nothing to draw.")
    repl.live_map = not repl.live_map if not argument else argument != OFF
    if not repl.live_map:
        repl.screen.note("the map is off")
        return
    heat_map = repl.map(*repl.screen.map_size)
    if heat_map is not None:
        repl.screen.heat_map(heat_map)
    repl.screen.note("the map is drawn with each answer; /experts turns it off")


def quit_repl(repl: Conversation, argument: str) -> None:
    """End the conversation."""
    repl.ended = True


COMMANDS: dict[str, Command] = {
    "help": Command("", "this list", show_help),
    "system": Command("[TEXT|off]", "show or change the system message", set_system),
    "reset": Command("", "begin a new conversation; the system message stays", reset),
    "undo": Command("", "remove the last message and its answer", undo),
    "retry": Command("", "answer the last message again", retry),
    "save": Command("FILE", "write the conversation to a file", save),
    "load": Command("FILE", "load a saved conversation", load),
    "tools": Command("[FILE|off]", "show, or load from a JSON file, tools that the model may call", set_tools),
    "set": Command("[NAME VALUE]", f"show or change {', '.join(OPTIONS)}", set_option),
    "stats": Command("", "context, memory, and figures of the last answer", show_statistics),
    "experts": Command("[on|off]", "draw which experts the routers choose, live", toggle_map),
    "quit": Command("", "end the conversation", quit_repl),
}


OTHER_NAMES = {"exit": "quit", "bye": "quit", "clear": "reset", "new": "reset", "?": "help"}
"""Names of these commands in other programs."""


def resembled(name: str) -> str | None:
    """The command that an unknown name most resembles, or None."""
    if name in OTHER_NAMES:
        return OTHER_NAMES[name]
    begun = [command for command in COMMANDS if name and command.startswith(name)]
    alike = difflib.get_close_matches(name.lower(), COMMANDS, n=1, cutoff=0.7)
    return next(iter([*begun, *alike]), None)


def _path(argument: str, command: str) -> Path:
    if not argument:
        raise UsageError(f"{command}: expected the name of a file.", f"Such as {command} talk.json.")
    return Path(os.path.expanduser(argument))  # noqa: PTH111 (it leaves an unknown ~user as it is)


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:59]}…"
