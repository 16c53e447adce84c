"""Losses of next tokens, and how far a model's distributions are from a reference's: means with intervals.

Positions are scored one row of logits at a time, in float64, so that the figures do not depend on how rows were
grouped. They are summed in blocks of neighbouring positions (the windows or slices of a text).

Intervals are of 95 %: the mean of all positions plus and minus 1.96 standard errors. The standard error comes from how
the blocks' sums spread around that mean (the linearised variance of a ratio, with blocks as clusters), so positions of
one block may depend on each other as they like, while blocks count as independent.

Letters: `V` vocabulary, `N` entries that a reference has kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]
Row = npt.NDArray[np.float64]

LEAST_BLOCKS = 8
"""With fewer blocks their spread says too little about the error: there is no interval."""
NORMAL_95 = 1.959963984540054
"""Standard errors on each side of a mean that cover 95 % of a normal distribution."""
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)


@dataclass(frozen=True)
class Estimate:
    """A mean over positions, and its 95 % interval; None and None for fewer than `LEAST_BLOCKS` blocks."""

    mean: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, sums: Iterable[float], counts: Iterable[int]) -> Estimate:
        """The mean over positions from the sums and the numbers of positions of all blocks."""
        summed, counted = np.array(list(sums), np.float64), np.array(list(counts), np.float64)
        mean = float(summed.sum() / counted.sum())
        if len(counted) < LEAST_BLOCKS:
            return cls(mean)
        spread = summed - mean * counted
        blocks = len(counted)
        error = float(np.sqrt(blocks / (blocks - 1) * (spread * spread).sum()) / counted.sum())
        return cls(mean, mean - NORMAL_95 * error, mean + NORMAL_95 * error)

    def exponential(self) -> Estimate:
        """Powers of e of mean and bounds: a perplexity from a loss."""
        bounds = (None if value is None else float(np.exp(value)) for value in (self.low, self.high))
        return Estimate(float(np.exp(self.mean)), *bounds)

    def within(self, least: float, most: float) -> Estimate:
        """The same mean, with bounds that do not leave the values which it can have."""
        bounds = (None if value is None else min(max(value, least), most) for value in (self.low, self.high))
        return Estimate(self.mean, *bounds)


@dataclass(frozen=True)
class ReferenceRow:
    """One position of the reference: the logits of the whole vocabulary, or of its `N` likeliest tokens."""

    logits: Logits
    ids: Ids | None = None
    """The tokens that were kept, the likeliest first; None: all, in the order of the vocabulary."""
    total: float = 0.0
    """With `ids`: the logarithm of the sum of all tokens' exponentials."""
    rest: float = 0.0
    """With `ids`: the same of the tokens that were not kept."""
    followed: float = 0.0
    """With `ids`: the logit of the token that follows in the text."""

    @classmethod
    def keeping(cls, logits: Logits, count: int, following: int, scratch: Row) -> ReferenceRow:
        """The `count` likeliest tokens of a row `(V,)`, and what is to be known of the others."""
        some = np.argpartition(-logits, count - 1)[:count]
        largest: Ids = some[np.lexsort((some, -logits[some]))].astype(np.int32)
        scratch[:] = logits
        total = _log_sum(scratch)
        rest = _log_sum_without(scratch, largest)
        return cls(logits[largest], largest, total, rest, float(logits[following]))


@dataclass
class Block:
    """Sums over the positions of one block."""

    positions: int = 0
    loss: float = 0.0
    reference_loss: float = 0.0
    divergence: float = 0.0
    same_top: int = 0


@dataclass(frozen=True)
class Divergence:
    """How far a model's distributions are from a reference's."""

    nats: Estimate
    """KL divergence of the model from the reference."""
    percentiles: dict[str, float]
    """KL divergence that so many percent of the positions do not exceed."""
    largest: float
    same_top: Estimate
    """Share of positions whose most likely token is the same."""
    loss_difference: Estimate | None
    """Mean loss of the model less that of the reference; None where no tokens followed."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: every field by its name."""
        return asdict(self)


@dataclass
class Scores:
    """Scores positions, row by row, and sums them in blocks."""

    vocab_size: int
    most_positions: int
    """Room for the divergences of so many positions, whose percentiles are asked for."""
    blocks: list[Block] = field(default_factory=list)
    _divergences: Row = field(init=False)
    _compared: int = field(init=False, default=0)
    _followed: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        # Written to at once, so that a memory plan that is made afterwards counts them.
        self._divergences = np.full(self.most_positions, np.nan)
        self._model, self._reference = (np.full(self.vocab_size, np.nan) for _ in range(2))

    def begin_block(self) -> None:
        """Begin a block: the positions that follow belong to it."""
        self.blocks.append(Block())

    def add(self, logits: Logits, following: int | None = None, reference: ReferenceRow | None = None) -> None:
        """Score a position of the latest block: its logits `(V,)`, and the token that follows in the text."""
        block, model = self.blocks[-1], self._model
        model[:] = logits
        total = _log_sum(model)
        block.positions += 1
        if following is not None:
            self._followed = True
            block.loss += total - float(model[following])
        if reference is None:
            return
        divergence = self._whole(reference, total, following) if reference.ids is None else self._kept(reference, total)
        if reference.ids is None:
            block.same_top += int(logits.argmax() == reference.logits.argmax())
        else:
            block.same_top += int(logits.argmax() == reference.ids[0])
            block.reference_loss += reference.total - reference.followed
        divergence = max(divergence, 0.0)  # rounding may leave -1e-15
        block.divergence += divergence
        self._divergences[self._compared] = divergence
        self._compared += 1

    def _whole(self, reference: ReferenceRow, model_total: float, following: int | None) -> float:
        """KL divergence where the reference has the whole vocabulary; adds its loss."""
        row = self._reference
        row[:] = reference.logits
        followed = None if following is None else float(row[following])
        most = float(row.max())
        self._model -= row  # from here on the differences of logits
        row -= most
        np.exp(row, out=row)
        weight = float(row.sum())
        total = most + float(np.log(weight))
        if followed is not None:
            self.blocks[-1].reference_loss += total - followed
        self._model *= row
        return model_total - total - float(self._model.sum()) / weight

    def _kept(self, reference: ReferenceRow, model_total: float) -> float:
        """KL divergence where all tokens that the reference has not kept count as one."""
        ids = reference.ids
        assert ids is not None
        kept = reference.logits.astype(np.float64)
        weights = np.exp(kept - reference.total)
        mean = float((weights * (kept - self._model[ids])).sum())
        rest = _log_sum_without(self._model, ids)
        if np.isfinite(reference.rest):
            mean += float(np.exp(reference.rest - reference.total)) * (reference.rest - rest)
        return mean - reference.total + model_total

    @property
    def positions(self) -> int:
        return sum(block.positions for block in self.blocks)

    @property
    def loss(self) -> Estimate | None:
        """Mean loss of the tokens that followed, in nats; None where none did."""
        return self._over("loss") if self._followed else None

    @property
    def reference_loss(self) -> Estimate | None:
        """Mean loss with the reference; None where no tokens followed, or there is none."""
        return self._over("reference_loss") if self._followed and self._compared else None

    @property
    def divergence(self) -> Divergence | None:
        """The comparison with the reference; None without one."""
        if not self._compared:
            return None
        ordered = np.sort(self._divergences[: self._compared])
        places = [percent / 100 * (len(ordered) - 1) for percent in PERCENTILES]
        values = np.interp(places, np.arange(len(ordered)), ordered).tolist()
        counts = [block.positions for block in self.blocks]
        differences = [block.loss - block.reference_loss for block in self.blocks]
        return Divergence(
            self._over("divergence").within(0.0, np.inf),
            {f"{percent:g}": value for percent, value in zip(PERCENTILES, values, strict=True)},
            float(ordered[-1]),
            self._over("same_top").within(0.0, 1.0),
            Estimate.of(differences, counts) if self._followed else None,
        )

    def _over(self, name: str) -> Estimate:
        return Estimate.of((getattr(block, name) for block in self.blocks), (block.positions for block in self.blocks))


def _log_sum(row: Row) -> float:
    """The logarithm of the sum of a row's exponentials; minus infinity for an empty row."""
    if not len(row):
        return -np.inf
    most = row.max()
    return float(most + np.log(np.exp(row - most).sum()))


def _log_sum_without(row: Row, ids: Ids) -> float:
    """`_log_sum` of all but some entries of a row."""
    others = np.ones(len(row), np.bool_)
    others[ids] = False
    return _log_sum(row[others])
