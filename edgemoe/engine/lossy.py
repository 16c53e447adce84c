"""Settings that change answers to save reads or work: all off by default, each with a measurable cost in quality.

- `cache_aware_routing` (lambda, 0 to 1): while tokens are decoded one by one, experts in RAM get a bonus of lambda
  times the token's own range of router logits when the `K` are chosen; the best one is always kept, and the weights
  are those of the true logits. The range is the token's own, not a running mean over tokens, so that no state but the
  cache's passes from one token to the next. Prompts are computed without it: a run of many tokens needs nearly every
  expert anyway, so the bonus would save no read.
- `drop_cold` (tau, 0 to 1): an expert that is not in RAM, and whose share of the token's weights is below tau, is not
  read; its weight becomes zero. In a run of several tokens this must hold for every token that uses the expert.
- `on_miss` (`wait` or `base`): in a store whose experts have a base, an expert that generated tokens miss is computed
  from its base instead of being waited for, and read behind for later tokens. Prompts are computed with both planes.
- `experts_per_token`: fewer experts for each token than the model's own number.

Sources of the ideas: cache-conditional experts (Skliar et al. 2024, arXiv 2412.00099), whose range is a running mean;
dropping experts that are cold and weigh little, and ranges of single tokens: Helldez/BigMoeOnEdge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edgemoe.errors import UsageError
from edgemoe.model.spec import ModelSpec

WAIT, BASE = "wait", "base"
"""The choices of what happens on a miss."""

_OFF_HINT = "Leave it out, or give 0, for exact answers."


@dataclass(frozen=True)
class LossySettings:
    """Settings that give up exact answers for speed. Raises UsageError for values out of range."""

    cache_aware_routing: float = 0.0
    drop_cold: float = 0.0
    experts_per_token: int | None = None
    on_miss: str = WAIT

    def __post_init__(self) -> None:
        _check_share("cache_aware_routing", self.cache_aware_routing)
        _check_share("drop_cold", self.drop_cold)
        if self.on_miss not in (WAIT, BASE):
            raise UsageError(
                f"`on_miss`: expected {WAIT} or {BASE}, found {self.on_miss!r}.", f"Give {WAIT} for exact answers."
            )
        used = self.experts_per_token
        if used is not None and (type(used) is not int or used < 1):
            raise UsageError(
                f"`experts_per_token`: expected a whole number of 1 or more, found {used!r}.",
                "Leave it out for the model's own number.",
            )

    @property
    def on(self) -> bool:
        """Whether any setting is on."""
        return self.depends_on_cache or self.experts_per_token is not None

    @property
    def depends_on_cache(self) -> bool:
        """Whether answers depend on which experts are in RAM."""
        return self.cache_aware_routing > 0 or self.drop_cold > 0 or self.from_base

    @property
    def from_base(self) -> bool:
        """Whether missed experts are computed from their bases."""
        return self.on_miss == BASE

    def effective(self, all_resident: bool) -> LossySettings:
        """The settings that have any effect: only `experts_per_token` where every expert is in RAM."""
        return LossySettings(experts_per_token=self.experts_per_token) if all_resident else self

    def applied_to(self, spec: ModelSpec) -> ModelSpec:
        """The model with `experts_per_token` experts for each token. Raises UsageError where it has fewer."""
        used = self.experts_per_token
        if used is None:
            return spec
        most = spec.most_top_k
        if not most:
            raise UsageError("`experts_per_token`: this model has no routed experts.", "Leave it out.")
        if used > most:
            raise UsageError(
                f"`experts_per_token`: expected 1 to {most}, the model's own number, found {used}.",
                "Leave it out for the model's own number.",
            )
        return spec.with_top_k(used, only_less=True)

    def describe(self) -> str:
        """Text for people, such as `cache-aware routing 0.2, drop cold 0.1`; empty where all are off."""
        parts = []
        if self.cache_aware_routing > 0:
            parts.append(f"cache-aware routing {self.cache_aware_routing:g}")
        if self.drop_cold > 0:
            parts.append(f"drop cold {self.drop_cold:g}")
        if self.from_base:
            parts.append("missed experts from their base")
        if self.experts_per_token is not None:
            experts = "expert" if self.experts_per_token == 1 else "experts"
            parts.append(f"{self.experts_per_token} {experts} per token")
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: every field by its name."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LossySettings:
        """The inverse of `to_json`. Raises UsageError for values out of range, TypeError for other names."""
        return cls(**data)


def _check_share(name: str, value: object) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 <= value <= 1:  # type: ignore[arg-type, operator]
        raise UsageError(f"`{name}`: expected a number from 0 (off) to 1, found {value!r}.", _OFF_HINT)


EXACT = LossySettings()
"""The exact model: all lossy settings are off."""
