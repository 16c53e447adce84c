"""Settings for opening and running a model, shared by all of edgemoe's interfaces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edgemoe.engine.lossy import EXACT, LossySettings
from edgemoe.errors import UsageError
from edgemoe.experts.policy import DEFAULT_POLICY, make_policy
from edgemoe.experts.prefetch import PrefetchTrial
from edgemoe.kernels.select import check_device
from edgemoe.sizes import parse_size

MOST_SEQUENCES = 256
AUTO_DRAFTS = 7
"""The most drafts beside a token where their number is chosen by what they cost: kernels take 8 rows at a time."""
MOST_DRAFTS = 31


@dataclass(frozen=True)
class EngineOptions:
    """Settings of an engine. Only `kv` and `lossy` can change an answer. Raises UsageError for unknown values.

    Without a value `threads` is the number of physical cores that this process may use, and `context_length` the
    longest that the model and the budget allow.
    """

    ram: str | int | None = None
    """The memory budget: bytes, or text such as `512MiB`, `6GiB`, `floor` or `auto`; None is `auto`."""
    threads: int | None = None
    context_length: int | None = None
    """The number of positions in the KV cache, in tokens."""
    kv: str | None = None
    """The format of keys and values: `f16`, or `q8` in half the memory; None is `f16`, and float32 for a store with
    float32 weights."""
    policy: str = DEFAULT_POLICY
    """The replacement policy: which expert leaves the cache when another needs a slot (`experts/policy.py`)."""
    prefetch: str = "auto"
    """Whether experts are prefetched on a guess at the next layer's routing: `on`, `off`, or `auto`, by trial."""
    warm_start: bool = False
    """Whether to read the experts that were in RAM when the model was last closed (`experts/hot_list.py`)."""
    direct_reads: bool = True
    """Whether experts are read past the page cache, where the system allows it."""
    lossy: LossySettings = EXACT
    sequences: int = 1
    """How many sequences may be open at a time, the engine's own among them.

    Each has room for `context_length` tokens.
    """

    prefix_disk: str | int | None = None
    """The most bytes of prefixes that are kept on disk, in the user's cache folder (`prefix_tier.py`); None: none are.

    They are kept from one start to the next. What was read or written can be guessed from them.
    """

    speculate: str | int = "off"
    """How many guessed tokens may be run beside each generated one: a number, `auto` (as many as pay), or `off`."""

    device: str | None = None
    """A device beside the processor: `cuda`, `opencl` or `metal`, with `:` and its number or letters of its name if
    it is not the first; `auto`: the first that works; None: `cpu`, none."""
    vram: str | int | None = None
    """The most bytes of the device's memory, or text such as `6GiB`; `floor`: the least with which the device runs all
    that it can but routed experts; None is `auto`, most of what is free there."""

    @property
    def most_drafts(self) -> int:
        """The most guessed tokens of a step for each sequence."""
        if self.speculate == "off":
            return 0
        return AUTO_DRAFTS if self.speculate == "auto" else int(self.speculate)

    def __post_init__(self) -> None:
        if self.threads is not None and (type(self.threads) is not int or self.threads < 1):
            raise UsageError(
                f"threads: expected 1 or more, found {self.threads}.", "Leave it out to use every physical core."
            )
        if self.context_length is not None and type(self.context_length) is not int:
            raise UsageError(
                f"`context_length`: expected a whole number of tokens, found {self.context_length!r}.",
                "Leave it out for the longest that the model and the budget allow.",
            )
        if type(self.sequences) is not int or not 1 <= self.sequences <= MOST_SEQUENCES:
            raise UsageError(
                f"`sequences`: expected 1 to {MOST_SEQUENCES}, found {self.sequences!r}.", "Leave it out for one."
            )
        speculate = self.speculate
        if speculate not in ("auto", "off") and not (type(speculate) is int and 1 <= speculate <= MOST_DRAFTS):
            raise UsageError(
                f"`speculate`: expected auto, off or 1 to {MOST_DRAFTS}, found {speculate!r}.", "Leave it out."
            )
        if isinstance(self.prefix_disk, str):
            parse_size(self.prefix_disk)
        check_device(self.device, self.vram)
        # Both refuse unknown names already here, whether or not experts are streamed.
        make_policy(self.policy, 1, 1)
        PrefetchTrial(self.prefetch)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: every field by its name."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EngineOptions:
        """The inverse of `to_json`. Raises UsageError for unknown values, TypeError for unknown names."""
        return cls(**{**data, "lossy": LossySettings.from_json(data.get("lossy") or {})})


DEFAULTS = EngineOptions()
