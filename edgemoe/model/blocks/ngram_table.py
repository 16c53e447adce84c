"""A table on disk, of which a token has rows by its last tokens: an n-gram memory (Qwen3.8, named `ple` there)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgemoe.kernels import operations as op
from edgemoe.kernels import state_operations as so
from edgemoe.kernels import stream_operations as sm
from edgemoe.model.blocks.body import RoutedExperts, Shapes
from edgemoe.model.builder import Builder
from edgemoe.model.graph import Part, RowTable
from edgemoe.model.ngrams import NgramRows

LEAST_AGREEMENT = 1e-6
MOST_PARTS = 4096


@dataclass(frozen=True)
class NgramTable:
    """`stream + y + silu(conv(norm(y)))` for each of several residual streams, where `y = share * value`.

    The rows of a token, one after the other, are projected to a value and, for each stream, to a key. `share` says how
    far key and stream, both normalised, agree (`sm.GateByAgreement`). The convolution is causal, over `length` tokens
    of which neighbours lie `dilation` positions apart, each channel by itself; a sequence keeps its last inputs. The
    rows follow from the ids alone, and are read before the layer.
    """

    kind: ClassVar[str] = "ngram_table"
    norm_name: ClassVar[str] = "table_norm"
    norm_part: ClassVar[Part] = "mixer"

    rule: NgramRows
    width: int
    """The width of all rows of a token together."""
    parts: int
    """How many matrices the table is stored as: all have as many rows, but perhaps the last."""
    streams: int
    length: int
    dilation: int

    @property
    def routed(self) -> RoutedExperts | None:
        return None

    @property
    def part_rows(self) -> int:
        """The rows of a part of the table; of the last, at most."""
        return -(-self.rule.total_rows // self.parts)

    @property
    def stored_parts(self) -> int:
        """How many parts have rows."""
        return -(-self.rule.total_rows // self.part_rows)

    def check(self) -> None:
        self.rule.check()
        if self.width % self.rule.count:
            raise ValueError(f"a width of {self.width} for {self.rule.count} rows")
        if self.parts > MOST_PARTS:
            raise ValueError(f"a table in {self.parts} parts: expected at most {MOST_PARTS}")
        if not 2 <= self.length <= so.MOST_TAPS or self.dilation > so.MOST_DILATION:
            raise ValueError(f"a convolution over {self.length} tokens, {self.dilation} apart")

    def tensors(self, hidden_size: int) -> Shapes:
        D, E, whole = hidden_size, self.width, self.streams * hidden_size
        rows, width = self.rule.total_rows, self.width // self.rule.count
        starts = range(0, rows, self.part_rows)
        parts = {f"row_table.{n}": (min(self.part_rows, rows - start), width) for n, start in enumerate(starts)}
        return parts | {
            "table_key": (whole, E),
            "table_value": (D, E),
            "table_key_norm": (whole,),
            "table_query_norm": (whole,),
            "table_taps_norm": (whole,),
            "table_taps": (whole * self.length,),
        }

    def sizes(self) -> Mapping[str, int]:
        return {
            "table_rows": self.part_rows,
            "table_total": self.rule.total_rows,
            "table_parts": self.stored_parts,
            "table_row": self.width // self.rule.count,
            "table_width": self.width,
            "table_length": self.length,
        }

    def with_top_k(self, top_k: int) -> NgramTable:
        return self

    def emit(self, build: Builder, source: op.Floats) -> None:
        D, n = build.hidden_size, self.streams
        whole = n * D
        if source.shape[1] != whole:
            raise ValueError(f"a table for {n} residual streams in a model with another number")
        rows = build.table_rows("table_rows", RowTable(self.rule, build.layer, self.width, self.stored_parts))
        key, value = build.rows("table_key", whole), build.rows("table_value", D)
        parts = [
            op.LinearPart(build.matrix(name, width, self.width), None, output)
            for name, width, output in (("table_key", whole, key), ("table_value", D, value))
        ]
        build.add(op.Linear(rows, tuple(parts)))
        query, output = build.rows("table_query", whole), build.rows("table_output", whole)
        self._norm(build, key, "table_key_norm", key)
        self._norm(build, source, "table_query_norm", query)
        build.add(sm.GateByAgreement(key, query, value, LEAST_AGREEMENT, output))
        self._norm(build, output, "table_taps_norm", key)
        places, taps = build.places(), build.vector("table_taps", whole * self.length)
        earlier = build.fixed_state("table_inputs", (self.length - 1) * self.dilation, whole)
        build.add(so.ShortConv(key, taps, None, *places, earlier, query, parts=1, dilation=self.dilation))
        for result in (output, query):
            build.add(op.Mix(source, result, 1.0, None, None, None, source))

    def _norm(self, build: Builder, rows: op.Floats, name: str, output: op.Floats) -> None:
        weight = build.vector(name, self.streams * build.hidden_size)
        build.add(op.RmsNorm(rows, weight, build.epsilon, output, self.streams, own_weights=self.streams))

    def emit_guess(self, build: Builder, source: op.Floats) -> None:
        raise AssertionError("a table has no routing to guess")
