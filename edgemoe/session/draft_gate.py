"""The gate: how many drafted tokens to run beside each chosen one, by what they have cost and saved so far.

Running several tokens at once costs more than running one (each row is computed, and brings experts of its own, and a
draft model takes its time to guess them), and saves a step for each token that was guessed right. Both are measured:
the seconds of steps by their number of drafts, in all answers, and the share of guesses that were right in this answer,
by how much of the text agreed with the place from which the guess was taken. As many drafts are run as give most tokens
in a second by these figures; none, where none give more.

What has not been measured has to be tried, and figures may be out of date. So an answer keeps an account of the seconds
that its drafts have cost beyond those that they have saved. Where this is more than a hundredth of its time, and half a
step more, it goes on without drafts: a text that cannot be guessed is written about as fast as without them.

A draft model has to read a text before it guesses how that goes on, and a prompt may take it longer than a short answer
saves. So reading is in the account too, and waits until there is room for it; or until the answer has become so long
that drafts, by what they have lately saved for each token, would bring back a multiple of it in as many tokens again.
"""

from __future__ import annotations

from collections import deque

WEIGHT = 0.2
"""The weight of the latest guess in the share of right ones."""
LEAST_GAIN = 1.03
"""By how much drafts must be expected to be faster."""
LOST_SHARE = 0.01
ALLOWED_STEPS = 0.5
MOST_SAVED_STEPS = 4
"""Savings beyond those of so many steps do not allow losses later."""
TRIAL_DRAFTS = 2
ROW_COST = 0.4
"""The cost of a draft, in steps without any, that is assumed before one was run."""
LEAST_ROW_COST = 0.1
"""The least cost of a draft that is believed: the first measurements are few, and rows are never free."""
READ_COST = 0.04
"""The cost of a token that a draft model reads, in steps without drafts, that is assumed before it has read any."""
SAVED_WEIGHT = 0.05
"""The weight of the latest step in what drafts of a model save for a token."""
ASSUMED_SAVED = 0.2
"""The steps that drafts of a model are assumed to save for a token before any were run."""
LEAST_RETURN = 2.0
"""How many times the time of reading must be expected back, where the account has no room for it."""
LATEST = 9
"""How many steps of a kind are looked at."""
PLAIN_EVERY = 24
"""After so many steps with drafts one without any is run, against which their costs are measured."""
BY_MODEL = 1 << 16
"""Stands for the number of agreeing tokens where a draft model guesses."""
RIGHT = {2: 0.3, 4: 0.5, 8: 0.8, BY_MODEL: 0.6}
"""Numbers of agreeing tokens from which guesses are counted apart, with the share of right ones that is assumed."""


class StepCosts:
    """The seconds of an engine's steps: of those without drafts, and by how much drafts make them longer.

    Both are medians of the latest few, since other processes make single steps longer.
    """

    def __init__(self) -> None:
        self._latest: dict[tuple[int, int], deque[float]] = {}  # by the numbers of answers and of drafts
        self._plain_s: dict[int, float] = {}  # by the number of answers that take part
        self._longer: dict[int, dict[int, float]] = {}  # by that and the number of drafts; 0 drafts: 1
        self._drafted_steps = 0
        self._read_s: deque[float] = deque(maxlen=LATEST)  # for each token that a draft model has read
        self._saved_steps = ASSUMED_SAVED

    def read(self, tokens: int, seconds: float) -> None:
        """Note that a draft model has read so many tokens."""
        self._read_s.append(seconds / tokens)

    def reading_s(self, answers: int, tokens: int) -> float:
        """The time in which a draft model reads so many tokens."""
        each_s = _middle(sorted(self._read_s)) if self._read_s else READ_COST * self._plain_s[answers]
        return tokens * each_s

    def saved(self, steps: float) -> None:
        """Note what drafts of a model have saved for a token, in steps without drafts."""
        self._saved_steps += SAVED_WEIGHT * (steps - self._saved_steps)

    def expected_s(self, answers: int, tokens: int) -> float:
        """The time that drafts of a model will save while so many tokens are written, if they go on as lately."""
        return tokens * self._saved_steps * self._plain_s[answers] / answers

    def ran(self, answers: int, drafts: int, seconds: float) -> None:
        """Note a step in which so many answers had a token each, and `drafts` in all beside these."""
        if not drafts:
            self._plain_s[answers] = self._median(answers, 0, seconds)
            self._drafted_steps = 0
        elif answers in self._plain_s:
            factor = self._median(answers, drafts, seconds / self._plain_s[answers])
            longer = self._longer.setdefault(answers, {0: 1.0})
            longer[drafts] = max(factor, 1 + LEAST_ROW_COST * drafts / answers)
            self._drafted_steps += 1

    def _median(self, answers: int, drafts: int, latest: float) -> float:
        """The median of the latest figures of a kind of steps, with one more."""
        figures = self._latest.setdefault((answers, drafts), deque(maxlen=LATEST))
        figures.append(latest)
        return _middle(sorted(figures))

    def measurable(self, answers: int) -> bool:
        """Whether drafts can be weighed now, since a step without any was run not long ago."""
        return answers in self._plain_s and self._drafted_steps < PLAIN_EVERY

    def seconds(self, answers: int, drafts: int) -> float:
        """The time that such a step takes: measured, or on the line through the nearest that were."""
        longer = self._longer.get(answers, {0: 1.0})
        if drafts not in longer:
            below = max(n for n in longer if n < drafts)
            above = min((n for n in longer if n > drafts), default=None)
            slope = ROW_COST / answers if above is None else (longer[above] - longer[below]) / (above - below)
            return self._plain_s[answers] * (longer[below] + slope * (drafts - below))
        return self._plain_s[answers] * longer[drafts]


class DraftGate:
    """Decides on the drafts of one answer."""

    def __init__(self, costs: StepCosts, fixed: int | None = None) -> None:
        """`fixed`: run so many beside each token, whatever they cost; None: as many as pay."""
        self._costs = costs
        self._fixed = fixed
        self._right = dict(RIGHT)
        self._spent_s = self._lost_s = 0.0
        self._tokens = 0
        """Tokens of the answer, as far as they were noted."""
        self._invested_s = 0.0
        """The time of reading for which the account had no room."""

    def began(self, seconds: float) -> None:
        """Note the time of the prompt, which is a part of the answer's."""
        self._spent_s += seconds

    def may_read(self, tokens: int, left: int, answers: int = 1) -> bool:
        """Whether a draft model may read so many tokens, where at most `left` may still be written."""
        costs = self._costs
        if self._fixed is not None:
            return True
        if not costs.measurable(answers):
            return False
        read_s = costs.reading_s(answers, tokens)
        if self._lost_s + read_s <= self._room_s(answers):
            return True
        return LEAST_RETURN * read_s <= costs.expected_s(answers, min(left, self._tokens))

    def read(self, tokens: int, seconds: float, answers: int = 1) -> None:
        """Note that a draft model has read so many tokens of the text."""
        self._costs.read(tokens, seconds)
        if self._fixed is None:
            self._spent_s += seconds
            self._lost_s += seconds
            self._invested_s += max(0.0, self._lost_s - self._room_s(answers))

    def _room_s(self, answers: int) -> float:
        """The loss that the account allows."""
        return LOST_SHARE * self._spent_s + ALLOWED_STEPS * self._costs.seconds(answers, 0) / answers + self._invested_s

    def drafts(self, matched: int, most: int, answers: int = 1, others: int = 0) -> int:
        """How many of `most` drafted tokens to run, whose place agrees in `matched` tokens.

        In the step `answers` answers take part, and `others` drafts of other answers.
        """
        if self._fixed is not None:
            return min(self._fixed, most)
        costs = self._costs
        if not most or not costs.measurable(answers):
            return 0
        if self._lost_s > self._room_s(answers):
            return 0
        right = self._right[_level(matched)]
        best, best_rate = 0, LEAST_GAIN * answers / costs.seconds(answers, others)
        expected = float(answers)
        for count in range(1, most + 1):
            expected += right**count
            rate = expected / costs.seconds(answers, others + count)
            if rate > best_rate:
                best, best_rate = count, rate
        if not best and self._lost_s <= LOST_SHARE * self._spent_s + self._invested_s:
            return min(TRIAL_DRAFTS, most)
        return best

    def verified(self, matched: int, drafts: int, right: int, answers: int = 1) -> None:
        """Note a step of `answers` answers, in which of this one's drafts the first `right` were chosen."""
        self._tokens += 1 + right
        if not self._costs.measurable(answers) and not drafts:
            return
        for number in range(min(right + 1, drafts)):
            level = _level(matched)
            self._right[level] += WEIGHT * ((number < right) - self._right[level])
        if self._fixed is None:
            step_s = self._costs.seconds(answers, 0) / answers
            longer_s = self._costs.seconds(answers, drafts) - self._costs.seconds(answers, 0)
            if drafts and matched == BY_MODEL:
                self._costs.saved((right - longer_s / step_s) / (1 + right))
            self._spent_s += step_s + longer_s
            self._lost_s = max(self._lost_s + longer_s - right * step_s, -MOST_SAVED_STEPS * step_s)


def _middle(ordered: list[float]) -> float:
    """The median; `statistics` imports decimals and fractions, at each start."""
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _level(matched: int) -> int:
    return max(level for level in RIGHT if level <= matched)
