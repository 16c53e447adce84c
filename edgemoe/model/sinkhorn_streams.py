"""Residual streams whose mixture keeps their sum: manifold-constrained hyper-connections (Xie et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from edgemoe.kernels import operations as op
from edgemoe.kernels import sinkhorn_operations as sk
from edgemoe.kernels.stream_operations import MOST_STREAMS
from edgemoe.model.builder import Builder
from edgemoe.model.plain import ZERO_ALLOWED


@dataclass(frozen=True)
class SinkhornStreams:
    """All streams of a token together, normalised without weights, give its shares by products with small matrices.

    A block reads the sum of the streams by their shares (`sk.CollapseStreams`), under a norm. What it gives joins each
    stream by a share, and the streams go on in a mixture whose rows and columns both sum to nearly 1
    (`sk.BalanceStreams`, `sk.JoinStreams`; DeepSeek-V4).
    """

    kind: ClassVar[str] = "sinkhorn_streams"

    count: int
    iterations: int
    epsilon: float = field(metadata=ZERO_ALLOWED)

    def check(self) -> None:
        if not 2 <= self.count <= MOST_STREAMS:
            raise ValueError(f"{self.count} residual streams: expected 2 to {MOST_STREAMS}")

    @property
    def _joining(self) -> int:
        """The numbers by which a result joins the streams of a token."""
        return self.count * (1 + self.count)

    def sizes(self) -> Mapping[str, int]:
        return {"streams": self.count, "joining": self._joining}

    def tensors(self, hidden_size: int, writes: bool) -> Mapping[str, tuple[int, ...]]:
        whole = self.count * hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "norm": (hidden_size,),
            "collapse_shares": (self.count, whole),
            "collapse_base": (self.count,),
            "collapse_scale": (1,),
        }
        if writes:
            shapes |= {
                "balance_shares": (self._joining, whole),
                "balance_base": (self._joining,),
                "balance_scales": (2,),
            }
        return shapes

    def read(self, build: Builder, stem: str, source: op.Floats, output: op.Floats, writes: bool) -> op.Floats | None:
        n, D = self.count, build.hidden_size
        normed = build.rows_like("streams_normed", output, n * D)
        build.add(op.RmsNorm(source, None, build.epsilon, normed))
        shares, joining = build.rows_like("streams_shares", output, n), None
        parts = [op.LinearPart(build.matrix(f"{stem}collapse_shares", n, n * D), None, shares)]
        if writes:
            joining = build.rows_like("streams_joining", output, self._joining)
            matrix = build.matrix(f"{stem}balance_shares", self._joining, n * D)
            parts.append(op.LinearPart(matrix, None, joining))
        build.add(op.Linear(normed, tuple(parts)))
        if joining is not None:
            base, scales = build.vector(f"{stem}balance_base", self._joining), build.vector(f"{stem}balance_scales", 2)
            build.add(sk.BalanceStreams(joining, base, scales, self.epsilon, self.iterations, n))
        base, scale = build.vector(f"{stem}collapse_base", n), build.vector(f"{stem}collapse_scale", 1)
        build.add(sk.CollapseStreams(source, shares, base, scale, self.epsilon, n, output))
        build.rms_norm(output, f"{stem}norm", D, output)
        return joining

    def write(self, build: Builder, kept: op.Floats, result: op.Floats) -> None:
        build.add(sk.JoinStreams(result, kept, self.count, build.residual))
