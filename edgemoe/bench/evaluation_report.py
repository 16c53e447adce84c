"""The result of an evaluation: what a person or a program is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from edgemoe.bench.plain_report import KeptReport
from edgemoe.lab.divergence import Divergence, Estimate
from edgemoe.store.reader import Store

INTERVALS = (
    "95 %: the mean plus and minus 1.96 standard errors, from how the windows' sums spread around it (windows count as"
    " independent, positions within one do not); none with fewer than 8 windows"
)


@dataclass(frozen=True)
class ModelFacts:
    """A model's size, as its files have it."""

    path: str
    family: str
    parameters: int
    bytes: int
    """Bytes of all weights, without padding between them."""
    bits_per_weight: float
    parts: Mapping[str, Mapping[str, Any]]
    """Formats, parameters, bytes and bits per weight of each part: experts, shared, attention, embedding, head."""

    @classmethod
    def of(cls, store: Store, family: str) -> ModelFacts:
        """The facts of an open store or GGUF file."""
        parts = {
            name: {key: part[key] for key in ("formats", "parameters", "bytes", "bits_per_weight")}
            for name, part in store.manifest.quantisation.items()
        }
        parameters, size = (sum(part[key] for part in parts.values()) for key in ("parameters", "bytes"))
        return cls(str(store.path), family, parameters, size, round(8 * size / max(parameters, 1), 4), parts)


@dataclass(frozen=True)
class ModelResult:
    """One model, over the windows that it was given time for."""

    model: ModelFacts
    windows: int
    positions: int
    """Tokens that were scored, each once."""
    loss_nats: Estimate
    perplexity: Estimate
    divergence: Divergence | None
    """How far the model is from the reference; None without one."""
    reference_loss_nats: Estimate | None
    """The reference's loss over the same positions."""
    kv: str
    seconds: float
    peak_rss_bytes: int


@dataclass(frozen=True)
class ReferenceReport:
    """The model that others were compared with."""

    model: Mapping[str, Any]
    """`ModelFacts` as JSON."""
    run: str | None
    """The run that its distributions came from; None: it was evaluated here."""
    top: int | None
    """How many tokens of each position were kept; None: all, so that divergences are exact."""
    windows: int
    loss_nats: Estimate | None
    perplexity: Estimate | None


@dataclass(frozen=True)
class EvaluationReport(KeptReport):
    """Models over one text."""

    form: ClassVar[tuple[str, int]] = ("edgemoe_evaluation", 1)
    text: str
    tokens: int
    whole_text: bool
    """Whether these are all tokens of the text."""
    head: Sequence[int]
    """Tokens that stand before every window, such as BOS."""
    context: int
    stride: int
    windows: int
    """The windows of the whole text."""
    intervals: str
    complete: bool
    """Whether all models were evaluated over the whole text (of a run that was cut off: over what it has)."""
    reference: ReferenceReport | None
    models: Sequence[ModelResult]
