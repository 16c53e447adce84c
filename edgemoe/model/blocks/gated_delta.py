"""Gated DeltaNet: linear attention whose state of fixed size each token decays and corrects (Yang et al. 2024).

Kimi Delta Attention (Kimi Team 2025) is the same with a decay for each channel of a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from edgemoe.kernels import operations as op
from edgemoe.kernels import state_operations as so
from edgemoe.kernels.formats import PANEL_ROWS
from edgemoe.model.blocks.body import RoutedExperts, Shapes
from edgemoe.model.builder import Builder, row_size
from edgemoe.model.graph import Part
from edgemoe.model.plain import ZERO_ALLOWED

LENGTH_EPSILON = 1e-6
"""The number that is added to the squared lengths of queries and keys before they are brought to unit length."""


@dataclass(frozen=True)
class GatedDelta:
    """`out (norm(delta(silu(conv(in x)))) * gating(gate x))`, with a norm over each head.

    A causal convolution over `length` tokens, each channel by itself, mixes queries, keys and values, which `in` holds
    one after the other: `key_heads` heads of queries and of keys of width `key_dim`, `heads` heads of values of width
    `value_dim`. `so.DeltaRule` has the rule. A sequence keeps the last inputs of the convolution and for each head a
    matrix `(key_dim, value_dim)`. Every token overwrites the matrices, so that a sequence goes back by snapshots alone.
    """

    kind: ClassVar[str] = "gated_delta"
    norm_name: ClassVar[str] = "delta_norm"
    norm_part: ClassVar[Part] = "mixer"

    key_heads: int
    heads: int
    key_dim: int
    value_dim: int
    length: int
    apart: bool = False
    """Whether queries, keys and values have a matrix and a convolution each, in the place of one for all."""
    decay_per: Literal["head", "channel"] = "head"
    """Whether a head's matrix has one decay, or each of its `key_dim` rows."""
    decay_rank: int = field(default=0, metadata=ZERO_ALLOWED)
    """The channels between the two matrices that decays go through; 0: there is one matrix."""
    decay_bound: float = field(default=0.0, metadata=ZERO_ALLOWED)
    """Decays lie above `exp(-decay_bound)`, by a sigmoid in the place of softplus; 0: they have no such bound."""
    gate_rank: int = field(default=0, metadata=ZERO_ALLOWED)
    """The same as `decay_rank`, of the gate."""
    gating: Literal["silu", "sigmoid"] = "silu"
    in_turn: bool = False
    """Whether heads of values lie in turn: the first of each key head, then the second of each, and so on."""

    @property
    def routed(self) -> RoutedExperts | None:
        return None

    @property
    def channels(self) -> int:
        """The channels of the convolution: queries, keys and values."""
        return 2 * self._keys + self._values

    @property
    def _keys(self) -> int:
        return self.key_heads * self.key_dim

    @property
    def _values(self) -> int:
        return self.heads * self.value_dim

    @property
    def _decays(self) -> int:
        return self.heads * (self.key_dim if self.decay_per == "channel" else 1)

    @property
    def _convolved(self) -> Mapping[str, int]:
        """The channels of each convolution, by the name of the matrix before it."""
        if self.apart:
            return {"delta_query": self._keys, "delta_key": self._keys, "delta_value": self._values}
        return {"delta_in": self.channels}

    @property
    def _projections(self) -> tuple[tuple[str, int, int], ...]:
        """The names and widths of what is made of a row of the stream, with the channels of a latent between, or 0.

        Decays of heads are few, and their matrix stays float32 (`conversion/formats.py`); not so those of channels.
        """
        return (
            *((name, width, 0) for name, width in self._convolved.items()),
            ("delta_gate", self._values, self.gate_rank),
            ("delta_strength", self.heads, 0),
            ("delta_decay" if self.decay_per == "head" else "delta_decays", self._decays, self.decay_rank),
        )

    def check(self) -> None:
        if self.heads % self.key_heads:
            raise ValueError(f"{self.heads} heads that share {self.key_heads} heads of keys")
        if self.key_dim > so.WIDEST_KEYS:
            raise ValueError(f"keys of {self.key_dim} channels: expected at most {so.WIDEST_KEYS}")
        if not 2 <= self.length <= so.MOST_TAPS:
            raise ValueError(f"a convolution over {self.length} tokens: expected 2 to {so.MOST_TAPS}")

    def tensors(self, hidden_size: int) -> Shapes:
        shapes: dict[str, tuple[int, ...]] = {}
        for name, width, rank in self._projections:
            if rank:
                shapes[f"{name}_latent"] = (rank, hidden_size)
            shapes[name] = (width, rank or hidden_size)
        return shapes | {
            "delta_decay_bias": (self._decays,),
            "delta_rate": (self.heads,),
            **{self._taps(name): (width * self.length,) for name, width in self._convolved.items()},
            "delta_head_norm": (self.value_dim,),
            "delta_out": (hidden_size, self._values),
        }

    def _taps(self, name: str) -> str:
        return f"{name}_taps" if self.apart else "delta_taps"

    def sizes(self) -> Mapping[str, int]:
        return {
            "delta_channels": 0 if self.apart else self.channels,
            "delta_heads": self.heads,
            "delta_key_dim": self.key_dim,
            "delta_value_dim": self.value_dim,
            "delta_keys": self._keys,
            "delta_values": self._values,
            "delta_decays": self._decays,
            "delta_decay_rank": self.decay_rank,
            "delta_gate_rank": self.gate_rank,
            "delta_group": self.heads // self.key_heads,
            "delta_group_values": self._values // self.key_heads,
            "delta_all": 0 if self.apart else self.channels + self._values,
            "taps": self.length,
        }

    def with_top_k(self, top_k: int) -> GatedDelta:
        return self

    def emit(self, build: Builder, source: op.Floats) -> None:
        H, W, Wv = self.heads, self.key_dim, self.value_dim
        outputs = {name: build.rows(name, width) for name, width, _ in self._projections}
        latents = {name: build.rows(f"{name}_latent", rank) for name, _, rank in self._projections if rank}
        self._multiply(build, source, outputs, latents)
        *inputs, gate, strength, decay = outputs.values()
        places, mixed = build.places(), []
        for (name, width), rows in zip(self._convolved.items(), inputs, strict=True):
            own = name.replace("delta_", "of_") if self.apart else "delta"
            taps = build.vector(self._taps(name), width * self.length)
            earlier = build.fixed_state(f"{own}_inputs" if self.apart else "inputs", self.length - 1, width)
            mixed.append(build.rows(f"{own}_mixed", width))
            build.add(so.ShortConv(rows, taps, None, *places, earlier, mixed[-1], parts=1))
        bias, rate = build.vector("delta_decay_bias", self._decays), build.vector("delta_rate", H)
        # Columns of values in whole panels, as the rule keeps them.
        states = build.fixed_state("states", H, -(-Wv // PANEL_ROWS) * PANEL_ROWS, W)
        output = build.rows("delta_output", H * Wv)
        of_rule = strength, decay, bias, rate, LENGTH_EPSILON, self.key_heads, *places, states, output
        key, value = mixed[1:] if self.apart else (None, None)
        build.add(so.DeltaRule(mixed[0], *of_rule, key, value, -self.decay_bound, self.in_turn))
        norm, silu = build.vector("delta_head_norm", Wv), self.gating == "silu"
        build.add(op.RmsNorm(output, norm, build.epsilon, output, heads=H, gate=gate if silu else None))
        if not silu:
            build.add(op.Gate(gate, output, self.gating))
        build.deliver(output, "delta_out")

    def _multiply(
        self, build: Builder, source: op.Floats, outputs: Mapping[str, op.Floats], latents: Mapping[str, op.Floats]
    ) -> None:
        """Multiply rows by the matrices of these names, those with a latent by two."""
        first = {
            f"{name}_latent" if name in latents else name: latents.get(name, rows) for name, rows in outputs.items()
        }
        parts = [
            op.LinearPart(build.matrix(name, row_size(rows), build.hidden_size), None, rows)
            for name, rows in first.items()
        ]
        for start in range(0, len(parts), op.MOST_PARTS):
            build.add(op.Linear(source, tuple(parts[start : start + op.MOST_PARTS])))
        for name, latent in latents.items():
            build.linear(latent, name, outputs[name])

    def emit_guess(self, build: Builder, source: op.Floats) -> None:
        raise AssertionError("a recurrent layer has no routing to guess")
