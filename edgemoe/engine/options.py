"""How a model is opened and run: the settings that every way in shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edgemoe.engine.lossy import EXACT, LossySettings
from edgemoe.errors import UsageError
from edgemoe.experts.policy import DEFAULT_POLICY, make_policy
from edgemoe.experts.prediction import PredictionSwitch


@dataclass(frozen=True)
class EngineOptions:
    """Settings of an engine. Only `kv` and `lossy` can change an answer. Raises UsageError for values that are unknown.

    Without a value `threads` is the number of physical cores that this process may use, and `context_length` what the
    model and the budget allow.
    """

    ram: str | int | None = None
    """The memory budget: bytes, or text such as `512MiB`, `6GiB`, `floor` or `auto`; None is `auto`."""
    threads: int | None = None
    context_length: int | None = None
    """Positions, in tokens."""
    kv: str | None = None
    """How keys and values are kept: `f16`, or `q8` in half the memory; None is `f16`, and float32 for a store with
    float32 weights."""
    policy: str = DEFAULT_POLICY
    """Which expert leaves for another where not all fit (`experts/policy.py`)."""
    prediction: str = "auto"
    """Whether experts are read ahead on a guess at the next layer's routing: `on`, `off`, or `auto`, by trial."""
    warm_start: bool = False
    """Whether the experts that were in RAM as the model was last closed are read in (`experts/hot_list.py`)."""
    direct_reads: bool = True
    """Whether experts are read past the page cache, where the system lets them."""
    lossy: LossySettings = EXACT

    def __post_init__(self) -> None:
        if self.threads is not None and (type(self.threads) is not int or self.threads < 1):
            raise UsageError(
                f"threads: expected 1 or more, found {self.threads}.", "Leave it out to use every physical core."
            )
        # Both refuse names that they do not know, here already, whether experts are streamed or not.
        make_policy(self.policy, 1, 1)
        PredictionSwitch(self.prediction)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: every field by its name."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EngineOptions:
        """The inverse of `to_json`. Raises UsageError for unknown values, TypeError for unknown names."""
        return cls(**{**data, "lossy": LossySettings.from_json(data.get("lossy") or {})})
