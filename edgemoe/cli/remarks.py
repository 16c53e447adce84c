"""Lines about an answer that its text does not show: why it ended, and settings of the model that edgemoe ignores."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from edgemoe.cli.terminal.text import printable

if TYPE_CHECKING:
    from edgemoe.engine.prompt_times import PromptEstimate
    from edgemoe.session.model import Model


def cut_remark(finish_reason: str | None, tokens: int, other_way: str = "") -> str | None:
    """The line about an answer that was cut, with the option for a longer one; None for any other answer."""
    if finish_reason == "length":
        return f"the answer was cut at {tokens} tokens: --max-tokens N{other_way} allows more"
    if finish_reason == "context":
        return f"the answer was cut at {tokens} tokens, where the context is full: --context N may allow more"
    return None


def model_remarks(model: Model, raw_ids: Sequence[int] = ()) -> list[str]:
    """Lines about the model's settings and tokenizer, and about the ids of a raw prompt, that the user should know."""
    remarks = list(model.engine.store.notices)
    if left_out := model.generation_defaults.not_honoured:
        settings = ", ".join(f"{name} ({_shortened(str(value))})" for name, value in left_out.items())
        remarks.append(f"edgemoe does not implement these settings of the model's generation_config.json: {settings}")
    remarks += model.tokenizer.remarks
    if raw_ids and (token := model.tokenizer.doubled_beginning(raw_ids)):
        remarks.append(
            f"the prompt begins with {token}, and the tokenizer adds another one, which can make answers worse:"
            f" leave {token} out of the text."
        )
    return [f"warning: {remark}" for remark in remarks]


def device_remarks(model: Model, device: str | None) -> list[str]:
    """Lines about a device that was asked for and does not run: none works, it is too small, or it failed meanwhile."""
    backend = model.engine.backend
    if device in (None, "cpu"):
        return []
    if backend.device is not None:
        if any(segment.on_device for segment in getattr(backend, "segments", ())):
            return []
        too_small = "has room for no part of this model in its budget (edgemoe plan says what it takes)"
        return [f"warning: the device {backend.device} {too_small}: the processor runs it all"]
    failure = getattr(backend, "failure", None)
    if failure is None:
        return ["warning: there is no device that works (edgemoe info --measure says why): the processor runs it all"]
    return [f"warning: {failure.message} The processor went on, to the same answer."]


def prompt_remark(estimate: PromptEstimate) -> str:
    """The line about a prompt that takes long: how long until the first token."""
    (least, unit), (most, most_unit) = _duration(estimate.least_seconds), _duration(estimate.most_seconds)
    if (least, unit) == (most, most_unit):
        time = f"about {most} {unit}"
    else:
        time = f"between {least} {unit if unit != most_unit else ''}".rstrip() + f" and {most} {most_unit}"
    return f"a prompt of {estimate.tokens:,} tokens: {time} until the answer begins"


def _duration(seconds: float) -> tuple[str, str]:
    """A number and its unit."""
    return (f"{seconds:.0f}", "seconds") if seconds < 90 else (f"{seconds / 60:.0f}", "minutes")


def tell_of_prefixes(model: Model, size: str | None) -> None:
    """Let what happens to prefixes on disk be told, and now if none are kept though a size was given for them."""
    tier = model.engine.sequences.tier
    if tier is not None:
        tier.disk.tell = lambda text: print_remarks([f"warning: {text}"])
    elif size is not None:
        print_remarks(["warning: --prefix-disk has no effect with this model, or with these lossy settings"])


def print_remarks(remarks: Iterable[str | None]) -> None:
    """Write all remarks except None to stderr."""
    for remark in filter(None, remarks):
        print(printable(remark), file=sys.stderr, flush=True)


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"
