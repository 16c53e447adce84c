"""Options that several verbs share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgemoe.cli.parameters import flag
from edgemoe.errors import UsageError

if TYPE_CHECKING:
    from edgemoe.model.sampling import SamplingOptions
    from edgemoe.session.model import Model


def utf8(data: bytes, what: str) -> str:
    """Decode bytes from the user. Raises UsageError, naming the input as `what`, if they are not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{what} is not UTF-8: found byte 0x{data[error.start]:02x} at {error.start}.",
            "Convert it to UTF-8 first, for example with iconv.",
        ) from None


def utf8_argument(text: str, what: str) -> str:
    """Decode an argument as UTF-8, whatever encoding Python assumed for the terminal. Raises as `utf8`."""
    return utf8(os.fsencode(text), what)


def _system(text: str | None) -> str | None:
    return None if text is None else utf8_argument(text, "--system")


def _stop(texts: list[str] | None) -> list[str] | None:
    return [utf8_argument(text, "--stop") for text in texts] if texts else None


def _biases(texts: list[str] | None) -> list[tuple[int, float]] | None:
    return [parse_bias(text, "--logit-bias") for text in texts] if texts else None


def parse_bias(text: str, name: str) -> tuple[int, float]:
    """A token's id and its bias. Raises UsageError, which begins with `name`."""
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        way_out = "Such as 198=-100, after which token 198 never comes."
        raise UsageError(f"{name}: expected ID=BIAS, found {text}.", way_out) from None


ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="Folder of a store, GGUF file, Hugging Face id of a GGUF model (org/Model-GGUF:Q4_K_M), or name of a"
        " model. Default: the bundled model.",
    ),
]
DenseOption = Annotated[
    str | None,
    typer.Option(
        "--dense", metavar="FORMAT", help="Format of the dense weights, which every token reads.", show_default="q8"
    ),
]
HeadOption = Annotated[
    str | None,
    typer.Option(
        "--head",
        metavar="FORMAT",
        help="Format of the head, and of the embedding where both are one.",
        show_default="as --dense",
    ),
]
RamOption = Annotated[
    str | None,
    typer.Option(
        "--ram",
        metavar="SIZE",
        help="Memory budget of the whole process: a size such as 6GiB, floor (the least possible) or auto.",
        show_default="auto",
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", metavar="N", help="Number of compute threads.", show_default="physical cores")
]
ContextOption = Annotated[
    int | None,
    typer.Option("--context", metavar="N", help="Context length in tokens.", show_default="by model and budget"),
]
KvOption = Annotated[
    str | None,
    typer.Option(
        "--kv",
        metavar="FORMAT",
        help="Format of the KV cache: f16, or q8, which takes half the memory and changes answers slightly.",
        show_default="f16",
    ),
]
PolicyOption = Annotated[
    str,
    typer.Option(
        "--policy",
        metavar="NAME",
        help="Eviction policy of the expert cache: lru, lfu or lruf. Never changes an answer.",
    ),
]
PrefetchOption = Annotated[
    str,
    typer.Option(
        "--prefetch",
        metavar="WHEN",
        help="Prefetch experts before the router asks for them: on, off, or auto (by trial). Never changes an answer.",
    ),
]
NoWarmStartOption = Annotated[
    bool,
    typer.Option(
        "--no-warm-start",
        help="Do not load the last session's cached experts at start, and save no list of them at the end.",
    ),
]
PrefixDiskOption = Annotated[
    str | None,
    typer.Option(
        "--prefix-disk",
        metavar="SIZE",
        help="Keep what was computed of prompts and answers in files for later starts, at most SIZE in all (8GiB). They"
        " lie in your cache folder, and the texts can be guessed from them. Never changes an answer.",
        show_default="off",
    ),
]
SpeculateOption = Annotated[
    str,
    typer.Option(
        "--speculate",
        metavar="N",
        help="Run up to N guessed tokens beside each generated one: a number, auto (as many as pay here) or off."
        " Guesses repeat what followed the same words earlier. Never changes an answer.",
    ),
]
DraftOption = Annotated[
    str | None,
    typer.Option(
        "--draft",
        metavar="MODEL",
        help="Let a smaller model with the same tokens guess, in place of repetitions; named as MODEL is. It stays in"
        " memory, within --ram. Never changes an answer.",
        show_default="none",
    ),
]
CacheAwareOption = Annotated[
    float,
    typer.Option(
        "--cache-aware-routing",
        metavar="LAMBDA",
        help="Lossy, 0 to 1: how strongly routing prefers experts that are in memory.",
        show_default="0, off",
    ),
]
DropColdOption = Annotated[
    float,
    typer.Option(
        "--drop-cold",
        metavar="TAU",
        help="Lossy, 0 to 1: skip experts that are not in memory and weigh less than this share of a token's sum.",
        show_default="0, off",
    ),
]
OnMissOption = Annotated[
    str,
    typer.Option(
        "--on-miss",
        metavar="WAY",
        help="wait, or base (lossy): compute an expert that a generated token misses from its base plane.",
    ),
]
ExpertsPerTokenOption = Annotated[
    int | None,
    typer.Option(
        "--experts-per-token",
        metavar="K",
        help="Lossy: route each token to K experts, fewer than the model's own number.",
        show_default="the model's",
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="Run a part of the work on a device: cuda, opencl or metal, with a number or letters of a name if it is"
        " not the first (cuda:1), or auto, the first that works. Experimental: its speed is not measured. Never changes"
        " an answer.",
        show_default="cpu",
    ),
]
VramOption = Annotated[
    str | None,
    typer.Option(
        "--vram",
        metavar="SIZE",
        help="Memory budget on the device: a size such as 6GiB, auto, or floor, the least with which it runs all"
        " that it can but routed experts.",
        show_default="auto, 85 % of what is free there",
    ),
]
SystemOption = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="System message.", callback=_system)]
TemperatureOption = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        metavar="T",
        help="Sampling temperature; 0 always takes the most likely token.",
        show_default="the model's",
    ),
]
TopKOption = Annotated[
    int | None, typer.Option("--top-k", metavar="N", help="Sample from the N most likely tokens; 0: all.")
]
TopPOption = Annotated[
    float | None,
    typer.Option(
        "--top-p", metavar="P", help="Sample from the most likely tokens that together reach probability P; 1: all."
    ),
]
MinPOption = Annotated[
    float | None,
    typer.Option(
        "--min-p", metavar="P", help="Sample from tokens at least P times as likely as the most likely one; 0: all."
    ),
]
RepeatPenaltyOption = Annotated[
    float | None,
    typer.Option(
        "--repeat-penalty",
        metavar="R",
        help="Make tokens of the prompt and the answer less likely, such as 1.1; 1: off.",
    ),
]
PresencePenaltyOption = Annotated[
    float | None,
    typer.Option(
        "--presence-penalty", metavar="A", help="Subtract A from the logits of tokens that are in the answer; 0: off."
    ),
]
FrequencyPenaltyOption = Annotated[
    float | None,
    typer.Option(
        "--frequency-penalty",
        metavar="A",
        help="Subtract A from a token's logit once for each time it is in the answer; 0: off.",
    ),
]
StopOption = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", help="End the answer before this text. Can be repeated.", callback=_stop),
]
LogitBiasOption = Annotated[
    list[str] | None,
    typer.Option(
        "--logit-bias",
        metavar="ID=BIAS",
        help="Add BIAS (-100 to 100) to the logit of the token with this id. Can be repeated.",
        callback=_biases,
    ),
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", metavar="S", help="Random seed, which makes sampling reproducible.")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show a traceback with errors.")]
"""Read by `main`, at any place among the arguments."""


def speculation(text: str) -> str | int:
    """The number that `--speculate` gives, or its word, which `EngineOptions` checks."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else text


def sampling_options(model: Model, **given: Any) -> SamplingOptions:
    """The model's own options, except for those given that are not None. Raises UsageError for values out of range."""
    defaults = model.default_sampling
    try:
        return defaults.changed(**given)
    except UsageError as error:
        name, _, rest = error.message.partition(":")
        raise UsageError(f"{flag(name)}:{rest}", f"Leave {flag(name)} out for the model's own.") from None


def check_max_tokens(max_tokens: int | None, verb: str) -> None:
    """Raises UsageError, naming the verb's help, for a limit below one token."""
    if max_tokens is not None and max_tokens < 1:
        raise UsageError(f"--max-tokens: expected 1 or more, found {max_tokens}.", f"See edgemoe {verb} --help.")


def parse_counts(name: str, text: str, of: str) -> list[int]:
    """Numbers separated by commas; `name` is the flag's and `of` what it counts, for the UsageError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        raise UsageError(f"{name} {text}: expected numbers of {of}.")
    return [int(part) for part in parts]


def file_writer(path: Path | None, write: Callable[[Any, Path], None]) -> Callable[[Any], None]:
    """Return a function that writes a report to `path`; raises UsageError now, before minutes of work, if it cannot."""
    if path is None:
        return lambda written: None
    check_writable(path)
    return lambda written: write(written, path)


def check_writable(path: Path) -> None:
    """Raises UsageError if the path is not a writable file."""
    expected = "a file in a folder that exists and is yours"
    if path.is_dir() or not path.parent.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{path}: cannot be written: expected {expected}.", "Choose another name.")
