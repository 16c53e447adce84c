"""Forced routing: taken from a recorded trace in place of the routers' choice, so that speed can be measured on it.

Letters: `S` steps (tokens) of a phase, `R` layers with routed experts, `K` experts used for each token.

Routers are still computed, for their time; their choice is ignored. Steps of a phase are taken in their order, over all
turns of the trace, and from the beginning again after the last. Sequences that are run together take steps apart from
each other (`spread`). The model's answers on forced routing are meaningless.

An engine that needs only the logits of a prompt's last token may compute the last layers for that token alone. A token
of a prompt without rows in a layer is given those of the next token that has some: so no expert is requested that the
recorded engine did not request.

A router's guess at the next layer does not predict forced routing, and a trace has no guesses. So they are made up:
with a recall of 0.85 each expert to come is named with that probability, else a wrong one in its place. Routers still
compute their guess, for its time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgemoe.engine.batch import Rows
from edgemoe.engine.decoder import LayerRouting
from edgemoe.engine.phase import DECODE, PROMPT
from edgemoe.errors import UsageError
from edgemoe.lab.trace import Trace
from edgemoe.lab.trace_rows import join
from edgemoe.model.graph import GUESSED_ROWS
from edgemoe.model.spec import ModelSpec


class ForcedRouting:
    """The steps of a trace, ready to be copied into the routers' output."""

    def __init__(self, trace: Trace, name: str = "the trace", recall: float | None = None) -> None:
        """`recall`, 0 to 1, is that of made-up guesses; None: no guesses are made.

        Raises UsageError for an invalid recall, and for a trace in which tokens lack rows, except at the end of a
        recording that was cut short.
        """
        if recall is not None and not 0 <= recall <= 1:
            raise UsageError(f"`recall`: expected 0 to 100 % of the experts to come, found {100 * recall:g} %.")
        self.name = name
        self.recall = recall
        self._chance = np.random.default_rng(0)
        self.shape = trace.shape
        self.layers: list[int] = np.unique(trace.layer).tolist()
        """The layers that have rows, `(R,)`."""
        self._next: dict[int, dict[int, int]] = {PROMPT: {}, DECODE: {}}
        """By phase, the number of the next step of each sequence, by the sequence's row in the page table."""
        if not len(trace):
            raise UsageError(f"{name}: it has no rows.", "Record more: edgemoe trace.")
        trace = _with_layers_left_out(trace)
        complete = self._complete(trace)
        self._experts: dict[int, npt.NDArray[np.int32]] = {}
        self._weights: dict[int, npt.NDArray[np.float32]] = {}
        for phase in (PROMPT, DECODE):
            chosen = trace.select(complete & (trace.phase == phase))
            order = np.lexsort((chosen.slot, chosen.layer, chosen.step, chosen.turn))
            shape = (-1, len(self.layers), self.experts_used)
            self._experts[phase] = chosen.expert[order].reshape(shape)
            self._weights[phase] = chosen.weight[order].reshape(shape)
        if not self._experts[DECODE].size:
            raise UsageError(f"{name}: it has no generated tokens (phase 1).", "Record more: edgemoe trace.")
        if not self._experts[PROMPT].size:
            self._experts[PROMPT], self._weights[PROMPT] = self._experts[DECODE], self._weights[DECODE]

    @property
    def experts_used(self) -> int:
        return self.shape.experts_used

    def steps(self, phase: int) -> int:
        """The number of steps of a phase, after which they are taken again."""
        return len(self._experts[phase])

    def apply_to(self, spec: ModelSpec) -> ModelSpec:
        """The model with the trace's number of experts per token. Raises UsageError for a model of another shape."""
        moes = spec.routed
        if any(moe.passing for moe in moes.values()):
            raise UsageError(
                f"{self.name}: the model has choices of no expert, of which a trace has no rows; expected a model whose"
                " tokens all use as many experts.",
                "Measure this model without forced routing.",
            )
        experts = sorted({moe.num_experts for moe in moes.values()})
        if len(spec.layers) != self.shape.layers or list(moes) != self.layers or experts != [self.shape.experts]:
            kinds = " or ".join(map(str, experts)) or "no"
            raise UsageError(
                f"{self.name}: its routing is of another shape than the model: expected {len(spec.layers)} layers,"
                f" {len(moes)} of them with {kinds} experts, found {self.shape.layers} layers,"
                f" {len(self.layers)} of them with {self.shape.experts} experts.",
                f"Give a model of the shape of {self.shape.model}: edgemoe synth makes one of random weights.",
            )
        return spec.with_top_k(self.experts_used)

    def spread(self, sequences: int) -> None:
        """Spread the next steps of `sequences` sequences over each phase at equal distances.

        The first sequence goes on where it stands. Sequences are numbered by their rows in the page table. Without this
        call each of them begins with the first step.
        """
        for phase, following in self._next.items():
            first, steps = following.get(0, 0), self.steps(phase)
            self._next[phase] = {number: first + number * steps // sequences for number in range(sequences)}

    def put(self, routing: Sequence[LayerRouting | None], run: Sequence[Rows]) -> None:
        """Write the next steps of the sequences in a run into the `LayerRouting` of every layer."""
        parts = [self._take(rows) for rows in run]
        experts = np.concatenate([experts for experts, _ in parts])
        weights = np.concatenate([weights for _, weights in parts])
        tokens = len(experts)
        guessed = tokens if self.recall is not None and tokens <= GUESSED_ROWS else 0
        guesses = [self._guesses(one, self.recall) for one in experts[:guessed] if self.recall is not None]
        for place, layer in enumerate(self.layers):
            target = routing[layer]
            assert target is not None
            target.experts[:tokens] = experts[:, place]
            target.weights[:tokens] = weights[:, place]
            for row, guess in enumerate(guesses):
                target.guess[row] = guess[place]

    def _take(self, rows: Rows) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """The experts and weights of the next steps of one sequence, `(T, R, K)` each."""
        sequence = rows.piece.sequence
        phase = PROMPT if sequence.turn.phase == PROMPT else DECODE
        first = self._next[phase].get(sequence.row, 0)
        self._next[phase][sequence.row] = first + rows.count
        steps = self._places(phase, first, rows.count)
        return self._experts[phase][steps], self._weights[phase][steps]

    def taken(self, phase: int) -> int:
        """The number of steps of a phase that the first sequence has taken so far."""
        return self._next[phase].get(0, 0)

    def keys(self, phase: int, first: int, tokens: int) -> npt.NDArray[np.int64]:
        """The experts of `tokens` steps from `first` on, as `layer * experts + expert`, `(tokens, R, K)`."""
        experts = self._experts[phase][self._places(phase, first, tokens)].astype(np.int64)
        return experts + np.array(self.layers, np.int64)[:, None] * self.shape.experts

    def _places(self, phase: int, first: int, tokens: int) -> npt.NDArray[np.int64]:
        return np.arange(first, first + tokens, dtype=np.int64) % self.steps(phase)

    def _guesses(self, experts: npt.NDArray[np.int32], recall: float) -> npt.NDArray[np.int32]:
        """Make up guesses for a token that uses `experts` `(R, K)`: `(R, K)`, distinct within each layer."""
        order = self._chance.random((len(experts), self.shape.experts))
        np.put_along_axis(order, experts, order.min() - 1, axis=1)  # experts to come must not serve as wrong guesses
        wrong = np.argsort(-order, axis=1)[:, : self.experts_used].astype(np.int32)
        right = self._chance.random(experts.shape) < recall
        right[:, self.shape.experts - self.experts_used :] = True  # too few other experts for wrong guesses
        return np.where(right, experts, wrong)

    def _complete(self, trace: Trace) -> npt.NDArray[np.bool_]:
        """A mask of the rows of tokens that have all their rows."""
        wanted = len(self.layers) * self.experts_used
        token = (trace.turn.astype(np.int64) << 32) + (trace.step.astype(np.int64) << 1) + trace.phase
        _, first_rows, of_row, counts = np.unique(token, return_index=True, return_inverse=True, return_counts=True)
        place = np.searchsorted(self.layers, trace.layer) * self.experts_used + trace.slot
        good = counts == wanted
        order = np.lexsort((place, of_row))
        good_rows = good[of_row][order]
        places = place[order][good_rows].reshape(-1, wanted)
        experts = np.sort(trace.expert[order][good_rows].reshape(-1, self.experts_used), axis=1)
        if (places != np.arange(wanted)).any() or (experts[:, 1:] == experts[:, :-1]).any():
            raise UsageError(
                f"{self.name}: a token has rows of the same layer and slot, or the same expert twice in a layer.",
                "Record it again: edgemoe trace.",
            )
        lacking = ~good
        if lacking.any() and first_rows[good].max(initial=-1) > first_rows[lacking].min():
            raise UsageError(
                f"{self.name}: {int(lacking.sum())} of its {len(good)} tokens lack some of the {wanted} rows for"
                f" {len(self.layers)} layers of {self.experts_used} experts used.",
                "Record it without a setting that leaves experts out.",
            )
        rows: npt.NDArray[np.bool_] = good[of_row]
        return rows


def _with_layers_left_out(trace: Trace) -> Trace:
    """Add rows to prompt tokens in layers where they have none but a later token of the same prompt has some."""
    rows = np.flatnonzero(trace.phase == PROMPT)
    token_of = (trace.turn[rows].astype(np.int64) << 32) + trace.step[rows]
    tokens, token_of = np.unique(token_of, return_inverse=True)
    parts = [trace.columns]
    for layer in np.unique(trace.layer[rows]):
        in_layer = trace.layer[rows] == layer
        has = np.bincount(token_of[in_layer], minlength=len(tokens)) > 0
        places = np.where(has, np.arange(len(tokens)), len(tokens))
        following = np.minimum.accumulate(places[::-1])[::-1]
        for token in np.flatnonzero(~has & (following < len(tokens))):
            giver = following[token]
            if tokens[giver] >> 32 == tokens[token] >> 32:
                given = trace.select(rows[in_layer & (token_of == giver)])
                step = np.full_like(given.step, tokens[token] & 0xFFFFFFFF)
                parts.append(dataclasses.replace(given, step=step).columns)
    return join(trace.shape, parts)
