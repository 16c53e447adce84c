"""Residual streams whose shares come through matrices of low rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgemoe.kernels import operations as op
from edgemoe.kernels import stream_operations as sm
from edgemoe.kernels.stream_operations import MOST_STREAMS
from edgemoe.model.builder import Builder


@dataclass(frozen=True)
class GatedStreams:
    """Shares that follow from the streams through matrices of low rank (Qwen3.8).

    With `n` the streams, each normalised, and `c` their number, a block reads the mean over the streams of
    `sigmoid(up silu(down n / c)) * n`, and its result joins each stream times `2 * sigmoid(shares n / c)`.
    """

    kind: ClassVar[str] = "gated_streams"

    count: int
    rank: int

    def check(self) -> None:
        if not 2 <= self.count <= MOST_STREAMS:
            raise ValueError(f"{self.count} residual streams: expected 2 to {MOST_STREAMS}")

    def tensors(self, hidden_size: int, writes: bool) -> Mapping[str, tuple[int, ...]]:
        whole = self.count * hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "norm": (whole,),
            "mix_down": (self.rank, whole),
            "mix_up": (whole, self.rank),
        }
        return shapes | ({"shares": (self.count, whole)} if writes else {})

    def sizes(self) -> Mapping[str, int]:
        return {"streams": self.count, "stream_rank": self.rank}

    def read(self, build: Builder, stem: str, source: op.Floats, output: op.Floats, writes: bool) -> op.Floats | None:
        whole, scale = self.count * build.hidden_size, 1 / self.count
        normed = build.rows_like("streams_normed", output, whole)
        norm = build.vector(f"{stem}norm", whole)
        build.add(op.RmsNorm(source, norm, build.epsilon, normed, self.count, own_weights=self.count))
        low = build.rows_like("streams_low", output, self.rank)
        shares = build.rows_like("streams_joining", output, self.count) if writes else None
        parts = [op.LinearPart(build.matrix(f"{stem}mix_down", self.rank, whole), None, low)]
        if shares is not None:
            parts.append(op.LinearPart(build.matrix(f"{stem}shares", self.count, whole), None, shares))
        build.add(op.Linear(normed, tuple(parts), scale))
        build.add(op.Gate(low, low, "sigmoid"))  # times its own sigmoid: SiLU
        mixed = build.linear(low, f"{stem}mix_up", build.rows_like("streams_shares", output, whole))
        build.add(sm.ReadStreams(normed, mixed, output))
        return shares

    def write(self, build: Builder, kept: op.Floats, result: op.Floats) -> None:
        build.add(sm.WriteStreams(kept, result, build.residual))
