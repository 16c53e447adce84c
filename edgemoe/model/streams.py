"""Several residual streams in place of one: hyper-connections (Zhu et al. 2024, arXiv 2409.19606).

Every token has `count` rows of the model's width, which the embedding fills alike. A block does not read a row of its
own under a norm: what it reads is mixed from all streams, and its result is added to each of them by a share of its
own. Where the last norm stands in other models, the streams are mixed once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

from edgemoe.kernels import operations as op
from edgemoe.model.builder import Builder
from edgemoe.model.gated_streams import GatedStreams
from edgemoe.model.sinkhorn_streams import SinkhornStreams


class Streams(Protocol):
    """The rule by which blocks read several residual streams, and write to them."""

    kind: ClassVar[str]
    """The name of the rule in stores."""

    @property
    def count(self) -> int:
        """The number of streams."""

    def check(self) -> None:
        """Raise ValueError for sizes that contradict one another."""

    def sizes(self) -> Mapping[str, int]:
        """The values of the symbols that checkpoints' tables use for its shapes."""

    def tensors(self, hidden_size: int, writes: bool) -> Mapping[str, tuple[int, ...]]:
        """The ends of the names of its tensors at one place, with their shapes; `writes`: whether a result joins."""

    def read(self, build: Builder, stem: str, source: op.Floats, output: op.Floats, writes: bool) -> Any:
        """Mix the streams `source` to the rows `output`; returns what `write` needs. `stem` begins tensors' names."""

    def write(self, build: Builder, kept: Any, result: op.Floats) -> None:
        """Let the result of a block join the streams; `kept` is what `read` has returned at this place."""


STREAMS: Mapping[str, type] = MappingProxyType(
    {GatedStreams.kind: GatedStreams, SinkhornStreams.kind: SinkhornStreams},
)
"""Every rule by the name that stores give it."""
